"""Writes the order in which one shuffled epoch of a loader gives a Parquet folder's rows, by their column `row_id`.

    python -m benchmarks.feed_peers.order LOADER --data DIR --formats DIR --batch-size B --workers W --to FILE

FILE is an .npy file of int64.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.feed_peers.loaders import LOADERS, Passes
from benchmarks.feed_peers.prepare import parser, prepare
from benchmarks.feed_peers.rows import Rows, columns_of

ROW_ID = "row_id"


def order_of(passes: Passes, epoch: int, rows: Rows) -> np.ndarray:
    """The row_ids in the order in which they came. ValueError if one is missing or comes twice."""
    order = torch.cat([columns_of(batch, rows)[ROW_ID].clone() for batch in passes(epoch)]).numpy()
    every = np.concatenate([table[ROW_ID].to_numpy() for table in rows.tables()])
    if not np.array_equal(np.sort(order), np.sort(every)):
        raise ValueError(f"{len(order)} rows came, and they are not the {rows.count} of {rows.data}")
    return order


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--batch-size", type=int, default=16_384)
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--to", type=Path, required=True)
    given = arguments.parse_args()

    loader, rows = LOADERS[given.loader], Rows(given.data.resolve(), given.rows)
    folder = prepare(loader, rows, given.formats.resolve())
    passes = loader.code.opened(folder, rows, batch_size=given.batch_size, workers=given.workers)
    np.save(given.to, order_of(passes, 1, rows))


if __name__ == "__main__":
    main()
