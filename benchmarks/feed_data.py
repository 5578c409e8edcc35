"""Generated rows for the benchmark of the feed: numbers, Zipf-tailed categories, a label. For speed, not quality."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_FILE = 1_000_000
ROWS_PER_ROW_GROUP = 65_536
_NUM_NUMBERS, _NUM_CATEGORIES, _LARGEST_ID = 13, 26, 10_000_000


def generate(folder: Path, num_rows: int) -> None:
    """Write `num_rows` rows below `folder` in the training layout that prepare writes, unless they are there."""
    if folder.exists():
        return
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for number, start in enumerate(range(0, num_rows, ROWS_PER_FILE)):
        _write(unfinished / f"part-{number:05d}.parquet", _rows(min(ROWS_PER_FILE, num_rows - start), seed=number))
    unfinished.rename(folder)


def repeat(source: Path, folder: Path, num_files: int) -> None:
    """A folder of `num_files` files, which are the source's over and over again (hard links)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = sorted(source.glob("*.parquet"))
    for number in range(num_files):
        os.link(files[number % len(files)], folder / f"part-{number:05d}.parquet")


def generate_sorted(folder: Path, num_rows: int) -> None:
    """Rows in the order of their label, with `row_id`, their place in the files: the hardest case for a shuffle."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    per_file = num_rows // 4
    for number in range(4):
        row_id = np.arange(number * per_file, (number + 1) * per_file, dtype=np.int64)
        label = (row_id >= num_rows * 3 // 4).astype(np.float32)  # a quarter of the rows, all at the end
        columns = {"row_id": row_id, "label": label}
        _write(folder / f"part-{number:05d}.parquet", pa.table(columns), rows_per_row_group=num_rows // 64)


def _rows(count: int, *, seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    columns = {f"n{i}": random.lognormal(size=count).astype(np.float32) for i in range(_NUM_NUMBERS)}
    for i in range(_NUM_CATEGORIES):
        drawn = random.zipf(1.2 + 0.02 * i, size=count)
        columns[f"c{i}"] = np.minimum(drawn, _LARGEST_ID).astype(np.int32)
    columns["label"] = (random.random(count) < 0.25).astype(np.float32)
    return pa.table(columns)


def _write(path: Path, table: pa.Table, rows_per_row_group: int = ROWS_PER_ROW_GROUP) -> None:
    required = pa.schema([pa.field(field.name, field.type, nullable=False) for field in table.schema])
    pq.write_table(
        table.cast(required),
        path,
        row_group_size=rows_per_row_group,
        compression="lz4",
        use_dictionary=False,
        write_page_checksum=True,
        store_schema=False,
    )
