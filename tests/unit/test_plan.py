"""The epoch plan: every row once, equal steps, the same global batches whatever the ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import UserError
from training.plan import EpochPlan, default_lanes

row_groups = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def rows_of_rank(plan: EpochPlan, rank: int, *, from_step: int = 0) -> list[list[tuple[int, int]]]:
    """The rank's rows of every step as (row group, row), by following the segments as a reader would."""
    waiting: dict[int, list[tuple[int, int]]] = {lane: [] for lane in plan.lanes_of(rank)}
    for segment in plan.segments(rank, from_step=from_step):
        order = plan.rows_in_order(segment.row_group)[segment.start : segment.stop]
        waiting[segment.lane] += [(segment.row_group, int(row)) for row in order]
    steps = []
    for step in range(from_step, plan.num_steps):
        wanted = plan.lane_rows(step)
        steps.append([waiting[lane].pop(0) for lane in plan.lanes_of(rank) for _ in range(wanted[lane])])
    assert not any(waiting.values()), "rows were read that no step takes"
    return steps


@given(row_groups, st.integers(1, 5), st.integers(1, 17), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_every_row_comes_exactly_once_in_the_same_number_of_steps_on_every_rank(groups, world_size, batch, epoch):
    if sum(groups) < world_size:
        return
    plan = EpochPlan(row_group_rows=tuple(groups), world_size=world_size, batch_size_per_rank=batch, epoch=epoch)
    ranks = [rows_of_rank(plan, rank) for rank in range(world_size)]
    assert {len(steps) for steps in ranks} == {plan.num_steps}
    seen = sorted(row for steps in ranks for step in steps for row in step)
    assert seen == [(group, row) for group, rows in enumerate(groups) for row in range(rows)]
    for step in range(plan.num_steps):
        assert sum(len(steps[step]) for steps in ranks) == plan.global_rows(step)
        positions = np.concatenate([plan.positions(rank, step) for rank in range(world_size)])
        assert sorted(positions) == list(range(plan.global_rows(step)))
    assert [sum(map(len, steps)) for steps in ranks] == [plan.rank_rows(rank) for rank in range(world_size)]


@given(row_groups, st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=60, deadline=None)
def test_a_global_batch_holds_the_same_rows_at_the_same_positions_on_one_rank_and_on_several(groups, world_size):
    if sum(groups) < world_size:
        return
    alone = EpochPlan(row_group_rows=tuple(groups), world_size=1, batch_size_per_rank=8 * world_size)
    together = EpochPlan(row_group_rows=tuple(groups), world_size=world_size, batch_size_per_rank=8)
    expected = rows_of_rank(alone, 0)
    ranks = [rows_of_rank(together, rank) for rank in range(world_size)]
    for step in range(together.num_steps):
        batch = [None] * together.global_rows(step)
        for rank, steps in enumerate(ranks):
            for position, row in zip(together.positions(rank, step), steps[step], strict=True):
                batch[position] = row
        assert batch == expected[step]


@given(row_groups, st.integers(1, 4), st.data())
@settings(max_examples=60, deadline=None)
def test_segments_from_a_step_on_give_what_the_whole_epoch_gives_from_there(groups, world_size, data):
    if sum(groups) < world_size:
        return
    plan = EpochPlan(row_group_rows=tuple(groups), world_size=world_size, batch_size_per_rank=5)
    step = data.draw(st.integers(0, plan.num_steps - 1))
    for rank in range(world_size):
        assert rows_of_rank(plan, rank, from_step=step) == rows_of_rank(plan, rank)[step:]


def test_five_rows_in_lanes_by_hand():
    # Row groups of 3 and 2 rows in file order; 2 lanes: the line of rows 0 1 2 | 3 4 is cut into 0 1 2 and 3 4.
    plan = EpochPlan(row_group_rows=(3, 2), world_size=2, batch_size_per_rank=1, shuffle=False, num_lanes=2)
    assert plan.num_steps == 3
    assert rows_of_rank(plan, 0) == [[(0, 0)], [(0, 1)], [(0, 2)]]
    assert rows_of_rank(plan, 1) == [[(1, 0)], [(1, 1)], []]
    assert [plan.global_rows(step) for step in range(3)] == [2, 2, 1]


def test_epochs_and_seeds_have_orders_of_their_own_and_each_is_repeated():
    def order(**settings: int) -> list[list[tuple[int, int]]]:
        return rows_of_rank(EpochPlan(row_group_rows=(50, 50), world_size=1, batch_size_per_rank=100, **settings), 0)

    assert order(epoch=1, seed=7) == order(epoch=1, seed=7)
    assert order(epoch=1, seed=7) != order(epoch=2, seed=7)
    assert order(epoch=1, seed=7) != order(epoch=1, seed=8)


def test_a_shuffled_batch_mixes_rows_of_as_many_row_groups_as_there_are_lanes():
    plan = EpochPlan(row_group_rows=(100,) * 16, world_size=1, batch_size_per_rank=64)
    groups = {group for group, _ in rows_of_rank(plan, 0)[0]}
    assert len(groups) == default_lanes(1) == 8


def test_one_two_four_and_eight_ranks_share_their_lanes_and_others_get_a_multiple():
    assert [default_lanes(size) for size in (1, 2, 3, 4, 5, 8, 16)] == [8, 8, 24, 8, 40, 8, 16]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"world_size": 3, "batch_size_per_rank": 4}, "2 rows cannot feed 3 ranks"),
        ({"world_size": 1, "batch_size_per_rank": 0}, "--batch-size-per-rank must be 1 or more"),
        ({"world_size": 2, "batch_size_per_rank": 1, "num_lanes": 1}, "1 lanes cannot feed 2 ranks"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_what_to_do(settings, says):
    with pytest.raises(UserError, match=says):
        EpochPlan(row_group_rows=(2,), **settings)
