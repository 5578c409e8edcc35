"""Taking stock of a snapshot: what was written, read back, so that the ledger proves it and anybody can again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.ledger import ROW_ID_MODULUS
from schemas.manifest import DataFile
from schemas.storage import join


@dataclass(frozen=True)
class Stock:
    """All by split."""

    row_ids: dict[str, int]
    """Sum of the row_ids, which tells the rows; modulo `ROW_ID_MODULUS`, as `content` is."""
    content: dict[str, int]
    """Sum of the hashes of whole rows: equal for equal rows in any order."""
    figures: dict[str, dict[str, Any]]


def take_stock(
    spark: SparkSession,
    root: str,
    parts: Mapping[str, Sequence[DataFile]],
    figures: Callable[[DataFrame], Sequence[Column]],
) -> Stock:
    """Sums of every split's files, and `figures`: aggregates of its rows. One query over all splits that have files."""
    stocks = []
    for split, files in parts.items():
        if not files:
            continue
        written = spark.read.parquet(*(join(root, file.path) for file in files))
        row_ids = F.sum(F.pmod("row_id", F.lit(ROW_ID_MODULUS)))
        content = F.sum(F.pmod(F.xxhash64(*written.columns), F.lit(ROW_ID_MODULUS)))
        sums = [F.lit(split).alias("split"), row_ids.alias("row_ids"), content.alias("content")]
        stocks.append(written.agg(*sums, *figures(written)))
    # Collected: one row a split.
    found = {row["split"]: row.asDict() for row in reduce(DataFrame.unionByName, stocks).collect()}
    ours = ("split", "row_ids", "content")
    return Stock(
        row_ids={split: (found[split]["row_ids"] or 0) % ROW_ID_MODULUS if split in found else 0 for split in parts},
        content={split: (found[split]["content"] or 0) % ROW_ID_MODULUS if split in found else 0 for split in parts},
        figures={split: {k: v for k, v in found.get(split, {}).items() if k not in ours} for split in parts},
    )
