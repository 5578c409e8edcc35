"""Features of one row alone as Spark columns: what `encode` of each feature says in Python, as native expressions."""

from __future__ import annotations

import math
from functools import reduce

from pyspark.sql import Column
from pyspark.sql import functions as F

from schemas.features import (
    FIELD_SEPARATOR,
    NULL_IDX,
    NULL_TEXT,
    NUM_RESERVED,
    PADDING_IDX,
    TOKEN_SEPARATORS,
    AnyFeature,
    BucketFeature,
    CyclicFeature,
    HashFeature,
    NumberFeature,
    TokensFeature,
)

RowFeature = NumberFeature | BucketFeature | HashFeature | TokensFeature | CyclicFeature


def feature_column(feature: RowFeature, *, is_list: bool = False) -> Column:
    """The training column of a feature that needs nothing but its row. `is_list`: the source of tokens is a list."""
    if isinstance(feature, NumberFeature):
        return _number(feature)
    if isinstance(feature, BucketFeature):
        return _bucket(feature)
    if isinstance(feature, HashFeature):
        return _hash(feature)
    if isinstance(feature, TokensFeature):
        return _tokens(feature, is_list)
    return _cyclic(feature)


def is_of_one_row(feature: AnyFeature) -> bool:
    return isinstance(feature, RowFeature)


def stepped(value: Column, *, low: float | None, high: float | None, log1p: bool) -> Column:
    """A number clipped and put on a logarithmic scale: all that comes before standardising. Double, null for null."""
    value = value.cast("double")
    # greatest and least skip nulls and would make a number of one.
    value = value if low is None else F.when(value < low, F.lit(low)).otherwise(value)
    value = value if high is None else F.when(value > high, F.lit(high)).otherwise(value)
    return F.when(value < 0, -F.log1p(-value)).otherwise(F.log1p(value)) if log1p else value


def hashed(text: Column, buckets: int) -> Column:
    return (F.pmod(F.xxhash64(text), F.lit(buckets)) + NUM_RESERVED).cast("int")


def right_padded(values: Column, length: int) -> Column:
    return F.slice(F.concat(values, F.array_repeat(F.lit(PADDING_IDX), length)), 1, length)


def _number(feature: NumberFeature) -> Column:
    value = stepped(F.col(feature.source), low=feature.low, high=feature.high, log1p=feature.log1p)
    return F.coalesce((value - feature.mean) / feature.std, F.lit(0.0)).cast("float")


def _bucket(feature: BucketFeature) -> Column:
    value = F.col(feature.source).cast("double")
    return F.when(value.isNull(), NULL_IDX).otherwise(_edges_below(value, feature.edges, NUM_RESERVED))


def _edges_below(value: Column, edges: tuple[float, ...], start: int) -> Column:
    """`start` and the number of edges at or below the value, by halving: as deep as log2 of the edges."""
    if not edges:
        return F.lit(start)
    middle = len(edges) // 2
    below = _edges_below(value, edges[:middle], start)
    above = _edges_below(value, edges[middle + 1 :], start + middle + 1)
    return F.when(value < edges[middle], below).otherwise(above)


def _hash(feature: HashFeature) -> Column:
    if len(feature.sources) == 1:
        value = F.col(feature.sources[0])
        return F.when(value.isNull(), NULL_IDX).otherwise(hashed(value.cast("string"), feature.buckets))
    texts = [F.coalesce(F.col(source).cast("string"), F.lit(NULL_TEXT)) for source in feature.sources]
    joined = reduce(lambda left, right: F.concat(left, F.lit(FIELD_SEPARATOR), right), texts)
    return hashed(joined, feature.buckets)


def _tokens(feature: TokensFeature, is_list: bool) -> Column:
    source = F.col(feature.source)
    words = source if is_list else F.split(F.lower(source), TOKEN_SEPARATORS, -1)
    kept = F.slice(F.filter(words, lambda word: word.isNotNull() & (word != "")), 1, feature.length)
    found = F.transform(kept, lambda word: hashed(word, feature.buckets))
    return right_padded(F.coalesce(found, F.array(F.lit(NULL_IDX))), feature.length)


def _cyclic(feature: CyclicFeature) -> Column:
    share = F.pmod(F.col(feature.source), F.lit(feature.period_ms)) / feature.period_ms
    angle = share * (2 * math.pi)
    wave = F.sin(angle) if feature.phase == "sin" else F.cos(angle)
    return F.coalesce(wave, F.lit(0.0)).cast("float")
