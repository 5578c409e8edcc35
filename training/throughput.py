"""Measure how fast the feed gives the rows of a snapshot, or of any Parquet folder, on this machine."""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from schemas.manifest import MANIFEST
from schemas.programs import Parser, answering_mistakes
from schemas.snapshot import open_snapshot
from schemas.storage import absolute, filesystem, join
from training.batch import Batch, Ragged
from training.feed import MEMORY_BYTES, Feed
from training.programs import keep_freed_memory
from training.reader import open_folder, open_part
from training.row_groups import ParquetRows


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One epoch: its rows, bytes of tensors, wall and CPU seconds, and the process's memory at its end."""

    rows: int
    bytes: int
    seconds: float
    cpu_s: float
    rss_mb: float
    first_batch_s: float

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds


def measure(feed: Feed, advance: Callable[[], None] = lambda: None) -> Pass:
    """Take an epoch's batches, as a training loop would that does nothing with them."""
    process = psutil.Process()
    began, cpu_began = time.perf_counter(), time.process_time()
    rows = size = 0
    first_batch_s = 0.0
    for batch in feed:
        first_batch_s = first_batch_s or time.perf_counter() - began
        rows += batch.num_rows
        size += _bytes(batch)
        advance()
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    rss_mb = process.memory_info().rss / 1e6
    return Pass(rows=rows, bytes=size, seconds=seconds, cpu_s=cpu_s, rss_mb=rss_mb, first_batch_s=first_batch_s)


def throughput(feed: Feed, *, warm_up: int, passes: int) -> None:
    """Print a table of the passes and, as the last line, their medians as JSON."""
    measured = []
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
        transient=True,
    ) as bar:  # fmt: skip
        for number in range(-warm_up, passes):
            name = "warm-up" if number < 0 else f"pass {number + 1}"
            task = bar.add_task(name, total=len(feed))
            result = measure(feed, lambda task=task: bar.advance(task))  # type: ignore[misc]
            measured += [result] if number >= 0 else []
    table = Table(title=f"{feed.rows.name}: {feed.workers} reading thread(s)", title_justify="left")
    for name in ("pass", "rows", "M rows/s", "MB/s", "cores", "MB of memory", "first batch, s"):
        table.add_column(name, justify="right")
    for number, one in enumerate(measured, start=1):
        table.add_row(
            str(number),
            f"{one.rows:,}",
            f"{one.rows_per_s / 1e6:.2f}",
            f"{one.bytes / one.seconds / 1e6:,.0f}",
            f"{one.cpu_s / one.seconds:.2f}",
            f"{one.rss_mb:,.0f}",
            f"{one.first_batch_s:.3f}",
        )
    Console(width=120, highlight=False).print(table)
    medians = {name: statistics.median(asdict(one)[name] for one in measured) for name in asdict(measured[0])}
    medians["rows_per_s"] = statistics.median(one.rows_per_s for one in measured)
    print(json.dumps({name: round(value, 4) for name, value in medians.items()}))


def open_rows(url: str, *, part: str, columns: list[str] | None) -> ParquetRows:
    """A part of a snapshot, or a Parquet folder where there is no manifest."""
    fs, root = filesystem(url)
    if fs.exists(join(root, MANIFEST)):
        return open_part(open_snapshot(url), part, columns=columns)
    return open_folder(url, columns=columns)


def _bytes(batch: Batch) -> int:
    tensors = [
        tensor
        for column in batch.columns.values()
        for tensor in ((column.values, column.offsets) if isinstance(column, Ragged) else (column,))
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="headrace throughput", description=__doc__)
    command.add_argument("data", help="snapshot, or Parquet folder or file; a path or a URL")
    command.add_argument("--part", default="train", help="part of the snapshot (train)")
    command.add_argument("--columns", help="names with commas between them (all)")
    command.add_argument("--batch-size", type=int, default=16384, help="rows of a batch (16384)")
    command.add_argument("--workers", type=int, default=1, help="reading threads; 0 reads in the caller's (1)")
    command.add_argument("--memory-mb", type=int, default=MEMORY_BYTES >> 20, help="the feed's memory (1024)")
    command.add_argument("--no-shuffle", action="store_true", help="in the order of the files")
    command.add_argument("--warm-up", type=int, default=1, help="passes before the measured ones (1)")
    command.add_argument("--passes", type=int, default=3, help="measured passes (3)")
    given = command.parse_args(arguments)
    keep_freed_memory()
    gc.freeze()

    def work() -> None:
        columns = given.columns.split(",") if given.columns else None
        feed = Feed(
            open_rows(absolute(given.data), part=given.part, columns=columns),
            batch_size_per_rank=given.batch_size,
            workers=given.workers,
            memory_bytes=given.memory_mb << 20,
            shuffle=not given.no_shuffle,
        )
        throughput(feed, warm_up=given.warm_up, passes=given.passes)

    return answering_mistakes("headrace", work)


if __name__ == "__main__":
    sys.exit(main())
