"""A loader as a process that makes one shuffled pass for every line it gets, and says what the pass took.

    python -m benchmarks.feed_peers.worker LOADER --data DIR --formats DIR --batch-size B --workers W [--rows N]

After a warm-up pass, whose values it checks, it prints {"ready": true, "rows": n}. Then, for every line on standard
input, it makes a pass in a new shuffled epoch and prints {"rows": n, "seconds": s, "cpu_s": s, "rss_mb": m}; cpu_s and
rss_mb are of the process and those it started. It ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import psutil
import torch

from benchmarks.feed_peers.loaders import LOADERS, Passes
from benchmarks.feed_peers.prepare import parser, prepare
from benchmarks.feed_peers.rows import Batch, Rows, Sums


class Pass:
    """One shuffled pass over all rows: `rows` that came, and the `first` batch, by which two orders are told apart."""

    def __init__(self, passes: Passes, epoch: int, rows: Rows, sums: Sums | None = None):
        """Go through it. Of every tensor of every batch the shape is checked and a row is read."""
        self.rows = 0
        for batch in passes(epoch):
            if not self.rows:
                self.first = {name: values.clone() for name, values in batch.items()}
            self.rows += _rows_of(batch, len(rows.schema))
            if sums:
                sums.add(batch)
        if self.rows != rows.count:
            raise ValueError(f"{self.rows} rows came in epoch {epoch}, not {rows.count}")

    def must_differ_from(self, other: Pass) -> None:
        if all(torch.equal(values, other.first[name]) for name, values in self.first.items()):
            raise ValueError("two epochs began with the same batch: the order is not a new one")


def _rows_of(batch: Batch, columns: int) -> int:
    tensors = list(batch.values())
    width = 0
    for tensor in tensors:
        if len(tensor) != len(tensors[0]):
            raise ValueError(f"a batch of {len(tensors[0])} rows holds a tensor of {len(tensor)}")
        width += tensor.shape[1] if tensor.dim() == 2 else 1
        tensor[-1].sum().item()
    if width != columns:
        raise ValueError(f"a batch of {width} columns came, not of {columns}")
    return len(tensors[0])


def warm_up(passes: Passes, rows: Rows) -> Pass:
    """The first pass, whose values are checked."""
    came = Sums(rows)
    made = Pass(passes, 0, rows, came)
    expected = rows.sums().by_column
    different = [name for name, value in came.by_column.items() if value != expected[name]]
    if different:
        raise ValueError(f"other values came than {rows.data} holds, in {', '.join(different)}")
    return made


def usage() -> tuple[float, float]:
    """CPU seconds so far and megabytes now, of this process and of all that it started.

    Memory that processes share is counted in each.
    """
    this = psutil.Process()
    cpu_s, rss = 0.0, 0
    for process in (this, *this.children(recursive=True)):
        try:
            with process.oneshot():
                times = process.cpu_times()
                cpu_s += times.user + times.system + times.children_user + times.children_system
                rss += process.memory_info().rss
        except psutil.NoSuchProcess:  # it ended while we were counting
            continue
    return cpu_s, rss / 1e6


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--batch-size", type=int, required=True)
    arguments.add_argument("--workers", type=int, required=True, help="processes or threads of the loader")
    given = arguments.parse_args()

    # What a loader prints is not for the reader of our lines.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    loader, rows = LOADERS[given.loader], Rows(given.data.resolve(), given.rows)
    folder: Path = prepare(loader, rows, given.formats.resolve())
    passes = loader.code.opened(folder, rows, batch_size=given.batch_size, workers=given.workers)
    previous = warm_up(passes, rows)
    print(json.dumps({"ready": True, "rows": previous.rows}), file=answers)
    for epoch, _ in enumerate(sys.stdin, start=1):
        cpu_before, _ = usage()
        began = time.perf_counter()
        made = Pass(passes, epoch, rows)
        seconds = time.perf_counter() - began
        cpu_after, rss_mb = usage()
        made.must_differ_from(previous)
        previous = made
        result = {"rows": made.rows, "seconds": seconds, "cpu_s": cpu_after - cpu_before, "rss_mb": rss_mb}
        print(json.dumps(result), file=answers)


if __name__ == "__main__":
    main()
