"""petastorm's BatchedDataLoader on make_batch_reader: the fastest way from Parquet to torch that petastorm has.

Tried with torch's threads waiting asleep (see __init__), 400,000 rows, batches of 16,384, 2 busy cores: thread pool of
2 630 k rows/s (1.6 µs of CPU a row), dummy pool 600 k (1.5), 1 thread 620 k, queue of 65,536 instead of 131,072 rows
590 to 620 k, of 262,144 550 k, one torch thread 590 k; on 4 M rows process pool 160 k (7.0), 4 threads 600 k,
convert_early_to_numpy no difference. In quiet moments the thread pool and the dummy pool reached 0.8 M.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from benchmarks.feed_peers.loaders import Passes
from benchmarks.feed_peers.parquet_subset import convert as convert
from benchmarks.feed_peers.rows import Batch, Rows
from training import petastorm_on_arrow

SHUFFLING_QUEUE_ROWS = 131_072
POOL = "thread"


def opened(formats: Path, rows: Rows, *, batch_size: int, workers: int) -> Passes:
    petastorm_on_arrow.install()
    from petastorm import make_batch_reader
    from petastorm.pytorch import BatchedDataLoader

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
            BatchedDataLoader(reader, batch_size, shuffling_queue_capacity=SHUFFLING_QUEUE_ROWS) as loader,
        ):
            yield from loader

    return one_pass
