"""The features of a snapshot, as data: what each training column holds and how it was fitted.

Spark applies these definitions to a log, serving applies the same ones to a request, and models take their
sizes from them. Encoding of every vocabulary: 0 padding, 1 null, 2 unseen, then the values by falling frequency.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.contract import TableName
from schemas.settings import Strict

PADDING_IDX, NULL_IDX, UNSEEN_IDX = 0, 1, 2
NUM_RESERVED = 3

Owner = TableName
"""The raw table a feature comes from: items describe what is recommended, users and events whom and when."""


class Vocabulary(Strict):
    """Values seen in train, kept in the snapshot's folder `vocab/<name>` as (value, idx, count)."""

    name: str
    size: int
    """Rows of an embedding table: the reserved ones and the values."""
    dropped_values: int = 0
    """Values below the frequency threshold or beyond the size cap; they are encoded as unseen."""


class IndexFeature(Strict):
    """One value of a vocabulary: int32, scalar."""

    kind: Literal["index"] = "index"
    name: str
    source: str
    owner: Owner
    vocabulary: str


class IndicesFeature(Strict):
    """A set of values: int32, shape (length,), right-padded with 0."""

    kind: Literal["indices"] = "indices"
    name: str
    source: str
    owner: Owner
    vocabulary: str
    length: int


class HistoryFeature(Strict):
    """The user's last items before the event: int32, shape (length,), oldest first, left-padded with 0."""

    kind: Literal["history"] = "history"
    name: str = "history"
    vocabulary: str = "item"
    owner: Owner = "events"
    length: int


class NumberFeature(Strict):
    """(value - mean) / std with the moments of train: float32, scalar; null becomes 0, the mean."""

    kind: Literal["number"] = "number"
    name: str
    source: str
    owner: Owner
    mean: float
    std: float


Feature = Annotated[IndexFeature | IndicesFeature | HistoryFeature | NumberFeature, Field(discriminator="kind")]


class FeatureTransform(Strict):
    """All features of a snapshot with their vocabularies."""

    features: tuple[Feature, ...]
    vocabularies: dict[str, Vocabulary]

    def of(self, *owners: Owner) -> tuple[Feature, ...]:
        return tuple(feature for feature in self.features if feature.owner in owners)

    def size(self, feature: Feature) -> int:
        """Rows of the embedding table that a categorical feature looks up."""
        assert not isinstance(feature, NumberFeature)
        return self.vocabularies[feature.vocabulary].size

    @property
    def history_length(self) -> int:
        return next(feature.length for feature in self.features if feature.kind == "history")
