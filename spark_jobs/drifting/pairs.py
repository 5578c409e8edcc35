"""Two sides as one table of the columns that both have, with what is measured of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.contract import Contract
from schemas.errors import UserError
from schemas.features import FeatureTransform, HistoryFeature, IndexFeature, IndicesFeature
from spark_jobs.drifting.sides import CLUSTER, Side
from spark_jobs.drifting.verdicts import Of
from spark_jobs.profiling.measures import ProfiledColumn, profiled_columns, with_lists

SIDES = ("reference", "current")


@dataclass(frozen=True, kw_only=True)
class ComparedColumn:
    shown: str
    of: Of
    profiled: ProfiledColumn

    @property
    def vocabulary(self) -> str | None:
        return self.profiled.measure.vocabulary


@dataclass(frozen=True, kw_only=True)
class Pair:
    """`rows` has `side`, CLUSTER and a column for each of `columns`; `vocabularies` side, name, idx and value."""

    rows: DataFrame
    columns: tuple[ComparedColumn, ...]
    is_clustered: bool
    vocabularies: DataFrame | None
    left_out: Mapping[str, str]


def pair_of(spark: SparkSession, reference: Side, current: Side) -> Pair:
    """UserError where the sides have no column in common."""
    left_out = {**reference.left_out, **current.left_out}
    kept: list[str] = []
    for name in dict.fromkeys((*reference.columns, *current.columns)):
        before, now = reference.columns.get(name), current.columns.get(name)
        if before is None or now is None:
            left_out[name] = f"only the {'reference' if now is None else 'current side'} has it"
        elif (before.definition, before.vocabulary) != (now.definition, now.vocabulary):
            left_out[name] = "it is defined otherwise on each side"
        else:
            kept.append(name)
    if not kept:
        raise UserError(
            f"{reference.name} and {current.name} have no column in common: compare two of a kind, made from one log."
        )
    fields = {f"c{number}": name for number, name in enumerate(kept)}
    sides = []
    for tag, side in zip(SIDES, (reference, current), strict=True):
        values = [side.columns[name].value.alias(field) for field, name in fields.items()]
        sides.append(side.rows.select(F.lit(tag).alias("side"), CLUSTER, *values))
    union = sides[0].unionByName(sides[1])
    columns = []
    for profiled in profiled_columns(
        union.drop("side", CLUSTER).schema, "events", _NO_CONTRACT, _transform(current, fields)
    ):
        if profiled.measure.kind != "presence":
            shown = fields[profiled.name]
            columns.append(ComparedColumn(shown=shown, of=current.columns[shown].of, profiled=profiled))
    return Pair(
        rows=with_lists(union, [column.profiled for column in columns]),
        columns=tuple(columns),
        is_clustered=reference.is_clustered and current.is_clustered,
        vocabularies=_vocabularies(spark, reference, current, {c.vocabulary for c in columns if c.vocabulary}),
        left_out=left_out,
    )


_NO_CONTRACT = Contract.model_validate(
    {
        "name": "none",
        "meaning": "columns are named by number here, so that no contract's column is taken for them",
        "events": {
            "source": {"path": "none"},
            "key": ["at"],
            "columns": [{"name": "at", "type": "timestamp_ms", "role": "event_time", "meaning": "when"}],
        },
    }
)


def _transform(side: Side, fields: Mapping[str, str]) -> FeatureTransform | None:
    """The features that index a vocabulary, under the names that their columns have here."""
    if side.transform is None:
        return None
    own = {feature.name: feature for feature in side.transform.features}
    named = [
        own[shown].model_copy(update={"name": field})
        for field, shown in fields.items()
        if isinstance(own.get(shown), IndexFeature | IndicesFeature | HistoryFeature)
    ]
    return FeatureTransform(features=tuple(named), vocabularies=side.transform.vocabularies)


def _vocabularies(spark: SparkSession, reference: Side, current: Side, names: set[str]) -> DataFrame | None:
    """side, vocabulary, code (the index as text), value; and whether both sides know the value."""
    entries = []
    for tag, side in zip(SIDES, (reference, current), strict=True):
        for name in sorted(names):
            assert side.snapshot is not None
            files = [side.snapshot.file_url(file) for file in side.snapshot.files(f"vocab/{name}")]
            if files:
                read = spark.read.schema("value STRING, idx INT").parquet(*files)
                entries.append(
                    read.select(
                        F.lit(tag).alias("side"),
                        F.lit(name).alias("vocabulary"),
                        F.col("idx").cast("string").alias("code"),
                        "value",
                    )
                )
    if not entries:
        return None
    every = reduce(DataFrame.unionByName, entries)
    sides = every.groupBy("vocabulary", "value").agg((F.count_distinct("side") == 2).alias("known"))
    return every.join(sides, on=["vocabulary", "value"], how="inner")
