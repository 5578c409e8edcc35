"""The feed over real Parquet files: each row once on any ranks, resumable after any batch, bounded, no thread left."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.errors import LedgerError, SnapshotDamaged, UserError
from schemas.snapshot import open_snapshot
from tests.snapshots import make_snapshot
from training.batch import Batch, Ragged
from training.blocks import Block
from training.feed import Feed
from training.reader import open_folder, open_part
from training.row_groups import ParquetRows, RowGroupColumns

Layout = Sequence[Sequence[int]]  # files x row groups: rows

INT32S = pa.list_(pa.field("element", pa.int32(), nullable=False))
TYPES = {
    "row_id": pa.int64(),
    "small": pa.int8(),
    "half": pa.int16(),
    "x": pa.float32(),
    "yes": pa.bool_(),
    "pair": INT32S,
    "some": INT32S,
    "text": pa.string(),
}
SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in TYPES.items()])
COLUMNS = {  # of a row with this id
    "row_id": lambda i: i,
    "small": lambda i: i % 100,
    "half": lambda i: 3 * i,
    "x": lambda i: i / 4,
    "yes": lambda i: i % 3 == 0,
    "pair": lambda i: [i, i + 7],
    "some": lambda i: list(range(i, i + i % 4)),
    "text": lambda i: f"né {i}" * (i % 3),
}


def write_folder(folder: Path, layout: Layout) -> str:
    """Files with row groups of exactly these rows, ids counting from 0; a file of no row groups holds none."""
    first = 0
    for number, row_groups in enumerate(layout):
        with pq.ParquetWriter(folder / f"part-{number:05d}.parquet", SCHEMA) as writer:
            for rows in row_groups:
                ids = range(first, first + rows)
                columns = {name: [of(i) for i in ids] for name, of in COLUMNS.items()}
                writer.write_table(pa.table(columns, SCHEMA), row_group_size=max(rows, 1))
                first += rows
    return str(folder)


def num_rows(layout: Layout) -> int:
    return sum(map(sum, layout))


def feed_of(url: str, *, columns: Sequence[str] = ("row_id",), batch: int = 16, **options: object) -> Feed:
    rows = open_folder(url, columns=columns, lengths={"pair": 2} if "pair" in columns else None)
    return Feed(rows, batch_size_per_rank=batch, **options)


def ids_of(batches: Sequence[Batch]) -> list[int]:
    return [row for batch in batches for row in batch["row_id"].tolist()]


def same(left: Batch, right: Batch) -> bool:
    def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
        return one.dtype == other.dtype and torch.equal(one, other)

    def tensors(batch: Batch) -> Iterator[torch.Tensor]:
        yield batch.positions
        for column in batch.columns.values():
            yield from (column.values, column.offsets) if isinstance(column, Ragged) else (column,)

    assert left.columns.keys() == right.columns.keys()
    same_step = (left.global_rows, left.step) == (right.global_rows, right.step)
    return same_step and all(map(equal, tensors(left), tensors(right)))


def threads_of_feeds() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("headrace")]


def take(feed: Feed, count: int) -> list[Batch]:
    """The next batches; a loop that is broken out of."""
    taken: list[Batch] = []
    if count:
        for batch in feed:
            taken.append(batch)
            if len(taken) == count:
                break
    return taken


GROUPS = st.lists(st.one_of(st.just(1), st.integers(0, 6), st.integers(20, 90)), max_size=6)  # [] is an empty file
LAYOUTS = st.lists(GROUPS, min_size=1, max_size=4).filter(lambda layout: num_rows(layout) > 0)
RANKS = st.integers(1, 4)
BATCHES = st.integers(1, 40)
WORKERS = st.sampled_from([0, 1, 3])


@given(LAYOUTS, RANKS, BATCHES, WORKERS, st.booleans(), st.data())
@example([[1] * 12], 2, 3, 1, True, None)
@example([[], [400], []], 3, 7, 1, True, None)
@settings(max_examples=40, deadline=None)
def test_each_row_comes_once_in_equal_steps_and_stopped_anywhere_the_rest_comes_on_any_ranks(
    layout, ranks, batch, workers, shuffle, data
):
    def drawn(strategy: st.SearchStrategy[int], otherwise: int) -> int:
        return otherwise if data is None else data.draw(strategy)

    every = range(num_rows(layout))
    num_steps = -(-len(every) // (ranks * batch))
    with tempfile.TemporaryDirectory() as folder:
        url = write_folder(Path(folder), layout)
        common = {"shuffle": shuffle, "seed": drawn(st.integers(0, 9), 4)}

        def feeds(size: int, rows: int) -> list[Feed]:
            return [
                feed_of(
                    url, columns=("row_id", "some"), batch=rows, rank=rank, world_size=size, workers=workers, **common
                )
                for rank in range(size)
            ]

        whole = [list(feed) for feed in feeds(ranks, batch)]
        assert [len(batches) for batches in whole] == [num_steps] * ranks
        assert sorted(row for batches in whole for row in ids_of(batches)) == list(every)

        stop = drawn(st.integers(0, num_steps), 1)
        stopped = feeds(ranks, batch)
        begun = [take(feed, stop) for feed in stopped]
        states = [json.loads(json.dumps(feed.state_dict())) for feed in stopped]
        assert all(state == states[0] for state in states)

        resumed = feeds(ranks, batch)
        for feed, batches, expected in zip(resumed, begun, whole, strict=True):
            feed.load_state_dict(states[0])
            assert len(feed) == num_steps - stop
            got = batches + list(feed)
            assert len(got) == num_steps
            assert all(map(same, got, expected))

        new_ranks, new_batch = drawn(RANKS, ranks + 1), drawn(BATCHES, batch)
        others = feeds(new_ranks, new_batch)
        for feed in others:
            feed.load_state_dict(states[0])
        left = len(every) - min(stop * ranks * batch, len(every))
        rest = [(len(feed), list(feed)) for feed in others]
        if (new_ranks, new_batch) != (ranks, batch):
            assert [length for length, _ in rest] == [-(-left // (new_ranks * new_batch))] * new_ranks
        assert all(length == len(batches) for length, batches in rest)
        done = [row for batches in begun for row in ids_of(batches)]
        assert sorted(done + [row for _, batches in rest for row in ids_of(batches)]) == list(every)
        assert {feed.epoch for feed in others} == {1}


@pytest.mark.parametrize("workers", [0, 1])
def test_the_state_after_every_batch_leads_to_the_batches_that_follow(tmp_path, workers):
    url = write_folder(tmp_path, [[30, 1, 20], [], [49]])
    feed = feed_of(url, columns=tuple(COLUMNS), batch=9, workers=workers)
    batches, states = [], [feed.state_dict()]
    for batch in feed:
        batches.append(batch)
        states.append(feed.state_dict())
    assert len(batches) == 12  # 100 rows in batches of 9
    for taken, state in enumerate(states):
        resumed = feed_of(url, columns=tuple(COLUMNS), batch=9, workers=workers)
        resumed.load_state_dict(state)
        rest = list(resumed)
        assert len(rest) == 12 - taken
        assert all(map(same, rest, batches[taken:]))
        assert resumed.epoch == 1


def test_over_three_legs_with_other_ranks_each_row_comes_once(tmp_path):
    url = write_folder(tmp_path, [[100, 60], [7], [1] * 5])
    state, seen = None, []
    for world_size, batch, steps in ((2, 10, 3), (3, 8, 2), (1, 5, 4), (4, 3, 1000)):
        feeds = [feed_of(url, batch=batch, rank=rank, world_size=world_size) for rank in range(world_size)]
        for feed in feeds:
            if state is not None:
                feed.load_state_dict(state)
            seen += ids_of(take(feed, steps))
        state = json.loads(json.dumps(feeds[0].state_dict()))
    assert len(state["legs"]) == 0  # the epoch is over and the next one has none
    assert state["epoch"] == 1
    assert sorted(seen) == list(range(172))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 12])
def test_ranks_that_do_not_divide_the_lanes_go_on_with_global_batches_of_the_same_size(tmp_path, ranks):
    url = write_folder(tmp_path, [[100, 60], [7], [1] * 5])
    begun = [feed_of(url, batch=6, rank=rank, world_size=2) for rank in range(2)]  # 8 lanes
    seen = [row for feed in begun for row in ids_of(take(feed, 5))]
    for rank in range(ranks):
        feed = feed_of(url, batch=12 // ranks, rank=rank, world_size=ranks)
        feed.load_state_dict(begun[0].state_dict())
        assert len(feed) == 10  # 172 rows in steps of 12, of which 5 are done
        seen += ids_of(list(feed))
    assert sorted(seen) == list(range(172))


def test_a_feed_with_more_memory_goes_on_with_the_very_batches_that_would_have_come(tmp_path):
    url = write_folder(tmp_path, [[10] * 256])
    poor = feed_of(url, batch=64, memory_bytes=4_000)
    take(poor, 10)
    rich = feed_of(url, batch=64)
    assert any(
        not same(*batches)
        for batches in zip(feed_of(url, batch=64), feed_of(url, batch=64, memory_bytes=4_000), strict=True)
    )
    rich.load_state_dict(poor.state_dict())
    assert all(same(*batches) for batches in zip(rich, poor, strict=True))


def test_a_state_of_another_seed_layout_or_shuffle_is_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    url, other = write_folder(tmp_path / "a", [[50, 50]]), write_folder(tmp_path / "b", [[50, 49], [1]])
    state = feed_of(url, seed=3).state_dict()
    feed_of(url, seed=3, batch=5, rank=1, world_size=2).load_state_dict(state)
    for refusing, named in (
        (feed_of(url, seed=4), "seed"),
        (feed_of(other, seed=3), "rows"),
        (feed_of(url, seed=3, shuffle=False), "shuffle"),
    ):
        with pytest.raises(UserError, match=f"cannot be resumed here: its {named} is"):
            refusing.load_state_dict(state)
    with pytest.raises(UserError, match="cannot be resumed here: its version is"):
        feed_of(url, seed=3).load_state_dict({**state, "version": 99})


def test_an_epoch_has_an_order_of_its_own_and_comes_again_when_set(tmp_path):
    feed = feed_of(write_folder(tmp_path, [[40, 40], [40]]))
    first, second = ids_of(list(feed)), ids_of(list(feed))
    assert sorted(first) == sorted(second) == list(range(120))
    assert first != second
    feed.set_epoch(0)
    assert ids_of(list(feed)) == first
    assert feed.epoch == 1


def test_unshuffled_one_rank_gets_the_rows_in_the_order_of_the_files(tmp_path):
    feed = feed_of(write_folder(tmp_path, [[3, 0, 40], [], [1, 1]]), batch=4, shuffle=False, workers=3)
    assert ids_of(list(feed)) == list(range(45))


def test_drop_last_leaves_out_the_remainder_on_every_rank(tmp_path):
    url = write_folder(tmp_path, [[50], [7]])
    ranks = [list(feed_of(url, batch=8, rank=rank, world_size=2, drop_last=True)) for rank in range(2)]
    assert [[batch.num_rows for batch in batches] for batches in ranks] == [[8, 8, 8]] * 2
    assert len(set(ids_of(ranks[0] + ranks[1]))) == 48
    with pytest.raises(UserError, match="57 rows cannot fill one step of 2 ranks x 30 rows"):
        feed_of(url, batch=30, world_size=2, drop_last=True)


@pytest.mark.parametrize("workers", [0, 3])
def test_columns_of_a_batch_belong_to_the_same_rows_and_keep_their_types(tmp_path, workers):
    feed = feed_of(write_folder(tmp_path, [[30, 30], [17]]), columns=tuple(COLUMNS), workers=workers, batch=10)
    types = {"row_id": torch.int64, "small": torch.int8, "half": torch.int16, "x": torch.float32, "yes": torch.bool}
    batches = list(feed)
    for batch in batches:
        ids = batch["row_id"].tolist()
        assert {name: batch[name].dtype for name in types} == types
        assert (batch["pair"].dtype, batch["pair"].shape) == (torch.int32, (len(ids), 2))
        assert batch.ragged("some").values.dtype == torch.int32
        found = {name: batch[name].tolist() for name in (*types, "pair")}
        ends = batch.ragged("some").offsets.tolist()
        values = batch.ragged("some").values.tolist()
        found["some"] = [values[start:stop] for start, stop in pairwise(ends)]
        found["text"] = batch.ragged("text").texts()
        for name, of in COLUMNS.items():
            assert found[name] == [of(i) for i in ids], name
    assert sorted(ids_of(batches)) == list(range(77))


def test_a_rank_without_rows_in_the_last_step_gets_an_empty_batch_of_every_column(tmp_path):
    url = write_folder(tmp_path, [[5]])
    ranks = [list(feed_of(url, columns=tuple(COLUMNS), batch=2, rank=rank, world_size=2)) for rank in range(2)]
    assert [batch.global_rows for batch in ranks[0]] == [4, 1]
    (empty,) = [batches[1] for batches in ranks if batches[1].num_rows == 0]
    for name in ("row_id", "small", "half", "x", "yes"):
        assert empty[name].shape == (0,)
    assert empty["pair"].shape == (0, 2)
    assert empty.ragged("some").offsets.tolist() == empty.ragged("text").offsets.tolist() == [0]


def test_two_ranks_together_hold_the_batches_of_one_rank(tmp_path):
    url = write_folder(tmp_path, [[33, 20], [48]])
    alone = list(feed_of(url, batch=16))
    halves = [list(feed_of(url, batch=8, rank=rank, world_size=2)) for rank in range(2)]
    for step, batch in enumerate(alone):
        together = torch.zeros(batch.num_rows, dtype=torch.int64)
        for half in halves:
            together[half[step].positions] = half[step]["row_id"]
        assert together.tolist() == batch["row_id"].tolist()


def test_a_snapshots_part_comes_as_its_manifest_lists_it_with_histories_as_matrices(tmp_path):
    snapshot = open_snapshot(make_snapshot(tmp_path / "s", [[30, 12], [], [17]]))
    table = snapshot.read("train", ["row_id", "history"])
    history_of = dict(zip(table["row_id"].to_pylist(), table["history"].to_pylist(), strict=True))
    rows = open_part(snapshot, "train", columns=("row_id", "history"))
    batches = list(Feed(rows, batch_size_per_rank=16))
    assert sorted(ids_of(batches)) == list(range(1, 60))
    for batch in batches:
        assert batch["history"].tolist() == [history_of[row] for row in batch["row_id"].tolist()]


def test_a_snapshots_part_without_rows_is_refused_with_the_reason(tmp_path):
    snapshot = open_snapshot(make_snapshot(tmp_path / "s", [[], []]))
    with pytest.raises(UserError, match="there are no rows for an epoch"):
        Feed(open_part(snapshot, "train", columns=("row_id",)), batch_size_per_rank=4)


# --- threads and memory ---


@pytest.mark.parametrize("workers", [1, 3])
def test_breaking_out_of_a_loop_leaves_no_thread_and_the_feed_goes_on_after_the_last_batch_taken(tmp_path, workers):
    feed = feed_of(write_folder(tmp_path, [[20] * 10]), batch=9, workers=workers, memory_bytes=3000)
    iterator = iter(feed)
    begun = [next(iterator)]
    assert threads_of_feeds()  # else the rest of this test proves nothing
    del iterator
    assert threads_of_feeds() == []
    for count in (1, 3, 2):
        begun += take(feed, count)
        assert threads_of_feeds() == []
    rows = ids_of(begun + list(feed))
    assert len(rows) == 200
    assert sorted(rows) == list(range(200))
    assert threads_of_feeds() == []


def test_a_program_that_ends_in_mid_epoch_ends_at_once_and_quietly(tmp_path):
    url = write_folder(tmp_path, [[20] * 10])
    program = (
        "from training.feed import Feed; from training.reader import open_folder\n"
        f"rows = open_folder({url!r}, columns=['row_id'])\n"
        "kept = iter(Feed(rows, batch_size_per_rank=9, workers=3, memory_bytes=3000))\n"
        "print(len(next(kept)['row_id']))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "9", "")


class Altered(ParquetRows):
    """ParquetRows of which one thing is altered: `change` gets the number of the row group and what was read."""

    change: Callable[[int, RowGroupColumns], RowGroupColumns]

    @classmethod
    def of(cls, rows: ParquetRows, change: Callable[[int, RowGroupColumns], RowGroupColumns]) -> Altered:
        altered = cls(**{field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)})
        object.__setattr__(altered, "change", change)
        return altered

    def read(self, number: int) -> RowGroupColumns:
        return self.change(number, super().read(number))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_in_a_reader_thread_reaches_the_caller_within_seconds_and_leaves_no_thread(tmp_path, workers):
    def fails_on_the_ninth(number: int, columns: RowGroupColumns) -> RowGroupColumns:
        if number == 8:
            raise SnapshotDamaged("the ninth row group is gone")
        return columns

    rows = Altered.of(open_folder(write_folder(tmp_path, [[20] * 10]), columns=["row_id"]), fails_on_the_ninth)
    feed = Feed(rows, batch_size_per_rank=5, workers=workers, shuffle=False, memory_bytes=1000)
    taken: list[Batch] = []
    began = time.monotonic()
    with pytest.raises(SnapshotDamaged, match="the ninth row group is gone"):
        taken.extend(feed)
    assert time.monotonic() - began < 5
    assert threads_of_feeds() == []
    assert ids_of(taken) == list(range(160))[: len(taken) * 5]
    assert feed.state_dict()["step"] == len(taken) > 0


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_while_batches_are_gathered_leaves_no_thread_either(tmp_path, monkeypatch, workers):
    def no_memory(*_: object) -> None:
        raise MemoryError("no room for a batch")

    monkeypatch.setattr("training.blocks.gather", no_memory)
    feed = feed_of(write_folder(tmp_path, [[20] * 10]), workers=workers)
    with pytest.raises(MemoryError, match="no room for a batch"):
        list(feed)
    assert threads_of_feeds() == []


def test_rows_that_do_not_come_are_missed_at_the_end_of_the_epoch(tmp_path, monkeypatch):
    from training.blocks import Block

    whole = Block.batches

    def without_the_last(block: Block) -> Iterator[dict]:
        yield from list(whole(block))[: -1 if block.num_steps > 1 else None]

    monkeypatch.setattr(Block, "batches", without_the_last)
    feed = feed_of(write_folder(tmp_path, [[50]]), batch=10)
    with pytest.raises(LedgerError, match="rank 0 got 40 rows, the plan says 50"):
        list(feed)


def test_rows_that_a_block_lacks_are_missed_at_the_end_of_the_epoch(tmp_path, monkeypatch):
    url = make_snapshot(tmp_path / "s", [[40]])

    def shortened(block: Block) -> Iterator[dict]:
        for columns in all_batches(block):
            yield {name: column[:-1] for name, column in columns.items()}

    all_batches = Block.batches
    monkeypatch.setattr(Block, "batches", shortened)
    with pytest.raises(LedgerError, match="rank 0 got 36 rows, the plan says 40"):
        list(Feed(open_part(open_snapshot(url), "train", columns=["row_id"]), batch_size_per_rank=10))


def test_rows_that_drop_last_dropped_do_not_come_back_on_other_ranks(tmp_path):
    url = make_snapshot(tmp_path / "s", [[200, 200]])
    rows = open_part(open_snapshot(url), "train", columns=["row_id"])
    over = Feed(rows, batch_size_per_rank=60, world_size=2, drop_last=True)
    taken = list(over)  # 3 steps of 120 rows; 40 are dropped
    assert len(taken) == 3
    feed = Feed(rows, batch_size_per_rank=60, world_size=2, drop_last=True)
    state = {**feed.state_dict(), "step": 3}
    alone = Feed(rows, batch_size_per_rank=10, drop_last=True)
    alone.load_state_dict(state)
    assert len(alone) == 0
    assert list(alone) == []
    assert alone.epoch == 1


def test_files_whose_lists_differ_only_in_whether_nulls_may_stand_in_them_are_one_folder(tmp_path):
    for number, nullable in enumerate((True, False)):
        kind = pa.list_(pa.field("element", pa.int32(), nullable=nullable))
        pq.write_table(pa.table({"tags": pa.array([[1], [2, 3]], kind)}), tmp_path / f"{number}.parquet")
    [batch] = Feed(open_folder(str(tmp_path)), batch_size_per_rank=4, shuffle=False)
    assert batch.ragged("tags").values.tolist() == [1, 2, 3, 1, 2, 3]


def test_a_negative_seed_is_refused(tmp_path):
    url = make_snapshot(tmp_path / "s", [[4]])
    with pytest.raises(UserError, match="seed -1 and epoch 0: both count from 0"):
        Feed(open_part(open_snapshot(url), "train"), batch_size_per_rank=2, seed=-1)


def test_row_groups_that_do_not_fit_the_memory_are_refused_with_what_to_do(tmp_path):
    url = write_folder(tmp_path, [[10], [1000]])  # 1,000 rows x 8 bytes: two of them take 16,000
    with pytest.raises(UserError, match="raise memory_bytes, read fewer columns, or write smaller groups"):
        feed_of(url, memory_bytes=16_000)
    assert len(feed_of(url, memory_bytes=20_000)) == 64  # 1,010 rows in batches of 16


def test_a_feed_estimates_no_more_memory_than_it_may_have(tmp_path):
    url = write_folder(tmp_path, [[100] * 64])
    for memory_bytes in (3_000, 10_000, 100_000, 1 << 30):
        for world_size in (1, 3, 8):
            feed = feed_of(url, memory_bytes=memory_bytes, world_size=world_size)
            assert 0 < feed.memory_estimate() <= memory_bytes


def test_a_state_of_ranks_with_more_memory_does_not_lift_the_bound_on_memory(tmp_path):
    url = write_folder(tmp_path, [[10] * 256])
    rich = feed_of(url, batch=64)  # 32 lanes
    seen = ids_of(take(rich, 10))
    poor = feed_of(url, batch=64, memory_bytes=4_000)  # 8 lanes: 2 x 80 bytes each, and 3 blocks of 64 rows
    poor.load_state_dict(rich.state_dict())
    assert poor.memory_estimate() <= 4_000
    assert sorted(seen + ids_of(list(poor))) == list(range(2560))


@pytest.mark.parametrize(("workers", "shuffle"), [(0, True), (1, True), (3, True), (3, False)])
@pytest.mark.parametrize("batch", [5, 50])
def test_what_a_feed_holds_of_rows_stays_within_its_memory_however_slow_its_consumer(
    tmp_path, monkeypatch, workers, shuffle, batch
):
    lock, held, most = threading.Lock(), 0, 0

    def count(change: int) -> None:
        nonlocal held, most
        with lock:
            held += change
            most = max(most, held)

    def counted(_: int, columns: RowGroupColumns) -> RowGroupColumns:
        size = sum(array.nbytes for array in columns.fixed.values())
        count(size)
        weakref.finalize(columns, count, -size)
        return columns

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        memory = np.empty(shape, torch.empty(0, dtype=dtype).numpy().dtype)
        count(memory.nbytes)
        weakref.finalize(memory, count, -memory.nbytes)
        return torch.from_numpy(memory)  # holds the array for as long as a view of it lives

    monkeypatch.setattr("training.feed.allocator", lambda device: allocate)
    rows = Altered.of(open_folder(write_folder(tmp_path, [[100] * 20] * 3), columns=["row_id"]), counted)
    feed = Feed(rows, batch_size_per_rank=batch, workers=workers, shuffle=shuffle, memory_bytes=10_000)
    rows_seen = []
    for got in feed:
        time.sleep(0.0001 * batch)
        rows_seen += got["row_id"].tolist()
    assert sorted(rows_seen) == list(range(6000))
    assert 800 < most <= 10_000  # bytes; a row group takes 800
    del got
    assert held == 0
