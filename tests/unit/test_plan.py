"""The epoch plan: every row once, in equal steps, the same global batches whatever the ranks; legs lose nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from schemas.errors import UserError
from training.plan import SLAB_ROWS, EpochPlan, Leg, default_lanes

Row = tuple[int, int]  # row group, row

GROUP_SIZES = st.one_of(st.just(0), st.just(1), st.integers(0, 40))
LAYOUTS = st.lists(GROUP_SIZES, min_size=1, max_size=12).filter(any)


@st.composite
def plans(draw: st.DrawFn, layouts: st.SearchStrategy[list[int]] = LAYOUTS, **fixed: Any) -> EpochPlan:
    """Plans over layouts x ranks x batch sizes x lanes x seeds."""
    world_size = draw(st.integers(1, 5))
    drawn = {
        "row_group_rows": tuple(draw(layouts)),
        "world_size": world_size,
        "batch_size_per_rank": draw(st.integers(1, 17)),
        "num_lanes": world_size * draw(st.integers(1, 6)),
        "epoch": draw(st.integers(0, 3)),
        "seed": draw(st.integers(0, 1000)),
        "shuffle": draw(st.booleans()),
    }
    return EpochPlan(**{**drawn, **fixed})


def all_rows(plan: EpochPlan) -> list[Row]:
    return [(group, row) for group, rows in enumerate(plan.row_group_rows) for row in range(rows)]


def steps_of(plan: EpochPlan, rank: int, *, from_step: int = 0) -> list[list[Row]]:
    """The rank's rows of every step, found by following the plan's reads as a reader does."""
    segments = [segment for read in plan.reads(rank, from_step=from_step) for segment in read.segments]
    waiting: dict[int, list[Row]] = {lane: [] for lane in plan.lanes_of(rank)}
    for segment in sorted(segments, key=lambda segment: segment.place):
        order = plan.rows_in_order(segment.row_group)[segment.start : segment.stop]
        waiting[segment.lane] += [(segment.row_group, int(row)) for row in order]
    steps = []
    for step in range(from_step, plan.num_steps):
        wanted = plan.lane_rows(step)
        assert all(len(rows) >= wanted[lane] for lane, rows in waiting.items()), "a lane ran dry"
        steps.append([waiting[lane].pop(0) for lane in waiting for _ in range(wanted[lane])])
    assert not any(waiting.values()), "rows were read that no step takes"
    return steps


def global_batches(plan: EpochPlan) -> list[list[Row]]:
    """Every step's rows at their positions in the global batch; each position must be held by one rank."""
    ranks = [steps_of(plan, rank) for rank in range(plan.world_size)]
    batches = []
    for step in range(plan.num_steps):
        batch: dict[int, Row] = {}
        for rank, steps in enumerate(ranks):
            placed = dict(zip(plan.positions(rank, step), steps[step], strict=True))
            assert not batch.keys() & placed.keys(), "two ranks hold one position"
            batch |= placed
        assert sorted(batch) == list(range(plan.global_rows(step)))
        batches.append([batch[position] for position in sorted(batch)])
    return batches


