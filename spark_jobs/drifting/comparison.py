"""The columns of a pair as distributions: percentiles, values, then all cells by group of users in one aggregation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F

from schemas.errors import UserError
from schemas.features import NULL_IDX
from spark_jobs.drifting.cell_plans import NULL, OTHER, number_distribution, number_edges
from spark_jobs.drifting.pairs import SIDES, ComparedColumn, Pair
from spark_jobs.drifting.sides import CLUSTER
from spark_jobs.drifting.statistics import NUM_GROUPS, Distribution
from spark_jobs.drifting.value_counts import CategoryCounts, category_values, count_values
from spark_jobs.drifting.verdicts import Kind, Observed
from spark_jobs.profiling.counts import NULL_SLOT, at, with_slot
from spark_jobs.profiling.measures import Measure
from spark_jobs.profiling.sketches import finite, sketch
from spark_jobs.profiling.slots import SlotPlan
from spark_jobs.session import step


@dataclass(frozen=True)
class _Planned:
    """A measure with the cells that it is counted into; `categories` where they are values."""

    measure: Measure
    column: ComparedColumn
    edges: tuple[float, ...] = ()
    categories: CategoryCounts | None = None

    @property
    def num_cells(self) -> int:
        """The last is that of nulls."""
        return (len(self.edges) if self.categories is None else len(self.categories.top)) + 2


def observe(spark: SparkSession, pair: Pair) -> tuple[list[Observed], tuple[int, int]]:
    """Every column as it was counted, and the rows of either side; UserError where a side has none."""
    numbers = [
        (column, measure)
        for column in pair.columns
        for measure in (column.profiled.measure, column.profiled.lengths)
        if measure is not None and measure.kind == "number"
    ]
    categories = [column for column in pair.columns if column.profiled.measure.kind != "number"]
    with step(spark, "percentiles of numbers"):
        grouped = pair.rows.withColumn("group", F.col("side"))
        sketches = sketch(grouped, [measure for _, measure in numbers])
    rows = tuple(sketches[side].rows if side in sketches else 0 for side in SIDES)
    if not all(rows):
        empty = SIDES[0] if not rows[0] else SIDES[1]
        raise UserError(f"the {empty} has no rows: look at its window, or give another folder.")
    with step(spark, "values of categories"):
        counted = count_values(pair, categories)
    planned = []
    for column, measure in numbers:
        known = [sketches[side].by_measure[measure.name].quantiles for side in SIDES]
        planned.append(_Planned(measure, column, edges=number_edges(known[0], known[1])))
    planned += [
        _Planned(column.profiled.measure, column, categories=found)
        for column, found in zip(categories, counted, strict=True)
    ]
    with step(spark, "cells by group of users"):
        counts, sums = _count(pair, planned)
    by_measure = {
        (one.column.shown, one.measure.name): (one, counts[number], sums[number]) for number, one in enumerate(planned)
    }

    def of(column: ComparedColumn, measure: Measure) -> Distribution:
        one, counts_SGC, sums_MC = by_measure[column.shown, measure.name]
        # Elements of a list, and its length where users have several rows, are no independent draws.
        if not pair.is_clustered and not measure.is_element:
            counts_SGC = counts_SGC.sum(axis=1, keepdims=True)
        if one.categories is None:
            return number_distribution(one.edges, counts_SGC, sums_MC[0])
        cells = (*one.categories.top, OTHER, NULL)
        return Distribution(cells=cells, reference=counts_SGC[0], current=counts_SGC[1])

    observed = []
    for column in pair.columns:
        measure, lengths = column.profiled.measure, column.profiled.lengths
        one, counts_SGC, sums_MC = by_measure[column.shown, measure.name]
        kind: Kind = "list" if column.profiled.is_list else "numeric" if measure.kind == "number" else "categorical"
        observed.append(
            Observed(
                column=column.shown,
                of=column.of,
                kind=kind,
                values=of(column, measure),
                lengths=of(column, lengths) if lengths is not None else None,
                news=one.categories.news() if one.categories is not None else None,
                null_cell=one.num_cells - 1,
                figures=_moments(counts_SGC, sums_MC) if one.categories is None else {},
            )
        )
    return observed, (rows[0], rows[1])


def _moments(counts_SGC: NDArray[np.float64], sums_MC: NDArray[np.float64]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of either side, from exact sums."""
    rows = counts_SGC[:, :, :-1].sum(axis=(1, 2))
    if not rows.all():
        return {}
    means = [float(sums_MC[1 + side].sum() / rows[side]) for side in (0, 1)]
    spreads = [max(0.0, float(sums_MC[3 + side].sum() / rows[side]) - means[side] ** 2) ** 0.5 for side in (0, 1)]
    return {"mean": (means[0], means[1]), "std": (spreads[0], spreads[1])}


