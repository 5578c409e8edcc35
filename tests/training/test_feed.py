"""The feed over petastorm: each row once, in the plan's order, on any number of ranks; damage is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.errors import SnapshotDamaged
from schemas.snapshot import open_snapshot
from tests.snapshots import make_snapshot
from training.batch import Batch
from training.feed import Feed, part_feed

COLUMNS = ("row_id", "item_idx", "history")


def feed(url: str, rank: int = 0, world_size: int = 1, batch: int = 16, workers: int = 1, **settings: object) -> Feed:
    return part_feed(
        open_snapshot(url),
        "train",
        columns=COLUMNS,
        rank=rank,
        world_size=world_size,
        batch_size_per_rank=batch,
        workers=workers,
        **settings,
    )


def row_ids(batches: list[Batch]) -> list[int]:
    return [int(row) for batch in batches for row in batch["row_id"]]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(
    "files",
    [
        [[100]],
        [[1, 1, 1], [50], [7, 30, 2]],
        [[1] * 20, [64, 64]],
    ],
    ids=["one row group", "uneven", "tiny and large"],
)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_row_comes_exactly_once_over_the_ranks(tmp_path, files, world_size, workers):
    url = make_snapshot(tmp_path / "s", files)
    num_rows = sum(map(sum, files))
    ranks = [list(feed(url, rank, world_size, workers=workers).epoch(3)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(row for batches in ranks for row in row_ids(batches)) == list(range(1, num_rows + 1))


def test_columns_of_a_batch_belong_to_the_same_rows(tmp_path):
    url = make_snapshot(tmp_path / "s", [[30, 30], [17]])
    table = open_snapshot(url).read("train")
    item_of = dict(zip(table["row_id"].to_pylist(), table["item_idx"].to_pylist(), strict=True))
    history_of = dict(zip(table["row_id"].to_pylist(), table["history"].to_pylist(), strict=True))
    for batch in feed(url).epoch():
        for row, item, history in zip(batch["row_id"], batch["item_idx"], batch["history"], strict=True):
            assert item_of[int(row)] == int(item)
            assert history_of[int(row)] == history.tolist()


def test_an_epoch_is_the_same_each_time_and_another_epoch_has_another_order(tmp_path):
    url = make_snapshot(tmp_path / "s", [[40, 40], [40]])
    first, again, other = (row_ids(list(feed(url, workers=2).epoch(epoch))) for epoch in (0, 0, 1))
    assert first == again
    assert sorted(first) == sorted(other)
    assert first != other


def test_two_ranks_together_hold_the_batches_of_one_rank(tmp_path):
    url = make_snapshot(tmp_path / "s", [[33, 20], [48]])
    alone = list(feed(url, batch=16).epoch())
    halves = [list(feed(url, rank, 2, batch=8).epoch()) for rank in range(2)]
    for step, batch in enumerate(alone):
        together = torch.zeros(batch.num_rows, dtype=torch.int64)
        for half in halves:
            together[half[step].positions] = half[step]["row_id"]
        assert together.tolist() == batch["row_id"].tolist()


def test_the_order_of_an_epoch_has_no_tie_to_the_order_of_the_file(tmp_path):
    url = make_snapshot(tmp_path / "s", [[50] * 20])
    # One epoch of 20 row groups in 8 lanes strays by about 0.2; without a tie the mean of 30 epochs is near 0.
    ties = [np.corrcoef(np.arange(1000), row_ids(list(feed(url, workers=0).epoch(e))))[0, 1] for e in range(30)]
    assert abs(np.mean(ties)) < 0.12


def test_a_truncated_file_is_named(tmp_path):
    url = make_snapshot(tmp_path / "s", [[50], [50]])
    path = Path(url) / "train" / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(Exception, match=r"part-00001\.parquet|Parquet magic bytes"):
        list(feed(url).epoch())


def test_a_file_with_fewer_rows_than_the_manifest_says_is_refused(tmp_path):
    url = make_snapshot(tmp_path / "s", [[50], [50]])
    other = make_snapshot(tmp_path / "other", [[50], [49]])
    shutil.copy(Path(other) / "train" / "part-00001.parquet", Path(url) / "train" / "part-00001.parquet")
    with pytest.raises(SnapshotDamaged, match="row group 1 holds 49 rows, the manifest says 50"):
        list(feed(url).epoch())
