"""The feed as PyTorch's IterableDataset: in the loader's own process and in worker processes, each row once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from tests.object_store import ObjectStore
from training.batch import Batch
from training.feed import Feed, FeedDataset
from training.reader import open_folder

NUM_ROWS = 200
WORKERS = pytest.mark.parametrize("num_workers", [0, 2])


def write_rows(folder: Path, num_rows: int = NUM_ROWS) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    ids = range(num_rows)
    table = pa.table({"row_id": pa.array(ids), "text": [f"né {i}" for i in ids], "list": [[i] * (i % 3) for i in ids]})
    pq.write_table(table.slice(0, 90), folder / "part-0.parquet", row_group_size=20)
    pq.write_table(table.slice(90), folder / "part-1.parquet", row_group_size=13)
    return str(folder)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_rows(tmp_path_factory.mktemp("rows"))


def feed(url: str, **settings: Any) -> Feed:
    return Feed(open_folder(url), **{"batch_size_per_rank": 8, "seed": 3, **settings})


def loader(over: Feed, num_workers: int, **options: Any) -> DataLoader:
    return DataLoader(FeedDataset(over, num_workers=num_workers), batch_size=None, num_workers=num_workers, **options)


def row_ids(batches: Sequence[Batch]) -> list[int]:
    return [row_id for batch in batches for row_id in batch["row_id"].tolist()]


@WORKERS
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_row_comes_once_over_ranks_and_workers(url, num_workers, world_size):
    ranks = [list(loader(feed(url, rank=rank, world_size=world_size), num_workers)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1  # or a rank would wait for another one for ever
    assert sorted(row for batches in ranks for row in row_ids(batches)) == list(range(NUM_ROWS))


@WORKERS
def test_batches_arrive_as_they_were_with_columns_that_belong_to_the_same_rows(url, num_workers):
    batches = list(loader(feed(url), num_workers))
    assert {type(batch) for batch in batches} == {Batch}
    assert max(batch.num_rows for batch in batches) == 8
    for batch in batches:
        ids = batch["row_id"].tolist()
        assert batch.ragged("text").texts() == [f"né {i}" for i in ids]
        assert batch.ragged("list").values.tolist() == [i for i in ids for _ in range(i % 3)]
    assert row_ids(batches) != sorted(row_ids(batches))


def test_without_workers_it_is_the_feed_itself(url):
    through = list(loader(feed(url), 0))
    direct = list(feed(url))
    assert [batch["row_id"].tolist() for batch in through] == [batch["row_id"].tolist() for batch in direct]
    assert [(batch.step, batch.global_rows) for batch in through] == [(b.step, b.global_rows) for b in direct]


@WORKERS
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [10, 16])  # 200 rows are 20 batches, or 12 and a half
def test_the_loader_knows_how_many_batches_come(url, num_workers, drop_last, batch_size):
    loading = loader(feed(url, batch_size_per_rank=batch_size, drop_last=drop_last), num_workers)
    announced = len(loading)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of torch, that more came than was announced
        assert len(list(loading)) == announced


@WORKERS
def test_with_drop_last_only_full_batches_come(url, num_workers):
    batches = list(loader(feed(url, batch_size_per_rank=15, drop_last=True), num_workers))
    assert [batch.num_rows for batch in batches] == [15] * {0: 13, 2: 12}[num_workers]  # 2 workers: 6 steps of 30 rows
    assert len(set(row_ids(batches))) == 15 * len(batches)


@WORKERS
def test_epochs_are_told_apart_by_set_epoch(url, num_workers):
    over = feed(url)
    epochs = []
    for epoch in (0, 1, 0):
        over.set_epoch(epoch)
        epochs.append(row_ids(list(loader(over, num_workers))))
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[1]) == list(range(NUM_ROWS))


@WORKERS
@pytest.mark.parametrize("world_size", [1, 2])
def test_an_epoch_that_was_stopped_goes_on_with_the_rows_left(url, num_workers, world_size):
    first = feed(url, world_size=world_size)
    begun = iter(first)
    for _ in range(4):
        next(begun)
    before = []
    for rank in range(world_size):
        done = iter(feed(url, rank=rank, world_size=world_size))
        before += row_ids([next(done) for _ in range(4)])
    after = []
    for rank in range(world_size):
        second = feed(url, rank=rank, world_size=world_size)
        second.load_state_dict(first.state_dict())
        after += row_ids(list(loader(second, num_workers)))
    assert len(before) == 4 * 8 * world_size
    assert sorted(before + after) == list(range(NUM_ROWS))


def test_state_in_the_loaders_own_process_is_after_the_last_batch_that_was_taken(url):
    over = feed(url)
    loading = iter(loader(over, 0))
    before = row_ids([next(loading) for _ in range(7)])
    assert over.state_dict()["step"] == 7
    later = feed(url)
    later.load_state_dict(over.state_dict())
    assert len(FeedDataset(later)) == 25 - 7
    after = row_ids(list(loader(later, 0)))
    assert sorted(before + after) == list(range(NUM_ROWS))
    assert before + after == row_ids(list(feed(url)))


def test_without_workers_epoch_follows_epoch(url):
    over = feed(url)
    loading = loader(over, 0)
    first, second = row_ids(list(loading)), row_ids(list(loading))
    assert over.epoch == 2
    assert first != second
    assert sorted(first) == sorted(second) == list(range(NUM_ROWS))


@WORKERS
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_pin_memory_does_no_harm_without_a_gpu(url, num_workers):
    batches = list(loader(feed(url), num_workers, pin_memory=True))
    assert {type(batch) for batch in batches} == {Batch}
    assert sorted(row_ids(batches)) == list(range(NUM_ROWS))


def test_a_loader_that_is_left_early_leaves_no_worker(url):
    loading = loader(feed(url), 2)
    batches = iter(loading)
    next(batches)
    workers = batches._workers
    assert all(worker.is_alive() for worker in workers)
    del batches
    for worker in workers:
        worker.join(timeout=10)
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.slow
def test_workers_that_are_started_afresh_get_the_rows_too(url):
    # As on a Mac, where processes are not forked: what a worker is to do goes to it as a pickle.
    batches = list(loader(feed(url), 2, multiprocessing_context="spawn"))
    assert sorted(row_ids(batches)) == list(range(NUM_ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("used_before", [False, True])
def test_workers_that_are_forked_read_an_object_store(tmp_path, s3_environment: ObjectStore, used_before):
    # The store's client of the process that is forked does not live on in its children.
    local = write_rows(tmp_path)
    bucket = s3_environment.make_bucket()
    for file in tmp_path.iterdir():
        s3_environment.filesystem().pipe_file(f"{bucket}/rows/{file.name}", file.read_bytes())
    over = feed(f"s3://{bucket}/rows")
    if used_before:
        assert sorted(row_ids(list(over))) == list(range(NUM_ROWS))
        over.set_epoch(0)
    for _ in range(2):
        loading = loader(over, 2, multiprocessing_context="fork", timeout=60)
        expected = loader(feed(local), 2, multiprocessing_context="fork", timeout=60)
        assert [batch["row_id"].tolist() for batch in loading] == [batch["row_id"].tolist() for batch in expected]
