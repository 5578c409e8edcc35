"""petastorm's BatchedDataLoader on make_batch_reader: the fastest way from Parquet to torch that petastorm has.

Tried with torch's threads waiting asleep (see __init__), 400,000 rows, batches of 16,384, 2 busy cores: thread pool of
2 630 k rows/s (1.6 µs of CPU a row), dummy pool 600 k (1.5), 1 thread 620 k, queue of 65,536 instead of 131,072 rows
590 to 620 k, of 262,144 550 k, one torch thread 590 k; on 4 M rows process pool 160 k (7.0), 4 threads 600 k,
convert_early_to_numpy no difference. In quiet moments the thread pool and the dummy pool reached 0.8 M.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.feed_peers.loaders import Passes
from benchmarks.feed_peers.parquet_subset import convert as convert
from benchmarks.feed_peers.petastorm_passes import passes
from benchmarks.feed_peers.rows import Rows

SHUFFLING_QUEUE_ROWS = 131_072


def opened(formats: Path, rows: Rows, *, batch_size: int, workers: int) -> Passes:
    return passes(formats, "BatchedDataLoader", batch_size=batch_size, workers=workers, queue_rows=SHUFFLING_QUEUE_ROWS)
