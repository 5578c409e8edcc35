"""Prove that a snapshot is whole, that its ids fit their vocabularies and its layout fits the ranks."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from schemas.programs import Parser, answering_mistakes
from schemas.snapshot import open_snapshot
from schemas.storage import absolute
from training.feed import MEMORY_BYTES
from training.preflight import SplitLayout, check_ids, layouts


def check(url: str, *, ranks: int, batch_size: int, memory_bytes: int, checksums: bool) -> None:
    """Print what was proved and how the splits are shared out; raises SnapshotDamaged, LedgerError or UserError."""
    snapshot = open_snapshot(url)
    files = [file for files in snapshot.manifest.parts.values() for file in files]
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("files", total=len(files))
        snapshot.verify(
            checksums=checksums, progress=lambda path: bar.update(task, advance=1, description=f"files: {path}")
        )
        task = bar.add_task("ids", total=None)
        columns = check_ids(snapshot, lambda path: bar.update(task, description=f"ids: {path}"))
    splits = layouts(snapshot, world_size=ranks, batch_size_per_rank=batch_size, memory_bytes=memory_bytes)
    Console(width=120, highlight=False).print(_table(splits, ranks=ranks, batch_size=batch_size))
    for layout in splits:
        for warning in layout.warnings:
            print(f"check: note: {layout.split}: {warning}.")
    rows = sum(layout.rows for layout in splits)
    how = "whole and unchanged" if checksums else "of the right size"
    print(
        f"check: {url}: {len(files)} files {how}, {rows:,} rows, the ledger adds up, "
        f"ids fit their vocabularies in {columns:,} column chunks"
    )


def _table(splits: list[SplitLayout], *, ranks: int, batch_size: int) -> Table:
    table = Table(title=f"{ranks} rank(s) x {batch_size:,} rows", title_justify="left")
    for name in ("split", "rows", "files", "row groups", "largest", "file skew", "lanes", "steps", "last batch", "MB"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for layout in splits:
        table.add_row(
            layout.split,
            f"{layout.rows:,}",
            f"{layout.files:,}",
            f"{layout.row_groups:,}",
            f"{layout.largest_row_group:,}",
            f"{layout.file_skew:.2f}",
            f"{layout.lanes}",
            f"{layout.steps:,}",
            f"{layout.last_global_batch:,}",
            f"{layout.memory_bytes / 1e6:,.1f}",
        )
    return table


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="headrace check", description=__doc__)
    command.add_argument("snapshot", help="folder or URL that prepare published")
    command.add_argument("--ranks", type=int, default=1, help="ranks that will train on it (1)")
    command.add_argument("--batch-size", type=int, default=1024, help="rows of a rank's batch (1024)")
    command.add_argument("--memory-mb", type=int, default=MEMORY_BYTES >> 20, help="the feed's memory a rank (1024)")
    command.add_argument("--no-checksums", action="store_true", help="compare sizes only, without reading the files")
    given = command.parse_args(arguments)
    return answering_mistakes(
        "headrace",
        lambda: check(
            absolute(given.snapshot),
            ranks=given.ranks,
            batch_size=given.batch_size,
            memory_bytes=given.memory_mb << 20,
            checksums=not given.no_checksums,
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
