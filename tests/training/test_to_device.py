"""Batches on a GPU are those on the CPU; runs where there is one."""

from __future__ import annotations

import pytest
import torch

from schemas.snapshot import open_snapshot
from tests.snapshots import make_snapshot
from training.feed import Feed
from training.reader import open_part

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@on_gpu
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_on_a_gpu_are_those_on_the_cpu_however_late_they_are_used(tmp_path, workers):
    rows = open_part(open_snapshot(make_snapshot(tmp_path / "s", [[400] * 20])), "valid")
    settings = {"batch_size_per_rank": 4, "workers": workers}
    expected = list(Feed(rows, **settings))
    kept = list(Feed(rows, **settings, device="cuda"))
    for on_cpu, there in zip(expected, kept, strict=True):
        assert there["row_id"].is_cuda
        for name in ("row_id", "item_idx", "history", "user_age"):
            assert there[name].cpu().equal(on_cpu[name])
        for name in ("seen", "negatives"):
            assert there.ragged(name).values.cpu().equal(on_cpu.ragged(name).values)
            assert there.ragged(name).offsets.cpu().equal(on_cpu.ragged(name).offsets)
        assert there.positions.cpu().equal(on_cpu.positions)


def test_on_the_cpu_a_batch_says_that_it_is_there(tmp_path):
    rows = open_part(open_snapshot(make_snapshot(tmp_path / "s", [[40]])), "train")
    [batch] = Feed(rows, batch_size_per_rank=64, device=torch.device("cpu"))
    assert {column.device.type for column in batch.columns.values()} == {"cpu"}
    assert batch.positions.device.type == "cpu"
