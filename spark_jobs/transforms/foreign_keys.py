"""Values that must be keys of another table: the rows whose value is not there break `foreign_key:<column>`."""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.contract import Table
from spark_jobs.transforms.rules import Rule

_BROADCAST_ROWS = 2_000_000


def only_with_known_keys(typed: DataFrame, table: Table, known: Mapping[str, DataFrame]) -> DataFrame:
    """Rows whose references are all there, nulls among them. `known`: by column of the table, its allowed values."""
    rows = _with_marks(typed, known)
    for name in known:
        rows = rows.where(F.col(name).isNull() | F.col(_mark(name)).isNotNull())
    return rows.drop(*map(_mark, known))


def with_known_marks(typed: DataFrame, known: Mapping[str, DataFrame]) -> DataFrame:
    """Add what `foreign_key_rules` look at."""
    return _with_marks(typed, known)


def foreign_key_rules(table: Table, known: Mapping[str, DataFrame]) -> list[Rule]:
    """One rule a reference, for a frame with marks."""
    return [
        Rule(
            f"foreign_key:{name}",
            F.col(name).isNotNull() & F.col(_mark(name)).isNull(),
            F.concat(F.lit("'"), F.col(name).cast("string"), F.lit(f"' is no {table.column(name).references}")),
        )
        for name in known
    ]


def known_values(referred: DataFrame, key: str, *, rows: int) -> DataFrame:
    """The distinct values of a key, sent to every worker where they are few (`rows` at most)."""
    values = referred.select(F.col(key).alias("known")).distinct()
    return F.broadcast(values) if rows <= _BROADCAST_ROWS else values


def _with_marks(typed: DataFrame, known: Mapping[str, DataFrame]) -> DataFrame:
    rows = typed
    for name, values in known.items():
        marked = values.select(F.col("known").alias(_mark(name)))
        rows = rows.join(marked, on=rows[name] == marked[_mark(name)], how="left_outer")
    return rows


def _mark(name: str) -> str:
    return f"_known_{name}"
