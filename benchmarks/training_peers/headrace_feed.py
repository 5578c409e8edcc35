"""Headrace's feed under somebody else's training loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.training_peers.loader import Batch
from benchmarks.training_peers.snapshot import LABEL, Snapshot
from schemas.snapshot import open_snapshot
from training.feed import Feed
from training.reader import open_part


def batches(folder: Path, snapshot: Snapshot, batch_size: int, *, rank: int, ranks: int) -> Iterator[Batch]:
    """Epoch after epoch without end; an epoch's short last batch is left out."""
    rows = open_part(open_snapshot(str(folder)), "train", columns=(*snapshot.numbers, *snapshot.values, LABEL))
    feed = Feed(rows, batch_size_per_rank=batch_size, rank=rank, world_size=ranks)
    while True:
        for batch in feed:
            if batch.global_rows < ranks * batch_size:  # steps are counted as whole batches
                continue
            numbers = torch.stack([batch[name] for name in snapshot.numbers], dim=1)
            index = torch.stack([batch[name] for name in snapshot.values], dim=1)
            yield numbers, index, batch[LABEL]
