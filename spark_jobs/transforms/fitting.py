"""Fitting the features wanted; fitted on what train holds and on nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType

from schemas.feature_set import (
    PERIOD_MS,
    Wanted,
    WantedBucket,
    WantedCyclic,
    WantedHash,
    WantedNumber,
    WantedPast,
    WantedTokens,
    WantedVocabulary,
    column_name,
    duration_ms,
    owner,
    sources,
)
from schemas.features import (
    NUM_RESERVED,
    BucketFeature,
    CyclicFeature,
    Feature,
    HashFeature,
    IndexFeature,
    IndicesFeature,
    NumberFeature,
    PastFeature,
    TokensFeature,
    Vocabulary,
)
from spark_jobs.transforms.feature_columns import stepped
from spark_jobs.transforms.quantiles import quantile_edges
from spark_jobs.transforms.vocabulary import VocabularyRequest

_MAX_LIST_LENGTH = 32
_DIGITS = 9  # of moments: sums of doubles differ behind these with the order in which partitions end


@dataclass(frozen=True, kw_only=True)
class VocabularyLimits:
    min_count: int
    max_values: int


@dataclass(frozen=True)
class FittedVocabulary:
    """A vocabulary's entries (value, idx, count), and its description for the manifest."""

    entries: DataFrame
    vocabulary: Vocabulary

    @property
    def num_values(self) -> int:
        return self.vocabulary.size - NUM_RESERVED


@dataclass(frozen=True)
class Fitted:
    """Features of one table, with their vocabularies by name."""

    features: tuple[Feature, ...] = ()
    vocabularies: Mapping[str, FittedVocabulary] = field(default_factory=dict)


def fit_features(
    rows: DataFrame, wanted: Sequence[Wanted], columns: Mapping[str, str], vocabularies: Mapping[str, FittedVocabulary]
) -> Fitted:
    """Fit features on `rows`, the part of their table that train knows; `columns` names each source's column there.

    One pass for all numbers and one for all quantiles; the vocabularies are fitted already.
    """
    asked: dict[str, Column] = {}
    for feature in wanted:
        asked |= _asks(feature, rows, columns)
    answers = rows.agg(*(column.alias(name) for name, column in asked.items())).first() if asked else None
    quantiles = {
        column_name(feature): (F.col(columns[feature.source]), feature.buckets)
        for feature in wanted
        if isinstance(feature, WantedBucket) and feature.buckets is not None
    }
    edges = quantile_edges(rows, quantiles)
    features = [one for feature in wanted for one in _fitted(feature, rows, columns, answers, edges)]
    own = {f.vocabulary: vocabularies[f.vocabulary] for f in features if isinstance(f, IndexFeature | IndicesFeature)}
    return Fitted(tuple(features), own)


def vocabulary_name(feature: WantedVocabulary) -> str:
    return column_name(feature).removesuffix("_idx")


def vocabulary_requests(
    rows: DataFrame, wanted: Sequence[Wanted], columns: Mapping[str, str], limits: VocabularyLimits
) -> dict[str, VocabularyRequest]:
    """The vocabularies that the features need, by name."""
    requests = {}
    for feature in wanted:
        if isinstance(feature, WantedVocabulary):
            column = columns[feature.source]
            values = rows.select(F.explode(column) if _is_list(rows, column) else column).toDF("value")
            min_count, max_values = feature.min_count or limits.min_count, feature.max_values or limits.max_values
            requests[vocabulary_name(feature)] = VocabularyRequest(values, min_count, max_values)
    return requests


def _asks(feature: Wanted, rows: DataFrame, columns: Mapping[str, str]) -> dict[str, Column]:
    """What a feature has to know of train's rows, as aggregates that are all computed in one pass."""
    name = column_name(feature)
    if isinstance(feature, WantedNumber) and "standardise" in feature.steps:
        value = _stepped(feature, columns)
        return {f"mean_{name}": F.avg(value), f"std_{name}": F.stddev_pop(value)}
    if isinstance(feature, WantedVocabulary) and feature.length is None and _is_list(rows, columns[feature.source]):
        return {f"longest_{name}": F.max(F.size(columns[feature.source]))}
    if isinstance(feature, WantedPast) and feature.kind == "rate":
        return {f"mean_{name}": F.avg(F.col("label").cast("double"))}
    return {}


def _fitted(
    feature: Wanted,
    rows: DataFrame,
    columns: Mapping[str, str],
    answers: Row | None,
    edges: Mapping[str, tuple[float, ...]],
) -> list[Feature]:
    """The feature with what train answered: one, or two for a cyclic one."""
    name, of = column_name(feature), owner(feature)

    def answer(what: str) -> float:
        found = answers[f"{what}_{name}"] if answers is not None else None
        return float(f"{found or 0.0:.{_DIGITS}g}")

    if isinstance(feature, WantedVocabulary):
        source, vocabulary = columns[feature.source], vocabulary_name(feature)
        if not _is_list(rows, source):
            return [IndexFeature(name=name, source=source, owner=of, vocabulary=vocabulary)]
        length = feature.length or min(_MAX_LIST_LENGTH, max(1, int(answer("longest"))))
        return [IndicesFeature(name=name, source=source, owner=of, vocabulary=vocabulary, length=length)]
    if isinstance(feature, WantedNumber):
        scaled = "standardise" in feature.steps
        # A constant, or a column of nulls, becomes 0 rather than a division by zero.
        mean, std = (answer("mean"), answer("std") or 1.0) if scaled else (0.0, 1.0)
        log1p = "log1p" in feature.steps
        return [
            NumberFeature(
                name=name, source=columns[feature.source], owner=of,
                low=feature.low, high=feature.high, log1p=log1p, mean=mean, std=std,
            )
        ]  # fmt: skip
    if isinstance(feature, WantedBucket):
        found = feature.edges if feature.edges is not None else edges[name]
        return [BucketFeature(name=name, source=columns[feature.source], owner=of, edges=found)]
    if isinstance(feature, WantedHash):
        joined = tuple(columns[source] for source in feature.sources)
        return [HashFeature(name=name, sources=joined, owner=of, buckets=feature.buckets)]
    if isinstance(feature, WantedTokens):
        source = columns[feature.source]
        return [TokensFeature(name=name, source=source, owner=of, buckets=feature.buckets, length=feature.length)]
    if isinstance(feature, WantedCyclic):
        source, period_ms = columns[feature.source], PERIOD_MS[feature.period]
        return [
            CyclicFeature(name=f"{name}_sin", source=source, owner=of, period_ms=period_ms, phase="sin"),
            CyclicFeature(name=f"{name}_cos", source=source, owner=of, period_ms=period_ms, phase="cos"),
        ]
    tile_ms = duration_ms(feature.every)
    return [
        PastFeature(
            name=name,
            owner=of,
            what=feature.kind,
            by=tuple(columns[source] for source in sources(feature)),
            tile_ms=tile_ms,
            tiles=duration_ms(feature.window) // tile_ms if feature.window else None,
            folds=feature.folds,
            prior_rows=feature.prior_rows if feature.kind == "rate" else 0.0,
            prior_mean=answer("mean") if feature.kind == "rate" else 0.0,
        )
    ]


def _stepped(feature: WantedNumber, columns: Mapping[str, str]) -> Column:
    source = F.col(columns[feature.source])
    return stepped(source, low=feature.low, high=feature.high, log1p="log1p" in feature.steps)


def _is_list(rows: DataFrame, column: str) -> bool:
    return isinstance(rows.schema[column].dataType, ArrayType)
