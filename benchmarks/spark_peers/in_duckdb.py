"""DuckDB: SQL from Parquet to Parquet, sorted in what memory there is and otherwise through its temporary files."""

from __future__ import annotations

from pathlib import Path

import duckdb  # type: ignore[import-not-found]

from benchmarks.spark_peers import job
from benchmarks.spark_peers.job import Phases

_SHARE_OF_MEMORY = 0.6  # memory_limit counts DuckDB's buffers, not all that the process takes


def connect(memory_mb: int, scratch: Path) -> duckdb.DuckDBPyConnection:
    """A database in memory that spills to `scratch`."""
    database = duckdb.connect()
    database.execute(f"SET memory_limit = '{round(memory_mb * _SHARE_OF_MEMORY)}MB'")
    database.execute(f"SET temp_directory = '{scratch}'")
    # The order of the rows is that of ORDER BY; that of the log need not be kept on the way there.
    database.execute("SET preserve_insertion_order = false")
    database.execute("SET enable_progress_bar = false")
    return database


def fit(database: duckdb.DuckDBPyConnection, events: Path) -> None:
    """Make the view `log`, and the tables `cuts`, `moments` and a vocabulary for each c."""
    database.execute(f"CREATE VIEW log AS SELECT * FROM read_parquet('{events}/**/*.parquet')")
    num_rows = _one(database, "SELECT count(*) FROM log")[0]
    # Half a row less, so that no rounding takes the row after the wanted one.
    shares = [(job.rank_of_cut(share, num_rows) - 0.5) / num_rows for share in job.SHARES_BEFORE]
    database.execute(
        f"CREATE TABLE cuts AS SELECT cut[1] + 1 AS valid, cut[2] + 1 AS test "
        f"FROM (SELECT quantile_disc(time_ms, {shares}) AS cut FROM log)"
    )
    # In the text of the query rather than joined, so that files and row groups of other times are passed over.
    valid, _ = cuts(database)
    moments = ", ".join(f"avg(ln(1 + {i})) AS {i}_mean, stddev_pop(ln(1 + {i})) AS {i}_std" for i in job.NUMBERS)
    database.execute(f"CREATE TABLE moments AS SELECT {moments} FROM log WHERE time_ms < {valid}")
    for c in job.VALUES:
        database.execute(
            f"""
            CREATE TABLE vocab_{c} AS
            SELECT value, (row_number() OVER (ORDER BY count DESC, value::VARCHAR) + {job.FIRST_IDX - 1})::INTEGER AS idx, count
            FROM (SELECT {c} AS value, count(*) AS count FROM log WHERE time_ms < {valid} AND {c} IS NOT NULL GROUP BY 1)
            WHERE count >= {job.MIN_COUNT}
            """  # noqa: E501
        )


def cuts(database: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    """The first moments of valid and of test."""
    return _one(database, "SELECT valid, test FROM cuts")


def encoded(database: duckdb.DuckDBPyConnection, split: str) -> str:
    """The query of a split's encoded rows, in no order."""
    valid, test = cuts(database)
    when = {
        "train": f"time_ms < {valid}",
        "valid": f"time_ms >= {valid} AND time_ms < {test}",
        "test": f"time_ms >= {test}",
    }[split]
    moments = _one(database, "SELECT * FROM moments")
    columns = ["row_id", "time_ms", "label::FLOAT AS label"]
    for place, i in enumerate(job.NUMBERS):
        mean, std = moments[2 * place], moments[2 * place + 1] or 1.0
        columns.append(f"coalesce((ln(1 + {i}) - {mean!r}) / {std!r}, 0)::FLOAT AS {i}")
    joins = []
    for c in job.VALUES:
        index = f"CASE WHEN log.{c} IS NULL THEN {job.NULL_IDX} ELSE coalesce(v_{c}.idx, {job.UNSEEN_IDX}) END"
        columns.append(f"({index})::INTEGER AS {c}")
        joins.append(f"LEFT JOIN vocab_{c} AS v_{c} ON log.{c} = v_{c}.value")
    return f"SELECT {', '.join(columns)} FROM log {' '.join(joins)} WHERE {when}"


def write(database: duckdb.DuckDBPyConnection, query: str, folder: Path, *, groups_per_file: int = 4) -> None:
    database.execute(
        f"""COPY ({query}) TO '{folder}' (FORMAT parquet, COMPRESSION lz4_raw, DICTIONARY_SIZE_LIMIT 0,
        ROW_GROUP_SIZE {job.ROWS_PER_ROW_GROUP}, ROW_GROUPS_PER_FILE {groups_per_file})"""
    )


def _one(database: duckdb.DuckDBPyConnection, query: str) -> tuple:
    row = database.execute(query).fetchone()
    assert row is not None
    return row


def main() -> None:
    given = job.arguments(__doc__ or "")
    phase = Phases(given.out)
    database = connect(given.memory_mb, given.scratch)
    with phase("fit"):
        fit(database, given.events)
    with phase("vocabularies"):
        (given.out / "vocab").mkdir()
        for c in job.VALUES:
            write(database, f"FROM vocab_{c} ORDER BY idx", given.out / "vocab" / c)
    for split in job.SPLITS:
        with phase(split):
            write(
                database,
                f"{encoded(database, split)} ORDER BY hash(row_id + {job.SEED})",
                given.out / split,
                groups_per_file=job.ROWS_PER_FILE // job.ROWS_PER_ROW_GROUP,
            )


if __name__ == "__main__":
    main()
