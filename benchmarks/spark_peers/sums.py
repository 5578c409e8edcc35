"""What a tool wrote, as sums: rows, and the sum of every column, by split, and the sizes of the vocabularies.

    python -m benchmarks.spark_peers.sums written OUT [--reader polars]
    python -m benchmarks.spark_peers.sums expected EVENTS --memory-mb M --scratch DIR

`expected` is computed from the events by the SQL of in_duckdb.py, without writing rows. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import duckdb  # type: ignore[import-not-found]
import polars as pl  # type: ignore[import-not-found]

from benchmarks.spark_peers import in_duckdb, job

_SUMMED = ("label", *job.NUMBERS, *job.VALUES)
_SUMS = ", ".join(f"sum({column}::DOUBLE) AS {column}" for column in _SUMMED)
# Tells whether the values of a row are still one row's, which sums of columns cannot.
_OF_ROWS = f"(sum(hash(label::INTEGER, {', '.join(job.VALUES)}) % 4294967296))::DOUBLE AS row_hashes"


def by_duckdb(database: duckdb.DuckDBPyConnection, rows: str) -> dict[str, float]:
    """Of a query or the name of a table."""
    found = database.execute(f"SELECT count(*) AS rows, {_SUMS}, {_OF_ROWS} FROM {rows}")
    names = [column[0] for column in found.description]
    return dict(zip(names, found.fetchone() or (), strict=True))


def by_polars(files: str) -> dict[str, float]:
    rows = pl.scan_parquet(files)
    sums = rows.select(pl.len().alias("rows"), *(pl.col(column).cast(pl.Float64).sum() for column in _SUMMED))
    return sums.collect(engine="streaming").row(0, named=True)


def written(out: Path, reader: str) -> dict[str, Any]:
    database = duckdb.connect()
    found: dict[str, Any] = {}
    for split in job.SPLITS:
        files = f"{out / split}/*.parquet"
        found[split] = by_polars(files) if reader == "polars" else by_duckdb(database, f"read_parquet('{files}')")
    folders = {c: next((out / "vocab").glob(f"*{c}")) for c in job.VALUES}
    found["vocabularies"] = {
        c: database.execute(f"SELECT count(*) FROM read_parquet('{folder}/*.parquet')").fetchone()[0]
        for c, folder in folders.items()
    }
    return found


def expected(events: Path, memory_mb: int, scratch: Path) -> dict[str, Any]:
    database = in_duckdb.connect(memory_mb, scratch)
    in_duckdb.fit(database, events)
    found: dict[str, Any] = {
        split: by_duckdb(database, f"({in_duckdb.encoded(database, split)})") for split in job.SPLITS
    }
    found["vocabularies"] = {c: database.execute(f"SELECT count(*) FROM vocab_{c}").fetchone()[0] for c in job.VALUES}
    found["distinct"] = {c: database.execute(f"SELECT count(DISTINCT {c}) FROM log").fetchone()[0] for c in job.VALUES}
    return found


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("what", choices=("written", "expected"))
    command.add_argument("folder", type=Path)
    command.add_argument("--reader", choices=("duckdb", "polars"), default="duckdb")
    command.add_argument("--memory-mb", type=int, default=6000)
    command.add_argument("--scratch", type=Path, default=Path(".tmp"))
    given = command.parse_args()
    if given.what == "written":
        found = written(given.folder, given.reader)
    else:
        found = expected(given.folder, given.memory_mb, given.scratch)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