def _count(pair: Pair, planned: Sequence[_Planned]) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Of each measure rows by side, group of users and cell; and by cell the sums of values: of both sides together,
    of either, and of either's squares. One aggregation; what comes back is cells times groups."""
    owners = [number for number, one in enumerate(planned) for _ in one.measure.values]
    coded = [value for one in planned for value in _coded(one)]
    is_element = at("m", "BOOLEAN", [one.measure.is_element for one in planned])
    bucket = F.pmod(F.col(CLUSTER), F.lit(NUM_GROUPS)).cast("int").alias("bucket")
    each = pair.rows.select("side", bucket, F.posexplode(F.array(*coded)).alias("place", "value"))
    owned = each.select("side", "bucket", "value", at("place", "INT", owners).alias("m"))
    plans = [SlotPlan("edges" if one.categories is None else "code", (), one.edges) for one in planned]
    slotted = with_slot(owned.where(F.col("value").isNotNull() | ~is_element), plans)
    cells = slotted.groupBy("side", "bucket", "m", "slot").agg(
        F.count("*").alias("rows"),
        F.coalesce(F.sum("value"), F.lit(0.0)).alias("sum"),
        F.coalesce(F.sum(F.col("value") * F.col("value")), F.lit(0.0)).alias("squares"),
    )
    found = cells.toArrow().to_pydict()
    counts = [np.zeros((2, NUM_GROUPS, one.num_cells)) for one in planned]
    sums = [np.zeros((5, one.num_cells)) for one in planned]
    columns = zip(*(found[name] for name in ("side", "bucket", "m", "slot", "rows", "sum", "squares")), strict=True)
    for name, group, measure, slot, rows, total, squares in columns:
        side, cell = SIDES.index(name), slot if slot != NULL_SLOT else -1
        counts[measure][side, group, cell] += rows
        sums[measure][0, cell] += total
        sums[measure][1 + side, cell] += total
        sums[measure][3 + side, cell] += squares
    return counts, sums


def _coded(one: _Planned) -> list[Column]:
    """A number as it is; a category as the number of its cell, null where it is null."""
    if one.categories is None:
        return [finite(value) for value in one.measure.values]
    rest = float(len(one.categories.top))
    tables = [_cells(one.categories.codes[side]) for side in SIDES]
    coded = []
    for value in category_values(one.column):
        by_side = [
            F.lit(rest) if cells is None else F.coalesce(F.try_element_at(cells, value), F.lit(rest))
            for cells in tables
        ]
        cell = F.when(F.col("side") == SIDES[0], by_side[0]).otherwise(by_side[1])
        is_null = value.isNull() | (value == str(NULL_IDX)) if one.measure.kind == "index" else value.isNull()
        coded.append(F.when(~is_null, cell))
    return coded


def _cells(codes: Sequence[str | None]) -> Column | None:
    """The cell of each code; one for all elements of a list, for a call a constant takes long."""
    entries = [F.lit(part) for cell, code in enumerate(codes) if code is not None for part in (code, float(cell))]
    return F.create_map(*entries) if entries else None
