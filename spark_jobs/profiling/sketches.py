"""The first pass: sketches of every column in every group, from which bins and top values are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_jobs.profiling.measures import Measure

NUM_QUANTILES = 100
_KLL_SIZE = 512  # rank error about 0.5 %, 10 kB a sketch
_TOP, _TRACKED = 24, 2048


@dataclass(frozen=True)
class Sketch:
    """What the first pass knows of one measure in one group."""

    distinct_about: int | None = None
    quantiles: tuple[float, ...] = ()
    """The 0th to the 100th percentile, or nothing where there is no number; the first and last are exact."""
    top: tuple[str, ...] = ()
    """Frequent values of a text, the most frequent first."""


@dataclass(frozen=True)
class GroupSketches:
    rows: int
    by_measure: dict[str, Sketch] = field(default_factory=dict)


def sketch(rows: DataFrame, measures: Sequence[Measure]) -> dict[str, GroupSketches]:
    """Sketch all measures by the column `group`: one aggregation, one small row a group."""
    aggregates: list[Column] = [F.count("*").alias("rows")]
    shown: list[Column] = [F.col("group"), F.col("rows")]
    for place, measure in enumerate(measures):
        value = measure.sampled
        if measure.counts_distinct:
            aggregates.append(F.approx_count_distinct(_compared(measure)).alias(f"distinct_{place}"))
            shown.append(F.col(f"distinct_{place}"))
        if measure.kind == "number":
            aggregates.append(F.kll_sketch_agg_double(finite(value), F.lit(_KLL_SIZE)).alias(f"kll_{place}"))
            shown.append(_percentiles(f"kll_{place}").alias(f"quantiles_{place}"))
        elif measure.kind == "text":
            # approx_top_k has no function of its own in PySpark; 2,048 values are tracked exactly, then about.
            counted = F.call_function("approx_top_k", value, F.lit(_TOP), F.lit(_TRACKED))
            aggregates.append(counted.alias(f"top_{place}"))
            shown.append(F.transform(f"top_{place}", lambda entry: entry["item"]).alias(f"top_{place}"))
    found = rows.groupBy("group").agg(*aggregates).select(*shown).collect()
    return {row["group"]: GroupSketches(row["rows"], _by_measure(row.asDict(), measures)) for row in found}


def finite(value: Column) -> Column:
    """The number, or null where it is NaN or infinite."""
    return F.when(F.abs(value) < float("inf"), value)


def _compared(measure: Measure) -> Column:
    """What is compared to tell values apart: the text or number, and the whole identifier."""
    return F.col(f"`{measure.name}`") if measure.kind == "presence" else measure.sampled


def _percentiles(name: str) -> Column:
    ranks = F.expr(f"array({', '.join(f'{rank / NUM_QUANTILES}D' for rank in range(NUM_QUANTILES + 1))})")
    # A sketch of nothing has no quantiles, and asking is an error.
    return F.when(F.kll_sketch_get_n_double(name) > 0, F.kll_sketch_get_quantile_double(name, ranks))


def _by_measure(row: dict[str, object], measures: Sequence[Measure]) -> dict[str, Sketch]:
    def of(place: int) -> Sketch:
        distinct, quantiles, top = (row.get(f"{what}_{place}") for what in ("distinct", "quantiles", "top"))
        return Sketch(
            distinct_about=distinct if isinstance(distinct, int) else None,
            quantiles=tuple(quantiles) if isinstance(quantiles, list) else (),
            top=tuple(text for text in top if text is not None) if isinstance(top, list) else (),
        )

    return {measure.name: of(place) for place, measure in enumerate(measures)}
