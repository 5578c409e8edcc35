"""The features of a snapshot, as data: what each training column holds and how it was fitted.

Spark applies these definitions to a log, `encode` applies the same ones to the row of one request, and models take
their sizes from them. Encoding of every index: 0 padding, 1 null, 2 unseen, then the values (of a vocabulary by
falling frequency, of a hash or of buckets by number).
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import xxhash
from pydantic import Field

from schemas.contract import TableName
from schemas.settings import Strict

PADDING_IDX, NULL_IDX, UNSEEN_IDX = 0, 1, 2
NUM_RESERVED = 3

Owner = TableName
"""The raw table a feature comes from: items describe what is recommended, users and events whom and when."""
Row = Mapping[str, Any]
"""One row of raw values by column: None for null, milliseconds for a time."""
Lookups = Mapping[str, Mapping[str, int]]
"""By vocabulary, the index of each of its values, which are text."""

SPARK_SEED = 42
"""That Spark's xxhash64 begins with."""

NULL_TEXT = "\x00"
"""What a null counts as among the values of a cross; no value of a log is this."""
FIELD_SEPARATOR = "\x1f"
TOKEN_SEPARATORS = r"[\x00-/:-@\[-`{-\x7f]+"
"""All of ASCII but letters and digits: the same to Java's expressions as to Python's."""


class Vocabulary(Strict):
    """Values seen in train, kept in the snapshot's folder `vocab/<name>` as (value, idx, count)."""

    name: str
    size: int
    """Rows of an embedding table: the reserved ones and the values."""
    dropped_values: int = 0
    """Values below the frequency threshold or beyond the size cap; they are encoded as unseen."""


class _Feature(Strict):
    """What all features share; `dtype` and `length` say what the training column looks like."""

    dtype: ClassVar[Literal["int32", "float32"]] = "int32"
    name: str
    owner: Owner


class IndexFeature(_Feature):
    """One value of a vocabulary: int32, scalar."""

    kind: Literal["index"] = "index"
    source: str
    vocabulary: str

    def encode(self, row: Row, lookups: Lookups) -> int:
        return _index(row.get(self.source), lookups[self.vocabulary])


class IndicesFeature(_Feature):
    """A list of values (multi-hot): int32, shape (length,), right-padded with 0."""

    kind: Literal["indices"] = "indices"
    source: str
    vocabulary: str
    length: int

    def encode(self, row: Row, lookups: Lookups) -> list[int]:
        values = row.get(self.source)
        found = [NULL_IDX] if values is None else [_index(value, lookups[self.vocabulary]) for value in values]
        return _right_padded(found, self.length)


class HistoryFeature(_Feature):
    """The user's last items before the event: int32, shape (length,), oldest first, left-padded with 0."""

    kind: Literal["history"] = "history"
    name: str = "history"
    vocabulary: str = "item"
    owner: Owner = "events"
    length: int

    def of(self, items: Sequence[int]) -> list[int]:
        """The feature after these items, oldest first."""
        return _left_padded(items, self.length)