@given(plans())
@example(EpochPlan(row_group_rows=(7,), world_size=3, batch_size_per_rank=1, num_lanes=3))  # one row group, 3 ranks
@example(EpochPlan(row_group_rows=(0, 2, 0), world_size=5, batch_size_per_rank=4, num_lanes=10))  # 2 rows, 5 ranks
@settings(max_examples=300, deadline=None)
def test_every_row_comes_exactly_once_in_the_same_number_of_steps_on_every_rank(plan):
    ranks = [steps_of(plan, rank) for rank in range(plan.world_size)]
    num_rows = sum(plan.row_group_rows)
    global_batch = plan.world_size * plan.batch_size_per_rank
    assert {len(steps) for steps in ranks} == {(num_rows + global_batch - 1) // global_batch}
    assert sorted(row for steps in ranks for step in steps for row in step) == all_rows(plan)
    for steps in ranks:  # every step but the last is full on every rank, so that no rank waits for another
        assert all(len(step) == plan.batch_size_per_rank for step in steps[:-1])
    last = [len(steps[-1]) for steps in ranks]
    assert sum(last) == num_rows - (len(ranks[0]) - 1) * global_batch
    assert max(last) <= plan.batch_size_per_rank


@given(plans(), st.data())
@settings(max_examples=150, deadline=None)
def test_rank_rows_and_positions_say_what_the_steps_hold(plan, data):
    batches = global_batches(plan)  # proves the positions
    assert [len(batch) for batch in batches] == [plan.global_rows(step) for step in range(plan.num_steps)]
    from_step = data.draw(st.integers(0, plan.num_steps))
    for rank in range(plan.world_size):
        rows = sum(map(len, steps_of(plan, rank)[from_step:]))
        assert plan.rank_rows(rank, from_step=from_step) == rows


@given(plans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_drop_last_leaves_out_the_remainder_and_nothing_else(plan, use_legs):
    legs = (Leg(num_lanes=4, global_batch_size=3, steps=1),) if use_legs else ()
    kept, dropping = ({**vars_of(plan), "legs": legs, "drop_last": drop} for drop in (False, True))
    num_rows = sum(plan.row_group_rows) - (min(3, sum(plan.row_group_rows)) if use_legs else 0)
    global_batch = plan.world_size * plan.batch_size_per_rank
    if num_rows < global_batch and not use_legs:
        with pytest.raises(UserError, match=r"cannot fill one step of .* lower --batch-size-per-rank"):
            EpochPlan(**dropping)
        return
    batches = global_batches(EpochPlan(**dropping))
    assert [len(batch) for batch in batches] == [global_batch] * (num_rows // global_batch)
    assert batches == global_batches(EpochPlan(**kept))[: len(batches)]


def vars_of(plan: EpochPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in EpochPlan.__dataclass_fields__}


@given(st.sampled_from([1, 2, 4, 6, 8, 12, 32]), st.integers(1, 4), plans())
@settings(max_examples=150, deadline=None)
def test_global_batches_are_the_same_for_all_world_sizes_that_share_the_lanes(num_lanes, multiple, plan):
    world_sizes = [size for size in range(1, num_lanes + 1) if num_lanes % size == 0]
    global_batch = num_lanes * multiple
    batches = [
        global_batches(
            EpochPlan(
                **{
                    **vars_of(plan),
                    "world_size": world_size,
                    "batch_size_per_rank": global_batch // world_size,
                    "num_lanes": num_lanes,
                }
            )
        )
        for world_size in world_sizes
    ]
    assert all(other == batches[0] for other in batches[1:])


@given(plans(), st.booleans(), st.data())
@settings(max_examples=200, deadline=None)
def test_from_a_step_on_comes_what_the_whole_epoch_gives_from_there(plan, drop_last, data):
    assume(not drop_last or plan.num_full_steps)
    plan = EpochPlan(**{**vars_of(plan), "drop_last": drop_last})
    step = data.draw(st.integers(0, plan.num_steps))
    for rank in range(plan.world_size):
        assert steps_of(plan, rank, from_step=step) == steps_of(plan, rank)[step:]


@given(plans(), st.lists(plans(layouts=st.just([1])), min_size=1, max_size=3), st.data())
@settings(max_examples=300, deadline=None)
def test_other_ranks_batches_and_lanes_go_on_with_each_row_that_the_legs_left_and_none_other(plan, others, data):
    left = Counter(all_rows(plan))
    for other in others:
        steps = data.draw(st.integers(0, plan.num_steps), label="steps")
        left -= Counter(row for batch in global_batches(plan)[:steps] for row in batch)
        plan = EpochPlan(
            **{
                **vars_of(plan),
                "world_size": other.world_size,
                "batch_size_per_rank": other.batch_size_per_rank,
                "num_lanes": other.num_lanes,
                "legs": plan.after(steps),
            }
        )
        coming = global_batches(plan)
        assert Counter(row for batch in coming for row in batch) == left
        assert len(coming) == -(-left.total() // (other.world_size * other.batch_size_per_rank))


def test_after_the_short_last_batch_nothing_is_left_for_any_ranks():
    plan = EpochPlan(row_group_rows=(3, 2), world_size=2, batch_size_per_rank=1, num_lanes=4)
    assert [len(batch) for batch in global_batches(plan)] == [2, 2, 1]
    for world_size, batch in ((1, 1), (2, 2), (3, 5)):
        settings = {"world_size": world_size, "batch_size_per_rank": batch, "num_lanes": 3 * world_size}
        rest = EpochPlan(row_group_rows=(3, 2), legs=plan.after(3), **settings)
        assert (rest.num_rows, rest.num_steps) == (0, 0)
        assert [rest.reads(rank) for rank in range(world_size)] == [[]] * world_size


def test_five_rows_by_hand():
    # In file order the line of rows is a0 a1 a2 b0 b1. Of 2 rows a step each lane takes 1, of the last, single row
    # lane 1 takes it: lane 0 is a0 a1, lane 1 is a2 b0 b1, which it goes through from the last row group to the first.
    plan = EpochPlan(row_group_rows=(3, 2), world_size=2, batch_size_per_rank=1, shuffle=False, num_lanes=2)
    a, b = 0, 1
    assert steps_of(plan, 0) == [[(a, 0)], [(a, 1)], []]
    assert steps_of(plan, 1) == [[(b, 0)], [(b, 1)], [(a, 2)]]
    assert [plan.global_rows(step) for step in range(3)] == [2, 2, 1]
    assert [plan.positions(0, step) for step in range(3)] == [range(0, 1), range(0, 1), range(0, 0)]
    assert [plan.positions(1, step) for step in range(3)] == [range(1, 2), range(1, 2), range(0, 1)]
    # Stopped after one step: a1 is left of lane 0, b1 a2 of lane 1; one rank with one lane takes them in that order.
    rest = EpochPlan(
        row_group_rows=(3, 2), world_size=1, batch_size_per_rank=2, shuffle=False, num_lanes=1, legs=plan.after(1)
    )
    assert steps_of(rest, 0) == [[(a, 1), (b, 1)], [(a, 2)]]


def test_unshuffled_one_rank_with_one_lane_gets_the_rows_in_the_order_of_the_files():
    plan = EpochPlan(row_group_rows=(3, 0, 4), world_size=1, batch_size_per_rank=2, shuffle=False, num_lanes=1)
    assert [row for step in steps_of(plan, 0) for row in step] == all_rows(plan)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 100, SLAB_ROWS - 1, SLAB_ROWS, SLAB_ROWS + 1, 3 * SLAB_ROWS + 17])
def test_the_order_of_a_row_group_is_a_permutation_that_goes_slab_by_slab(num_rows):
    order = EpochPlan(row_group_rows=(num_rows, 1), world_size=1, batch_size_per_rank=1, num_lanes=1).rows_in_order(0)
    assert order.dtype == np.int32
    assert np.array_equal(np.sort(order), np.arange(num_rows))
    slabs = order // SLAB_ROWS
    changes = np.count_nonzero(np.diff(slabs)) if num_rows else 0
    assert changes == max(0, -(-num_rows // SLAB_ROWS) - 1)  # each slab is one run


def test_row_groups_slabs_epochs_and_seeds_have_orders_of_their_own():
    rows = 3 * SLAB_ROWS

    def order(group: int, **settings: int) -> tuple[int, ...]:
        plan = EpochPlan(row_group_rows=(rows,) * 4, world_size=1, batch_size_per_rank=1, num_lanes=1, **settings)
        return tuple(plan.rows_in_order(group).tolist())

    orders = [order(group) for group in range(4)] + [order(0, epoch=1), order(0, seed=1)]
    assert len(set(orders)) == 6
    slabs = [tuple(row % SLAB_ROWS for row in orders[0][start : start + SLAB_ROWS]) for start in (0, SLAB_ROWS)]
    assert slabs[0] != slabs[1]
    assert order(2, epoch=3, seed=5) == order(2, epoch=3, seed=5)


def test_a_shuffled_batch_mixes_rows_of_as_many_row_groups_as_there_are_lanes():
    plan = EpochPlan(row_group_rows=(100,) * 16, world_size=1, batch_size_per_rank=64, num_lanes=8)
    for batch in global_batches(plan)[:12]:  # 16 row groups in 8 lanes: a lane's first one lasts for 12 steps of 8 rows
        assert Counter(Counter(group for group, _ in batch).values()) == {8: 8}


@given(plans(), st.data())
@settings(max_examples=300, deadline=None)
def test_segments_of_a_row_group_that_are_needed_at_the_same_time_share_a_read(plan, data):
    from_step = data.draw(st.integers(0, plan.num_steps))
    for rank in range(plan.world_size):
        reads = plan.reads(rank, from_step=from_step)
        needed = [
            (read.row_group, min(s.first_step for s in read.segments), max(s.last_step for s in read.segments))
            for read in reads
        ]
        assert [first for _, first, _ in needed] == sorted(first for _, first, _ in needed)
        for number, (group, first, last) in enumerate(needed):
            for other_group, other_first, other_last in needed[:number]:
                assert group != other_group or other_last < first or last < other_first


@given(plans())
@settings(max_examples=300, deadline=None)
def test_a_rank_reads_a_row_group_once_and_at_most_twice_more(plan):
    """The bound of the reads of a row group by a rank, in an epoch without earlier legs.

    Where each lane gives a row to each full step, neighbours meet at their border in the same step, at the beginning
    or at the end: one read; another one only if a segment lies in the short last step alone. Batches of fewer rows
    than there are lanes leave lanes out, whose neighbours on both sides then do not meet: one read more.
    """
    every_lane_in_every_step = plan.batch_size_per_rank >= plan.num_lanes // plan.world_size
    has_short_step = plan.num_steps > plan.num_full_steps > 0
    bound = 1 + has_short_step + (not every_lane_in_every_step)
    for rank in range(plan.world_size):
        for count in Counter(read.row_group for read in plan.reads(rank)).values():
            assert count <= bound


@given(plans(shuffle=False), st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_with_full_steps_a_row_group_is_read_once_and_once_more_for_each_border_of_ranks_in_it(plan, num_steps):
    lanes_per_rank = plan.num_lanes // plan.world_size
    batch = max(plan.batch_size_per_rank, lanes_per_rank)
    missing = -sum(plan.row_group_rows) % (plan.world_size * batch * num_steps)
    rows = (*plan.row_group_rows, missing)
    plan = EpochPlan(**{**vars_of(plan), "row_group_rows": rows, "batch_size_per_rank": batch})
    rank_rows = sum(rows) // plan.world_size
    borders = [rank * rank_rows for rank in range(1, plan.world_size)]
    begin, expected = 0, {}
    for group, size in enumerate(rows):
        if size:
            expected[group] = 1 + sum(begin < border < begin + size for border in borders)
        begin += size
    assert Counter(read.row_group for rank in range(plan.world_size) for read in plan.reads(rank)) == expected


@pytest.mark.parametrize(
    ("world_size", "megabytes", "lanes"),
    [
        (1, 1000, 8),  # 8 at least
        (2, 1000, 8),
        (3, 1000, 12),  # 4 a rank at least
        (4, 1000, 16),
        (8, 1000, 32),
        (16, 1000, 64),
        (1, 10, 8),
        (1, 8, 16),  # as many as 128 MiB of row groups, in powers of two
        (2, 8, 16),
        (3, 8, 15),  # 16 // 3 = 5 a rank
        (4, 8, 16),
        (8, 8, 32),
        (1, 2, 64),
        (2, 2, 64),
        (3, 2, 63),
        (16, 2, 64),
        (32, 2, 128),
        (1, 0.001, 64),  # 64 at most
    ],
)
def test_default_lanes(world_size, megabytes, lanes):
    row_groups = {"row_group_bytes": int(megabytes * 2**20), "lanes_in_memory": 1000}
    assert default_lanes(world_size, **row_groups, batch_size_per_rank=1000) == lanes


def test_a_lane_gives_a_row_to_each_step_of_its_rank():
    settings = {"row_group_bytes": 1000, "lanes_in_memory": 1000}
    assert [default_lanes(2, **settings, batch_size_per_rank=rows) for rows in (1, 2, 7, 8, 40)] == [2, 4, 8, 16, 64]


@pytest.mark.parametrize(("in_memory", "lanes"), [(0, 3), (1, 3), (2, 6), (3, 6), (4, 12), (7, 12), (8, 24), (99, 63)])
def test_memory_bounds_the_lanes_of_each_rank(in_memory, lanes):
    assert default_lanes(3, row_group_bytes=1000, lanes_in_memory=in_memory, batch_size_per_rank=100) == lanes


def test_unshuffled_each_rank_has_one_lane():
    for world_size in (1, 2, 7):
        lanes = default_lanes(
            world_size, row_group_bytes=1000, lanes_in_memory=100, batch_size_per_rank=100, shuffle=False
        )
        assert lanes == world_size


def digest_of_a_plan() -> str:
    legs = (Leg(num_lanes=6, global_batch_size=5, steps=3),)
    rows = (SLAB_ROWS + 5, 0, 1, 300, 44)
    plan = EpochPlan(
        row_group_rows=rows, world_size=2, batch_size_per_rank=70, num_lanes=8, seed=11, epoch=4, legs=legs
    )
    return hashlib.sha256(repr(global_batches(plan)).encode()).hexdigest()


def test_another_process_plans_the_same():
    program = f"from {__name__} import digest_of_a_plan; print(digest_of_a_plan())"
    root = Path(__file__).parents[2]
    there = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == digest_of_a_plan()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size_per_rank": 0}, "--batch-size-per-rank must be 1 or more"),
        ({"num_lanes": 3}, "3 lanes cannot be shared out to 2 ranks: use a multiple of the ranks"),
        ({"num_lanes": 0}, "0 lanes cannot be shared out"),
        ({"row_group_rows": ()}, "there are no rows"),
        ({"row_group_rows": (0, 0)}, "there are no rows"),
        ({"drop_last": True}, "5 rows cannot fill one step of 2 ranks x 3 rows: lower --batch-size-per-rank"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_what_to_do(settings, says):
    fine = {"row_group_rows": (5,), "world_size": 2, "batch_size_per_rank": 3, "num_lanes": 2}
    EpochPlan(**fine)
    with pytest.raises(UserError, match=says):
        EpochPlan(**{**fine, **settings})
