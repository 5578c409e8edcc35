"""Ray Data: the Parquet files read once into its object store, `iter_torch_batches` from there.

Tried on 4 M rows, batches of 16,384, 2 busy cores. From the object store, which holds all rows in memory, blocks in
random order and a local shuffle buffer of 65,536 rows 1.9 M rows/s (0.54 µs of CPU a row), of 131,072 1.7 M (0.64), of
262,144 1.5 M (0.71); an ArrowBatchCollateFn of our own or prefetching 4 batches makes no difference. Read anew in every
epoch, files shuffled, 131,072 rows 0.7 M (1.6), 65,536 or 262,144 with more prefetching and 16 blocks 0.5 M.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from benchmarks.feed_peers.loaders import Passes
from benchmarks.feed_peers.parquet_subset import convert as convert
from benchmarks.feed_peers.rows import Batch, Rows

SHUFFLE_BUFFER_ROWS = 65_536


def opened(formats: Path, rows: Rows, *, batch_size: int, workers: int) -> Passes:
    import ray  # type: ignore[import-not-found]

    ray.init(num_cpus=max(workers, 1), include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    files = sorted(str(file) for file in formats.glob("*.parquet"))
    dataset = ray.data.read_parquet(files).materialize()

    def one_pass(epoch: int) -> Iterator[Batch]:
        yield from dataset.randomize_block_order(seed=epoch).iter_torch_batches(
            batch_size=batch_size, local_shuffle_buffer_size=SHUFFLE_BUFFER_ROWS, local_shuffle_seed=epoch
        )

    return one_pass