class GapsFeature(_Feature):
    """Beside each item of the history, how long before the event it was: int32, shape (length,), 0 where no item is.

    A gap of s seconds is 3 + floor(log2(1 + s)), `GAP_BUCKETS` - 1 at most: from one second to a century.
    """

    kind: Literal["gaps"] = "gaps"
    name: str = "history_gaps"
    owner: Owner = "events"
    length: int

    def of(self, times_ms: Sequence[int], now_ms: int) -> list[int]:
        """The feature of an event at `now_ms` after items of these times, oldest first."""
        gaps = ((now_ms - time_ms) // 1000 for time_ms in times_ms[-self.length :])
        # The bits of a whole number n are 1 + floor(log2(n)).
        buckets = [NUM_RESERVED + (1 + max(gap_s, 0)).bit_length() - 1 for gap_s in gaps]
        return _left_padded([min(bucket, GAP_BUCKETS - 1) for bucket in buckets], self.length)


class NumberFeature(_Feature):
    """A number, clipped to [low, high], then log1p if asked for, then (x - mean) / std of train: float32, scalar.

    Null becomes 0 after all that, which is the mean where the feature is standardised. log1p keeps the sign:
    sign(x) log(1 + |x|).
    """

    dtype: ClassVar[Literal["int32", "float32"]] = "float32"
    kind: Literal["number"] = "number"
    source: str
    low: float | None = None
    high: float | None = None
    log1p: bool = False
    mean: float = 0.0
    std: float = 1.0

    def encode(self, row: Row, lookups: Lookups) -> float:
        value = row.get(self.source)
        if value is None:
            return 0.0
        value = float(value)
        value = value if self.low is None else max(value, self.low)
        value = value if self.high is None else min(value, self.high)
        value = math.copysign(math.log1p(abs(value)), value) if self.log1p else value
        return (value - self.mean) / self.std


class BucketFeature(_Feature):
    """Which of the intervals between `edges` a number lies in: int32, scalar; an edge belongs to the interval above."""

    kind: Literal["bucket"] = "bucket"
    source: str
    edges: tuple[float, ...]

    @property
    def size(self) -> int:
        return NUM_RESERVED + len(self.edges) + 1

    def encode(self, row: Row, lookups: Lookups) -> int:
        value = row.get(self.source)
        return NULL_IDX if value is None else NUM_RESERVED + bisect_right(self.edges, float(value))


class HashFeature(_Feature):
    """A value, or the cross of several, hashed to one of `buckets`: int32, scalar. One null value alone is 1."""

    kind: Literal["hash"] = "hash"
    sources: tuple[str, ...]
    buckets: int

    @property
    def size(self) -> int:
        return NUM_RESERVED + self.buckets

    def encode(self, row: Row, lookups: Lookups) -> int:
        texts = [as_text(row.get(source)) for source in self.sources]
        if texts == [None]:
            return NULL_IDX
        return hashed(FIELD_SEPARATOR.join(NULL_TEXT if text is None else text for text in texts), self.buckets)


class TokensFeature(_Feature):
    """The words of a text, or the values of a list, each hashed: int32, shape (length,), right-padded with 0.

    Words are lower case and parted by anything in ASCII that is no letter or digit; those beyond `length` are left out.
    """

    kind: Literal["tokens"] = "tokens"
    source: str
    buckets: int
    length: int

    @property
    def size(self) -> int:
        return NUM_RESERVED + self.buckets

    def encode(self, row: Row, lookups: Lookups) -> list[int]:
        value = row.get(self.source)
        if value is None:
            return _right_padded([NULL_IDX], self.length)
        words = re.split(TOKEN_SEPARATORS, value.lower()) if isinstance(value, str) else value
        return _right_padded([hashed(word, self.buckets) for word in words if word], self.length)


class CyclicFeature(_Feature):
    """Where in a period a time lies, as the sine or the cosine of its angle: float32, scalar; null becomes 0."""

    dtype: ClassVar[Literal["int32", "float32"]] = "float32"
    kind: Literal["cyclic"] = "cyclic"
    source: str
    period_ms: int
    phase: Literal["sin", "cos"]

    def encode(self, row: Row, lookups: Lookups) -> float:
        time_ms = row.get(self.source)
        if time_ms is None:
            return 0.0
        angle = 2 * math.pi * (time_ms % self.period_ms) / self.period_ms
        return math.sin(angle) if self.phase == "sin" else math.cos(angle)


class PastFeature(_Feature):
    """How many earlier events share the values of `by`, or the mean of their labels: float32, scalar.

    Time is cut into tiles of `tile_ms`; counted are the events of the last `tiles` tiles before the event's own
    (all earlier ones where None), so that no event sees itself or what came with it. With `folds`, train's events
    are counted out of fold instead of by time, and held-out ones over all of train.
    count: log(1 + rows). rate: (sum of labels + prior_rows x prior_mean) / (rows + prior_rows).
    """

    dtype: ClassVar[Literal["int32", "float32"]] = "float32"
    kind: Literal["past"] = "past"
    what: Literal["count", "rate"]
    by: tuple[str, ...]
    tile_ms: int
    tiles: int | None = None
    folds: int | None = None
    prior_rows: float = 0.0
    prior_mean: float = 0.0

    def value(self, rows: int, labels: float) -> float:
        """The feature of an event before which `rows` events with `labels` in sum count."""
        if self.what == "count":
            return math.log1p(rows)
        if rows + self.prior_rows == 0:
            return 0.0
        return (labels + self.prior_rows * self.prior_mean) / (rows + self.prior_rows)


GAP_BUCKETS = 36

EncodedFeature = (
    IndexFeature | IndicesFeature | NumberFeature | BucketFeature | HashFeature | TokensFeature | CyclicFeature
)
"""Features of one row alone: `encode(row, lookups)` gives in Python what Spark's column holds."""
AnyFeature = EncodedFeature | HistoryFeature | GapsFeature | PastFeature
ListFeature = IndicesFeature | HistoryFeature | GapsFeature | TokensFeature
"""Features with a `length`; their columns are lists."""
Feature = Annotated[AnyFeature, Field(discriminator="kind")]


class FeatureTransform(Strict):
    """All features of a snapshot with their vocabularies."""

    features: tuple[Feature, ...]
    vocabularies: dict[str, Vocabulary]

    def of(self, *owners: Owner) -> tuple[Feature, ...]:
        return tuple(feature for feature in self.features if feature.owner in owners)

    def size(self, feature: Feature) -> int:
        """Rows of the embedding table that an index looks up."""
        if isinstance(feature, GapsFeature):
            return GAP_BUCKETS
        if isinstance(feature, BucketFeature | HashFeature | TokensFeature):
            return feature.size
        assert isinstance(feature, IndexFeature | IndicesFeature | HistoryFeature)
        return self.vocabularies[feature.vocabulary].size

    @property
    def index_sizes(self) -> dict[str, int]:
        """By name, the size of every feature that is one index."""
        scalar = (f for f in self.features if f.dtype == "int32" and not isinstance(f, ListFeature))
        return {feature.name: self.size(feature) for feature in scalar}

    @property
    def lengths(self) -> dict[str, int]:
        """The length of every list column by name."""
        return {f.name: f.length for f in self.features if isinstance(f, ListFeature)}

    @property
    def history_length(self) -> int:
        """0 for a log without users or items, which has no histories."""
        return next((feature.length for feature in self.features if feature.kind == "history"), 0)


def as_text(value: Any) -> str | None:
    """A value as Spark casts it to text: the form in which vocabularies hold it and hashes take it."""
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def hashed(text: str, buckets: int) -> int:
    """The index of a text: its XXH64 (seed 42, as Spark's xxhash64), as a signed number modulo `buckets`."""
    unsigned = xxhash.xxh64_intdigest(text.encode(), seed=SPARK_SEED)
    return NUM_RESERVED + (unsigned - (1 << 64) * (unsigned >> 63)) % buckets


def _index(value: Any, lookup: Mapping[str, int]) -> int:
    text = as_text(value)
    return NULL_IDX if text is None else lookup.get(text, UNSEEN_IDX)


def _left_padded(values: Sequence[int], length: int) -> list[int]:
    kept = values[-length:]
    return [*[PADDING_IDX] * (length - len(kept)), *kept]


def _right_padded(values: Sequence[int], length: int) -> list[int]:
    return [*values[:length], *[PADDING_IDX] * (length - len(values))]
