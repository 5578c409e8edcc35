"""What a slice is called: values by vocabulary, intervals of numbers as they were logged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.features import (
    NULL_IDX,
    NUM_RESERVED,
    PADDING_IDX,
    UNSEEN_IDX,
    AnyFeature,
    BucketFeature,
    IndexFeature,
    NumberFeature,
)
from schemas.snapshot import Snapshot
from schemas.storage import filesystem, join

_RESERVED = {PADDING_IDX: "(padding)", NULL_IDX: "(null)", UNSEEN_IDX: "(unseen)"}


def names_of_values(snapshot: Snapshot, column: str, values: NDArray[np.float64]) -> list[str]:
    """A few values of a column: as the log has them where a vocabulary or buckets tell, else as numbers."""
    feature = _feature(snapshot, column)
    if feature is None:
        return [_number(value) for value in values]
    indices = [int(value) for value in values]
    names: dict[int, str] = {}
    if isinstance(feature, IndexFeature):
        names = _values(snapshot, feature.vocabulary, indices)
    elif isinstance(feature, BucketFeature):
        buckets = names_of_edges(feature.edges, closed="below")
        names = {NUM_RESERVED + place: name for place, name in enumerate(buckets)}
    return [names.get(index) or _RESERVED.get(index) or f"index {index}" for index in indices]


def names_of_ranges(snapshot: Snapshot, column: str, edges: NDArray[np.float64]) -> list[str]:
    """One more than there are edges; standardised numbers are shown as they were logged."""
    feature = _feature(snapshot, column)
    if isinstance(feature, NumberFeature):
        return names_of_edges([_as_logged(edge, feature) for edge in edges], closed="above")
    return names_of_edges(edges.tolist(), closed="above")


def names_of_edges(edges: Sequence[float], *, closed: str) -> list[str]:
    """Intervals that hold their upper edge (`closed` above), or their lower one."""
    texts = [_number(edge) for edge in edges]
    if not texts:
        return ["all"]
    between = [f"{low} to {high}" for low, high in pairwise(texts)]
    if closed == "above":
        return [f"up to {texts[0]}", *(f"over {one}" for one in between), f"over {texts[-1]}"]
    return [f"below {texts[0]}", *(f"from {one}" for one in between), f"from {texts[-1]}"]


def _feature(snapshot: Snapshot, column: str) -> AnyFeature | None:
    return next((feature for feature in snapshot.transform.features if feature.name == column), None)


def _values(snapshot: Snapshot, vocabulary: str, indices: list[int]) -> dict[int, str]:
    """The values of these indices; of a vocabulary of millions no others are kept."""
    fs, root = filesystem(snapshot.url)
    found: dict[int, str] = {}
    for file in snapshot.files(f"vocab/{vocabulary}"):
        path, wanted = join(root, file.path), [("idx", "in", indices)]
        table = pq.read_table(path, columns=["idx", "value"], filters=wanted, filesystem=fs)
        found |= dict(zip(table["idx"].to_pylist(), map(str, table["value"].to_pylist()), strict=True))
    return found


def _as_logged(value: float, feature: NumberFeature) -> float:
    """The number that the feature encodes so, but for the clipping."""
    value = value * feature.std + feature.mean
    return math.copysign(math.expm1(abs(value)), value) if feature.log1p else value


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.4g}"
