"""Quantiles of many columns in one pass, the same on every run: Spark's own sketches depend on the order of merging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

_BINS_PER_DOUBLING = 128  # two values of one bin differ by 0.55 % at most
_SMALLEST = 2.0**-20  # values nearer to 0 count as 0
_OFFSET = 1 << 20  # above any bin: the bin of 0 is none, and the sign is the number's


def quantile_edges(rows: DataFrame, wanted: Mapping[str, tuple[Column, int]]) -> dict[str, tuple[float, ...]]:
    """For each name, the edges that cut the column's values into so many buckets of about equal count.

    Values are counted by bins of a logarithmic scale, a bounded table whatever the log; an edge is exact to 0.6 %.
    Edges that fall together are one, so a column with few values has fewer buckets. Nulls are left out.
    """
    if not wanted:
        return {}
    binned = [
        F.struct(F.lit(number).alias("column"), _bin(value).alias("bin"), value.cast("double").alias("value"))
        for number, (value, _) in enumerate(wanted.values())
    ]
    each = rows.select(F.explode(F.array(*binned)).alias("entry")).select("entry.*").where("value is not null")
    # Collected: a row a bin that holds values, some thousands a column.
    counted = each.groupBy("column", "bin").agg(F.count("*").alias("count"), F.min("value").alias("least")).collect()
    edges = {}
    for number, (name, (_, buckets)) in enumerate(wanted.items()):
        bins = sorted((row["bin"], row["count"], row["least"]) for row in counted if row["column"] == number)
        edges[name] = _cuts([(count, least) for _, count, least in bins], buckets)
    return edges


def _bin(value: Column) -> Column:
    size = F.abs(value.cast("double"))
    scale = F.floor(F.log2(size) * _BINS_PER_DOUBLING) + _OFFSET
    return F.when(size < _SMALLEST, F.lit(0)).otherwise(F.signum(value.cast("double")) * scale).cast("bigint")


def _cuts(bins: Sequence[tuple[int, float]], buckets: int) -> tuple[float, ...]:
    """Edge i of `buckets` - 1 is the least value with i / `buckets` of the rows below it. In: rising (count, least)."""
    total = sum(count for count, _ in bins)
    cuts: list[float] = []
    below = 0
    for count, least in bins:
        while len(cuts) + 1 < buckets and below * buckets >= (len(cuts) + 1) * total:
            cuts.append(least)
        below += count
    return tuple(sorted(set(cuts)))
