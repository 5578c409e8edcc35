"""Fitting and applying the features that a contract's roles ask for; fitted on what train holds and on nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.contract import Column, Table
from schemas.features import (
    NUM_RESERVED,
    Feature,
    IndexFeature,
    IndicesFeature,
    NumberFeature,
    Owner,
    Vocabulary,
)
from spark_jobs.transforms.vocabulary import build_vocabulary, with_index, with_indices

_PREFIX: dict[Owner, str] = {"users": "user", "items": "item", "events": "event"}
_MAX_LIST_LENGTH = 32


@dataclass(frozen=True, kw_only=True)
class VocabularyLimits:
    min_count: int
    max_values: int


@dataclass(frozen=True)
class FittedVocabulary:
    """A vocabulary's entries (value, idx, count), and its description for the manifest."""

    entries: DataFrame
    vocabulary: Vocabulary


@dataclass(frozen=True)
class Fitted:
    """Features of one table, with their vocabularies by name."""

    features: tuple[Feature, ...]
    vocabularies: dict[str, FittedVocabulary]


def fit_vocabulary(values: DataFrame, name: str, limits: VocabularyLimits) -> FittedVocabulary:
    """Fit a vocabulary on the column `value`, one row per occurrence in train."""
    built = build_vocabulary(values, min_count=limits.min_count, max_values=limits.max_values)
    description = Vocabulary(name=name, size=built.num_values + NUM_RESERVED, dropped_values=built.num_dropped)
    return FittedVocabulary(built.entries, description)


def fit_table(rows: DataFrame, table: Table, owner: Owner, limits: VocabularyLimits) -> Fitted:
    """Fit the features of a table's categorical and numeric columns on `rows`, the part of it that train knows."""
    vocabularies: dict[str, FittedVocabulary] = {}
    features: list[Feature] = []
    for column in table.with_role("categorical"):
        name = f"{_PREFIX[owner]}_{column.name}"
        is_list = column.type == "list<string>"
        values = rows.select(F.explode(column.name) if is_list else column.name).toDF("value")
        fitted = fit_vocabulary(values, name, limits)
        vocabularies[name] = fitted
        as_index = IndexFeature(name=f"{name}_idx", source=column.name, owner=owner, vocabulary=name)
        if is_list:
            described = as_index.model_dump(exclude={"kind"})
            features.append(IndicesFeature(**described, length=_longest(rows, column)))
        else:
            features.append(as_index)
    return Fitted((*features, *fit_numbers(rows, table, owner)), vocabularies)


def fit_numbers(rows: DataFrame, table: Table, owner: Owner) -> list[Feature]:
    """Mean and standard deviation of the numeric columns, in one pass."""
    columns = table.with_role("numeric")
    if not columns:
        return []
    moments = rows.agg(
        *(F.avg(F.col(c.name).cast("double")).alias(f"mean_{c.name}") for c in columns),
        *(F.stddev_pop(F.col(c.name).cast("double")).alias(f"std_{c.name}") for c in columns),
    ).first()
    assert moments is not None
    return [
        NumberFeature(
            name=f"{_PREFIX[owner]}_{column.name}",
            source=column.name,
            owner=owner,
            mean=moments[f"mean_{column.name}"] or 0.0,
            # A constant, or a column of nulls, becomes 0 rather than a division by zero.
            std=moments[f"std_{column.name}"] or 1.0,
        )
        for column in columns
    ]


def with_features(rows: DataFrame, fitted: Fitted, *, key: str) -> DataFrame:
    """Add every fitted feature's column. In and out: the same rows, which `key` must name."""
    for feature in fitted.features:
        if isinstance(feature, NumberFeature):
            scaled = (F.col(feature.source).cast("double") - feature.mean) / feature.std
            rows = rows.withColumn(feature.name, F.coalesce(scaled, F.lit(0.0)).cast("float"))
        elif isinstance(feature, IndicesFeature):
            entries = fitted.vocabularies[feature.vocabulary].entries
            rows = with_indices(
                rows, source=feature.source, vocabulary=entries, name=feature.name, length=feature.length, key=key
            )
        elif isinstance(feature, IndexFeature):
            entries = fitted.vocabularies[feature.vocabulary].entries
            rows = with_index(rows, source=feature.source, vocabulary=entries, name=feature.name)
    return rows


def _longest(rows: DataFrame, column: Column) -> int:
    longest = rows.agg(F.max(F.size(column.name)).alias("longest")).first()
    return min(_MAX_LIST_LENGTH, max(1, (longest["longest"] or 1) if longest is not None else 1))
