"""Hashes of the request's values crossed with the item's, for many items at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from schemas.features import FIELD_SEPARATOR, NULL_TEXT, NUM_RESERVED, SPARK_SEED, HashFeature, Row, as_text


class Cross:
    """One hash feature that request and item decide together; `of_item` has a value for each item by source."""

    def __init__(self, feature: HashFeature, of_item: dict[str, Sequence[Any]]) -> None:
        self._feature = feature
        self._texts = {name: [_text(value) for value in of_item[name]] for name in feature.sources if name in of_item}

    def values(self, row: Row, places: NDArray[np.int64]) -> NDArray[np.int32]:
        """What `feature.encode` gives for the request's row with each item's values; shape of `places`."""
        chosen = places.tolist()
        parts: list[Iterable[str]] = []
        for name in self._feature.sources:
            texts = self._texts.get(name)
            parts.append([_text(row.get(name))] * len(chosen) if texts is None else [texts[place] for place in chosen])
        joined = map(FIELD_SEPARATOR.join, zip(*parts, strict=True))
        return hashed_all(joined, len(chosen), self._feature.buckets)


def hashed_all(texts: Iterable[str], count: int, buckets: int) -> NDArray[np.int32]:
    """`schemas.features.hashed` of each text."""
    digest = xxhash.xxh64_intdigest
    unsigned = np.fromiter((digest(text.encode(), SPARK_SEED) for text in texts), np.uint64, count)
    return (NUM_RESERVED + unsigned.view(np.int64) % buckets).astype(np.int32)


def _text(value: Any) -> str:
    text = as_text(value)
    return NULL_TEXT if text is None else text
