"""Categories counted exactly, value by value on both sides: which get a cell, which are new, which have vanished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from schemas.features import NULL_IDX
from spark_jobs.drifting.cell_plans import TOP
from spark_jobs.drifting.pairs import ComparedColumn, Pair
from spark_jobs.drifting.sides import CLUSTER
from spark_jobs.drifting.verdicts import NAMED_VALUES, News
from spark_jobs.profiling.counts import at


@dataclass
class CategoryCounts:
    """Of one column. `codes` has for each side the code of each value with a cell, as its rows hold it."""

    top: list[str] = field(default_factory=list)
    codes: dict[str, list[str | None]] = field(default_factory=lambda: {"reference": [], "current": []})
    named: dict[str, list[str]] = field(default_factory=lambda: {"new": [], "vanished": []})
    sums: dict[str, int] = field(default_factory=dict)

    def news(self) -> News:
        rows = [max(1, self.sums.get(f"{side}_rows", 0)) for side in ("reference", "current")]
        new = self.sums.get("new_rows", 0) + self.sums.get("current_unknown", 0)
        lone = self.sums.get("lone_rows", 0) + self.sums.get("reference_unknown", 0)
        return News(
            new_share=new / rows[1],
            expected_share=lone / rows[0],
            num_new=self.sums.get("num_new", 0),
            num_vanished=self.sums.get("num_vanished", 0),
            new_values=tuple(self.named["new"]),
            vanished_values=tuple(self.named["vanished"]),
        )


def count_values(pair: Pair, columns: Sequence[ComparedColumn]) -> list[CategoryCounts]:
    """One aggregation over all categories; what is collected is a few values a column."""
    counted = [CategoryCounts() for _ in columns]
    if not columns:
        return counted
    by_value = _by_value(pair, columns).persist(StorageLevel.MEMORY_AND_DISK)
    is_value = F.col("state") == "value"
    new = is_value & (F.col("reference") == 0)
    vanished = is_value & (F.col("current") == 0)

    def total(of: str, condition: Column) -> Column:
        return F.coalesce(F.sum(F.when(condition, F.col(of))), F.lit(0))

    sums = by_value.groupBy("m").agg(
        F.sum("reference").alias("reference_rows"),
        F.sum("current").alias("current_rows"),
        total("current", new).alias("new_rows"),
        F.sum("lone").alias("lone_rows"),
        F.count_if(new).alias("num_new"),
        F.count_if(vanished).alias("num_vanished"),
        total("reference", F.col("state") == "unknown").alias("reference_unknown"),
        total("current", F.col("state") == "unknown").alias("current_unknown"),
    )
    for row in sums.collect():
        counted[row["m"]].sums = {name: int(value) for name, value in row.asDict().items() if name != "m"}
    kinds = F.array_compact(
        F.array(
            F.when(is_value & F.col("known"), F.lit("top")),
            F.when(new, F.lit("new")),
            F.when(vanished, F.lit("vanished")),
        )
    )
    ranked = Window.partitionBy("m", "kind").orderBy(F.desc(F.col("reference") + F.col("current")), "value")
    each = by_value.withColumn("kind", F.explode(kinds)).withColumn("rank", F.row_number().over(ranked))
    # Of each task only what may be among the first is shuffled, which Spark tells by a limit that is a number.
    named = (F.col("kind") == "top") | (F.col("rank") <= NAMED_VALUES)
    first = each.where((F.col("rank") <= TOP) & named)
    # Collected: at most TOP values a column and kind.
    for row in first.orderBy("m", "kind", "rank").collect():
        found = counted[row["m"]]
        if row["kind"] == "top":
            found.top.append(row["value"])
            for side in ("reference", "current"):
                found.codes[side].append(row[f"{side}_code"])
        else:
            found.named[row["kind"]].append(row["value"])
    by_value.unpersist()
    return counted


def category_values(column: ComparedColumn) -> tuple[Column, ...]:
    """Each value as text: an index as its number."""
    measure = column.profiled.measure
    return tuple(value.cast("bigint").cast("string") if measure.kind == "index" else value for value in measure.values)


def _by_value(pair: Pair, columns: Sequence[ComparedColumn]) -> DataFrame:
    """m, value, state, rows on either side, the codes there, and the reference's rows where one user alone has it."""
    owners = [number for number, column in enumerate(columns) for _ in column.profiled.measure.values]
    values = [value for column in columns for value in category_values(column)]
    is_element = at("m", "BOOLEAN", [column.profiled.is_list for column in columns])
    each = pair.rows.select("side", CLUSTER, F.posexplode(F.array(*values)).alias("place", "code"))
    each = each.select("side", CLUSTER, "code", at("place", "INT", owners).alias("m"))
    counts = (
        each.where(F.col("code").isNotNull() | ~is_element)
        .groupBy("m", "side", "code")
        .agg(F.count("*").alias("rows"), (F.min(CLUSTER) == F.max(CLUSTER)).alias("is_lone"))
    )
    is_null, value, known = F.col("code").isNull(), F.col("code"), F.lit(True)
    if pair.vocabularies is not None:
        # Texts go through the join too, and meet nothing there: apart from the indices they would be counted twice.
        is_index = at("m", "BOOLEAN", [column.profiled.measure.kind == "index" for column in columns])
        names = F.array(*(F.lit(column.vocabulary or "") for column in columns))
        counts = counts.withColumn("vocabulary", F.get(names, F.col("m")))
        counts = counts.join(pair.vocabularies, on=["vocabulary", "side", "code"], how="left")
        is_null = is_null | (is_index & (F.col("code") == str(NULL_IDX)))
        value = F.when(is_index, F.col("value")).otherwise(F.col("code"))
        known = ~is_index | F.coalesce("known", F.lit(False))
    state = F.when(is_null, "null").when(value.isNull(), "unknown").otherwise("value")
    plain = counts.select(
        "m", "side", "code", "rows", "is_lone",
        value.alias("value"), known.alias("known"), state.alias("state"),
    )  # fmt: skip
    before, now = F.col("side") == "reference", F.col("side") == "current"
    is_value = F.col("state") == "value"
    return plain.groupBy("m", "value", "state").agg(
        F.sum(F.when(before, F.col("rows")).otherwise(0)).alias("reference"),
        F.sum(F.when(now, F.col("rows")).otherwise(0)).alias("current"),
        F.max(F.when(before, F.col("code"))).alias("reference_code"),
        F.max(F.when(now, F.col("code"))).alias("current_code"),
        F.sum(F.when(before & is_value & F.col("is_lone"), F.col("rows")).otherwise(0)).alias("lone"),
        F.bool_or("known").alias("known"),
    )
