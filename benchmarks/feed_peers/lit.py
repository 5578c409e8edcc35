"""litdata: rows side by side in chunks of numbers, as its TokensLoader reads them without decoding each.

Tried with 2 workers, 400,000 rows, batches of 16,384, 2 busy cores: numpy blocks with TokensLoader 139 k rows/s
(7.1 µs of CPU a row), the same as torch tensors 99 k (10.7), rows as bytes 62 k (16.6), a tensor a row 26 k (64),
an array for each dtype 20 k (57); 4 workers 178 k (7.0), the same CPU. Chunks of 8 MB, since whole chunks are what the
workers share out: at the default of 64 MB two workers cannot be busy on 400,000 rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.feed_peers.loaders import Passes
from benchmarks.feed_peers.rows import Batch, Rows, joined, split

CHUNK_BYTES = "8MB"
NUMBER = np.dtype(np.int32)  # the bytes of a row are stored as so many of these, whatever they are


def _numbers_of_row_group(row_group: int, rows: Rows) -> Iterator[np.ndarray]:
    records = next(itertools.islice(rows.records(), row_group, None))
    # A chunk ends between two of these, so they are parts of the row group.
    for part in range(0, len(records), 8192):
        yield records[part : part + 8192].view(NUMBER).reshape(-1)


def convert(rows: Rows, out: Path) -> None:
    from litdata import TokensLoader, optimize  # type: ignore[import-not-found]

    row_groups = sum(1 for _ in rows.tables())
    optimize(
        partial(_numbers_of_row_group, rows=rows),
        list(range(row_groups)),
        str(out),
        chunk_bytes=CHUNK_BYTES,
        num_workers=1,
        item_loader=TokensLoader(),
        keep_data_ordered=True,
        start_method="fork",
        verbose=False,
    )


def opened(formats: Path, rows: Rows, *, batch_size: int, workers: int) -> Passes:
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    block = TokensLoader(block_size=rows.record.itemsize // NUMBER.itemsize)
    dataset = StreamingDataset(str(formats), item_loader=block, shuffle=True, drop_last=False)
    loader = StreamingDataLoader(
        dataset, batch_size=batch_size, num_workers=workers, collate_fn=joined, persistent_workers=workers > 0
    )

    def one_pass(epoch: int) -> Iterator[Batch]:  # the dataset counts its epochs itself
        return (split(batch, rows.record) for batch in loader)

    return one_pass
