"""petastorm's DataLoader on make_batch_reader: rows taken apart and put together again in Python.

One thread of Python does nearly all, so neither the pool nor the queue decides.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from benchmarks.feed_peers.loaders import Passes
from benchmarks.feed_peers.parquet_subset import convert as convert
from benchmarks.feed_peers.rows import Batch, Rows
from training import petastorm_on_arrow

SHUFFLING_QUEUE_ROWS = 16_384
POOL = "thread"


def opened(formats: Path, rows: Rows, *, batch_size: int, workers: int) -> Passes:
    petastorm_on_arrow.install()
    from petastorm import make_batch_reader
    from petastorm.pytorch import DataLoader

    logging.getLogger("petastorm").setLevel(logging.ERROR)

    def one_pass(epoch: int) -> Iterator[Batch]:
        with (
            make_batch_reader(
                formats.as_uri(),
                reader_pool_type=POOL,
                workers_count=max(workers, 1),
                shuffle_row_groups=True,
                seed=epoch,
                num_epochs=1,
            ) as reader,
            DataLoader(reader, batch_size, shuffling_queue_capacity=SHUFFLING_QUEUE_ROWS) as loader,
        ):
            yield from loader

    return one_pass
