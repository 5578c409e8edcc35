"""The second pass: exact counts, moments and sums of the label, by slot.

A pass of its own because slots must be the same in all splits, and which values are frequent and where the numbers
lie is known after the first. All columns of a row become values of one column, so that one aggregation with nine sums
serves them all, however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_jobs.profiling.measures import Measure
from spark_jobs.profiling.sketches import finite
from spark_jobs.profiling.slots import HEAD, TOP, SlotPlan

NULL_SLOT, NOT_FINITE_SLOT = -1, -2
_RULES = ("code", "rank", "edges")


@dataclass(frozen=True)
class Sums:
    """Of the values of one measure in one group and slot; values and labels are centered, values scaled too."""

    values: int
    labels: int
    label: float
    label_squares: float
    value: float
    value_squares: float
    products: float
    min: float | None
    max: float | None


Counts = dict[tuple[str, str], dict[int, Sums]]
"""By (group, measure), then by slot."""


def count(
    rows: DataFrame, planned: Sequence[tuple[Measure, SlotPlan]], label: Column | None, label_center: float
) -> Counts:
    """Count every measure by the column `group` and its slot: one aggregation, a few dozen rows a measure."""
    owners = [number for number, (measure, _) in enumerate(planned) for _ in measure.values]
    coded = [_coded(value, measure, plan) for measure, plan in planned for value in measure.values]
    target = label.cast("double") - label_center if label is not None else F.lit(None).cast("double")
    each = rows.select("group", target.alias("label"), F.posexplode(F.array(*coded)).alias("place", "value"))
    owned = each.select("group", "label", "value", at("place", "INT", owners).alias("m"))
    # A list shorter than the places for its elements leaves nulls, and they stand for nothing.
    is_element = at("m", "BOOLEAN", [measure.is_element for measure, _ in planned])
    number = finite(F.col("value"))
    center = at("m", "DOUBLE", [plan.center for _, plan in planned])
    scale = at("m", "DOUBLE", [plan.scale for _, plan in planned])
    counted = owned.where(F.col("value").isNotNull() | ~is_element)
    slotted = with_slot(counted, [plan for _, plan in planned]).select(
        "group",
        "m",
        "slot",
        "label",
        number.alias("number"),
        ((number - center) / scale).alias("scaled"),
    )
    counts: Counts = {}
    for row in slotted.groupBy("group", "m", "slot").agg(*_sums()).collect():
        known: dict[str, Any] = {name: row[name] for name in Sums.__dataclass_fields__}
        filled = {name: known[name] or 0 for name in known if name not in ("min", "max")}  # a sum of nothing is null
        sums = Sums(**known | filled)
        counts.setdefault((row["group"], planned[row["m"]][0].name), {})[row["slot"]] = sums
    return counts


def _sums() -> list[Column]:
    label, scaled = F.col("label"), F.col("scaled")
    return [
        F.count("*").alias("values"),
        F.count("label").alias("labels"),
        F.sum(label).alias("label"),
        F.sum(label * label).alias("label_squares"),
        F.sum(scaled).alias("value"),
        F.sum(scaled * scaled).alias("value_squares"),
        F.sum(scaled * label).alias("products"),
        F.min("number").alias("min"),
        F.max("number").alias("max"),
    ]


def _coded(value: Column, measure: Measure, plan: SlotPlan) -> Column:
    """The value as a double: a text as its slot."""
    if measure.kind != "text":
        return value
    rest = F.lit(float(len(plan.codes)))
    if not plan.codes:
        return F.when(value.isNotNull(), rest)
    entries = [F.lit(part) for number, text in enumerate(plan.codes) for part in (text, float(number))]
    return F.when(value.isNotNull(), F.coalesce(F.try_element_at(F.create_map(*entries), value), rest))


def with_slot(rows: DataFrame, plans: Sequence[SlotPlan]) -> DataFrame:
    """Add `slot`, of `value` by the plan of its measure `m`, by a binary search among the edges.

    A column a step, so that the code is short, however many columns and edges there are: Java only interprets a
    method of more than 8,000 bytes, which is forty times slower.
    """
    value = F.col("value")
    steps = max(len(plan.edges) for plan in plans).bit_length()
    width = 1 << steps
    table = [edge for plan in plans for edge in (*plan.edges, *[float("inf")] * (width - len(plan.edges)))]
    # Bits are set rather than numbers added, which would be checked for overflow at every step.
    found = rows.withColumn("place", F.shiftleft("m", steps))
    for step in reversed(range(steps)):
        half = F.lit(1 << step)
        edge = at(F.col("place").bitwiseOR(half - 1), "DOUBLE", table)
        found = found.withColumn("place", F.col("place").bitwiseOR(F.when(value >= edge, half).otherwise(0)))
    ranked = F.when(value < HEAD, value).otherwise(HEAD + F.floor(F.log2((value - HEAD) / float(TOP) + 1)))
    rule = at("m", "INT", [_RULES.index(plan.rule) for plan in plans])
    slot = (
        F.when(value.isNull(), NULL_SLOT)
        .when(F.isnan(value) | (F.abs(value) == float("inf")), NOT_FINITE_SLOT)
        .when(rule == _RULES.index("edges"), F.col("place").bitwiseAND(width - 1))
        .when(rule == _RULES.index("rank"), ranked.cast("int"))
        .otherwise(value.cast("int"))
    )
    return found.withColumn("slot", slot)


def at(place: str | Column, kind: str, values: Sequence[object]) -> Column:
    """The entry of a table of constants; written as SQL, for a call a constant would take longer than the counting."""
    table = F.expr(f"array({', '.join(_constant(kind, value) for value in values)})")
    return F.get(table, F.col(place) if isinstance(place, str) else place)


def _constant(kind: str, value: object) -> str:
    return f"DOUBLE('{str(value).replace('inf', 'Infinity')}')" if kind == "DOUBLE" else str(value).upper()
