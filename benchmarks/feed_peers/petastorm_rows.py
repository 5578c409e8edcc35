"""petastorm's DataLoader on make_batch_reader: rows taken apart and put together again in Python.

One thread of Python does nearly all, so neither the pool nor the queue decides.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.feed_peers.loaders import Passes
from benchmarks.feed_peers.parquet_subset import convert as convert
from benchmarks.feed_peers.petastorm_passes import passes
from benchmarks.feed_peers.rows import Rows

SHUFFLING_QUEUE_ROWS = 16_384


def opened(formats: Path, rows: Rows, *, batch_size: int, workers: int) -> Passes:
    return passes(formats, "DataLoader", batch_size=batch_size, workers=workers, queue_rows=SHUFFLING_QUEUE_ROWS)
