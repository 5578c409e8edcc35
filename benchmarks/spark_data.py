"""Generated interaction logs for the benchmark of the Spark jobs: columns, cardinalities and nulls like Criteo's.

The same rows for the same number of rows, on any machine: a file is drawn from its own number. Memory is a file's.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_FILE = 1_000_000
_ROWS_PER_ROW_GROUP = 131_072
_FIRST_MS, _DAYS = 1_404_172_800_000, 7  # 2014-07-01
_JITTER_MS = 60_000  # a log is in the order of time but for a minute

# Values to draw from, the r-th of which comes about 1/r as often as the first. In 45.8 M rows that leaves as many
# different ones as Criteo's Kaggle log has in as many rows: 1460, 583, 10.1 M, 2.2 M, 305, ... of which, in all,
# about a million come ten times, as in that log.
_SUPPORT = (
    *(1_460, 583, 106_492_103, 2_466_397, 305, 24, 12_517, 633, 3, 93_145, 5_683, 44_321_405, 3_194),
    *(27, 14_992, 11_891_331, 10, 5_652, 2_173, 4, 24_259_963, 18, 15, 286_181, 105, 142_572),
)
_NULLS_OF_VALUES = {3: 0.034, 4: 0.034, 6: 0.12, 12: 0.034, 16: 0.034, 19: 0.44, 20: 0.44, 21: 0.034, 22: 0.76} | {
    24: 0.034,
    25: 0.44,
    26: 0.44,
}
_NULLS_OF_NUMBERS = (0.45, 0, 0.21, 0.22, 0.03, 0.22, 0.04, 0.0005, 0.04, 0.45, 0.04, 0.77, 0.22)
_SPREAD = (1.2, 1.9, 1.4, 1.0, 2.2, 1.9, 1.5, 0.9, 1.4, 0.6, 1.0, 0.7, 1.0)
_MEDIAN = (1.5, 4, 6, 5, 2_500, 40, 5, 8, 40, 0.8, 1.5, 0.7, 5)
_HOT_COLUMN, _HOT_SHARE = 3, 0.4


def generate(folder: Path, num_rows: int, *, hot: bool = False) -> None:
    """Write `num_rows` rows below `folder`, unless they are there.

    `hot`: one value of c3, which is otherwise the column with the longest tail, holds 40 % of the rows.
    """
    if folder.exists():
        return
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for number, start in enumerate(range(0, num_rows, ROWS_PER_FILE)):
        rows = _rows(start, min(ROWS_PER_FILE, num_rows - start), num_rows, hot=hot)
        pq.write_table(
            rows, unfinished / f"log-{number:05d}.parquet", row_group_size=_ROWS_PER_ROW_GROUP, compression="snappy"
        )
    unfinished.rename(folder)


def _rows(start: int, count: int, total: int, *, hot: bool) -> pa.Table:
    """Rows `start` to `start + count` of a log of `total`."""
    random = np.random.default_rng([total, start])
    row_id = np.arange(start, start + count, dtype=np.int64)
    span_ms = _DAYS * 86_400_000
    columns = {
        "row_id": pa.array(row_id),
        "time_ms": pa.array(_FIRST_MS + row_id * span_ms // total + random.integers(0, _JITTER_MS, count)),
        "label": pa.array((random.random(count, dtype=np.float32) < 0.256).astype(np.int32)),
    }
    for i in range(13):
        drawn = np.exp(random.standard_normal(count, dtype=np.float32) * _SPREAD[i]) * _MEDIAN[i]
        columns[f"i{i + 1}"] = _with_nulls(drawn.astype(np.int32), _NULLS_OF_NUMBERS[i], random)
    for i, support in enumerate(_SUPPORT, 1):
        rank = np.exp(random.random(count) * np.log(support + 1)).astype(np.uint32)
        if hot and i == _HOT_COLUMN:
            rank[random.random(count, dtype=np.float32) < _HOT_SHARE] = 1
        columns[f"c{i}"] = _with_nulls(_hashed(rank, i), _NULLS_OF_VALUES.get(i, 0), random)
    return pa.table(columns)


def _hashed(rank: np.ndarray, column: int) -> np.ndarray:
    """Ranks as ids that look drawn from all of int32; different ranks stay different."""
    mixed = rank * np.uint32(2_654_435_761) + np.uint32(column * 40_503)  # odd, so one to one modulo 2^32
    mixed ^= mixed >> np.uint32(16)
    return mixed.view(np.int32)


def _with_nulls(values: np.ndarray, share: float, random: np.random.Generator) -> pa.Array:
    return pa.array(values, mask=random.random(len(values), dtype=np.float32) < share if share else None)


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--rows", type=int, required=True)
    command.add_argument("--hot", action="store_true", help="one value of c3 holds 40 % of the rows")
    command.add_argument("--to", type=Path, required=True)
    given = command.parse_args()
    generate(given.to, given.rows, hot=given.hot)


if __name__ == "__main__":
    main()
