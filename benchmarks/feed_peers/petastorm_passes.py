"""What petastorm's two loaders share: its reader of plain Parquet, its thread pool, its shuffling queue."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from benchmarks.feed_peers.loaders import Passes
from benchmarks.feed_peers.rows import Batch
from training import petastorm_on_arrow


def passes(formats: Path, loader_name: str, *, batch_size: int, workers: int, queue_rows: int) -> Passes:
    """Passes of the loader of this name in petastorm.pytorch."""
    petastorm_on_arrow.install()
    from petastorm import make_batch_reader, pytorch

    logging.getLogger("petastorm").setLevel(logging.ERROR)
    loader_class = getattr(pytorch, loader_name)

    def one_pass(epoch: int) -> Iterator[Batch]:
        with (
            make_batch_reader(
                formats.as_uri(),
                reader_pool_type="thread",
                workers_count=max(workers, 1),
                shuffle_row_groups=True,
                seed=epoch,
                num_epochs=1,
            ) as reader,
            loader_class(reader, batch_size, shuffling_queue_capacity=queue_rows) as loader,
        ):
            yield from loader

    return one_pass
