"""The job, the same for every tool: which columns, which split, which encoding, which layout. Needs Python alone.

Read Parquet files of `row_id`, `time_ms`, `label`, numbers i1..i13 and values c1..c26. Train are the rows before the
first moment that 80 % of the rows lie before, valid those before the moment for 90 %, test the rest. Fitted on train:
mean and standard deviation of log1p of every number, and of every c the values seen 10 times or more, by falling
count, ties by the value as text. Written, for each split, in one global random order, LZ4, no dictionary, row groups of
131,072 rows, in files of about equal size:

    row_id int64, time_ms int64, label float32
    i1..i13 float32   (log1p(x) - mean) / std, 0 for null
    c1..c26 int32     1 for null, 2 for a value not in the vocabulary, from 3 on its values; 0 is for padding

and `vocab/<column>`: value, idx, count.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NUMBERS = tuple(f"i{i}" for i in range(1, 14))
VALUES = tuple(f"c{i}" for i in range(1, 27))
KEPT = ("row_id", "time_ms", "label")
COLUMNS = (*KEPT, *NUMBERS, *VALUES)

SPLITS = ("train", "valid", "test")
SHARES_BEFORE = (0.8, 0.9)
"""Of all rows, how many lie before the first moment of valid and of test."""
MIN_COUNT = 10
NULL_IDX, UNSEEN_IDX, FIRST_IDX = 1, 2, 3
SEED = 42
ROWS_PER_ROW_GROUP = 131_072
ROWS_PER_FILE = 4 * ROWS_PER_ROW_GROUP


def rank_of_cut(share: float, num_rows: int) -> int:
    """Which row by time, from 1 on, is the last before the cut; the cut is a millisecond later."""
    return math.ceil(share * num_rows - 1e-6)


def num_files(num_rows: int) -> int:
    return max(1, round(num_rows / ROWS_PER_FILE))


class Arguments(argparse.Namespace):
    events: Path
    out: Path
    memory_mb: int
    scratch: Path


def arguments(doc: str) -> Arguments:
    """The command line of every tool. `out` must not exist; it and `scratch` are made."""
    command = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--events", type=Path, required=True, help="folder of Parquet files")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--memory-mb", type=int, default=6000, help="what the whole process may use")
    command.add_argument("--scratch", type=Path, required=True, help="folder for what is spilled")
    given = command.parse_args(namespace=Arguments())
    given.out.mkdir(parents=True)
    given.scratch.mkdir(parents=True, exist_ok=True)
    return given


class Phases:
    """Seconds by phase, written to `<out>/phases.json`: where the time goes."""

    def __init__(self, out: Path) -> None:
        self._path = out / "phases.json"
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._seconds[name] = round(self._seconds.get(name, 0.0) + time.perf_counter() - began, 3)
        self._path.write_text(json.dumps(self._seconds))
