"""Proving that a published folder is whole: files, checksums, ledger."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress

from schemas.snapshot import open_snapshot


def check(url: str) -> None:
    """Verify a snapshot with its checksums, showing how far it is; raises SnapshotDamaged or LedgerError."""
    snapshot = open_snapshot(url)
    num_files = sum(len(files) for files in snapshot.manifest.parts.values())
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("checking", total=num_files)
        snapshot.verify(progress=lambda path: bar.update(task, advance=1, description=path))
    rows = sum(snapshot.manifest.rows(part) for part in ("train", "valid", "test"))
    print(f"check: {url}: {num_files} files whole and unchanged, {rows:,} rows, the ledger adds up")
