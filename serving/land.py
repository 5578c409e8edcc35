"""Land the logs of servers: sealed segments become Parquet by day, or rows of PostgreSQL, each record once."""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from schemas.errors import LedgerError, UserError
from schemas.landed import Landed
from schemas.programs import Parser, answering_mistakes
from schemas.served import KINDS, Kind
from schemas.storage import absolute
from schemas.store_urls import store_url
from serving.log_rows import RowFault, rows_of
from serving.parquet_days import ParquetDays
from serving.postgres_export import export
from serving.postgres_tables import PostgresTables
from serving.recovery import recover, seal_living
from serving.segments import SEALED, Seal, SegmentFault, blocks, checked, seal_of

_LOCK = ".land.lock"


class Sink(Protocol):
    """Where segments land, and what it remembers of them."""

    def landed(self, kind: Kind, segment: str) -> Landed | None: ...

    def land(
        self, kind: Kind, segment: str, *, records: int, xxh3_128: str, read: Callable[[], Iterator[pa.Table]]
    ) -> Landed:
        """All rows and the memory of them, or nothing, wherever it is killed; `read` gives the rows from the start."""


def land(logs: Path, sink: Sink, *, seal: bool = False, keep_hours: float | None = None) -> list[Landed]:
    """Land what is sealed and has not landed yet, oldest first by name; give what landed.

    With `seal` all that writers have acknowledged until now is sealed first; with `keep_hours` segments that have
    landed go when they are so old. Damaged segments are left where they are, the others land, then UserError names
    the first of the damaged ones.
    """
    if not logs.is_dir():
        raise UserError(f"--logs {logs} is no folder: it is where a server writes impressions/ and actions/.")
    landed: list[Landed] = []
    faults: list[UserError] = []
    with _alone(logs):
        for kind in (kind for kind in KINDS if (logs / kind).is_dir()):
            faults += _sealed_now(logs / kind) if seal else []
            faults += recover(logs / kind)
            for path in sorted((logs / kind).glob(f"*{SEALED}")):
                try:
                    landed += _land_segment(sink, kind, path)
                    if keep_hours is not None and time.time() - path.stat().st_mtime >= keep_hours * 3600:
                        path.unlink()
                except (SegmentFault, LedgerError) as error:
                    faults.append(error)
    if faults:
        more = f" (and {len(faults) - 1} more like it; all else has landed)" if len(faults) > 1 else ""
        raise UserError(f"{faults[0]}{more}")
    return landed


def _land_segment(sink: Sink, kind: Kind, path: Path) -> list[Landed]:
    """What it landed: nothing where the segment had landed before."""
    seal, segment = seal_of(path), path.stem
    before = sink.landed(kind, segment)
    if before is not None:
        if before.xxh3_128 != seal.xxh3_128:
            raise SegmentFault(f"segment {path} has landed before with other content: two logs use one name.")
        return []
    checked(path)
    landed = sink.land(
        kind, segment, records=seal.records, xxh3_128=seal.xxh3_128, read=lambda: _tables(kind, path, seal)
    )
    print(landed, flush=True)
    return [landed]


def _tables(kind: Kind, path: Path, seal: Seal) -> Iterator[pa.Table]:
    for block in blocks(path, seal):
        try:
            yield rows_of(kind, block)
        except RowFault as error:
            raise SegmentFault(f"segment {path}: {error}. Nothing of it was landed.") from None


def _sealed_now(folder: Path) -> list[UserError]:
    try:
        seal_living(folder)
    except UserError as error:
        return [error]
    return []


@contextmanager
def _alone(logs: Path) -> Iterator[None]:
    """Wait until nobody else lands these logs; a killed one holds nothing back."""
    file = os.open(logs / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another `headrace land` is at work on {logs}; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _passes(given: argparse.Namespace) -> Callable[[], list[Landed]]:
    """What one pass does."""
    tables = "://" in given.to
    if (given.logs is None) == (given.source is None):
        raise UserError("give either --logs, the logs to land, or --from, a PostgreSQL to export from.")
    if given.source is not None:
        if tables or given.seal or given.delete_landed is not None:
            raise UserError("--from exports to a folder: --to is one, and --seal and --delete-landed belong to --logs.")
        source = _postgres(given.source, "--from", given.patience)
        return lambda: export(source, ParquetDays(Path(absolute(given.to))))
    sink = _postgres(given.to, "--to", given.patience) if tables else ParquetDays(Path(absolute(given.to)))
    return lambda: land(Path(absolute(given.logs)), sink, seal=given.seal, keep_hours=given.delete_landed)


def _postgres(url: str, option: str, patience_s: float) -> PostgresTables:
    return PostgresTables(store_url(url, option=option, kinds=("postgresql",)), patience_s=patience_s)


def _work(given: argparse.Namespace) -> None:
    one_pass = _passes(given)
    while True:
        try:
            landed = one_pass()
        except (UserError, OSError) as error:
            said = (
                f"{error}" if isinstance(error, UserError) else f"{error}. The same command goes on from what is done."
            )
            if given.watch is None:
                raise UserError(said) from None
            print(f"headrace land: {said}", file=sys.stderr, flush=True)
        else:
            if landed or given.watch is None:
                counts = {kind: sum(one.records for one in landed if one.kind == kind) for kind in KINDS}
                told = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
                print(f"landed {len(landed):,} segments: {told}", flush=True)
        if given.watch is None:
            return
        time.sleep(given.watch)


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="headrace land", description=__doc__)
    add = command.add_argument
    add("--logs", help="folder of a server's logs: impressions/ and actions/")
    add(
        "--from",
        dest="source",
        metavar="URL",
        help="export from PostgreSQL instead: postgresql+psycopg2://USER@HOST/DB",
    )
    add("--to", required=True, help="folder for Parquet by day, or postgresql+psycopg2://USER@HOST:PORT/DB")
    add("--seal", action="store_true", help="land all that running servers have acknowledged until now")
    add(
        "--delete-landed",
        type=float,
        nargs="?",
        const=0.0,
        metavar="HOURS",
        help="remove segments that have landed and were sealed so many hours ago (0: at once)",
    )
    add("--watch", type=float, metavar="SECONDS", help="go on, with a pass each so many seconds")
    add("--patience", type=float, default=600.0, metavar="SECONDS", help="to wait for PostgreSQL when it is away (600)")
    given = command.parse_args(arguments)
    return answering_mistakes(command.prog, lambda: _work(given))


if __name__ == "__main__":
    sys.exit(main())
