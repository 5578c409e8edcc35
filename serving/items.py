"""The items of a release: ids, titles, counts and features, by their place (item_idx less the reserved ones)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.features import NUM_RESERVED, Feature

OWN_COLUMNS = ("item_idx", "item_id", "title", "count")


@dataclass(frozen=True)
class Items:
    """N items; `features` and `raw` have N rows, the item with item_idx NUM_RESERVED first."""

    ids: list[str]
    titles: list[str]
    counts: NDArray[np.int64]
    features: dict[str, NDArray[Any]]
    """What models take: of items, and of events where only the item decides. Lists have the shape (N, length)."""
    raw: dict[str, list[Any]]
    """Columns of events that come from the item: by `from_item` of the rules, and as `items__author`."""

    @cached_property
    def place_of(self) -> dict[str, int]:
        return {item_id: place for place, item_id in enumerate(self.ids)}

    @cached_property
    def by_count(self) -> NDArray[np.int64]:
        """Places by falling count; the vocabulary's order settles ties."""
        return np.argsort(-self.counts, kind="stable")

    def prepare(self) -> None:
        """Make now what would else be made while somebody waits for an answer."""
        _ = self.place_of, self.by_count

    def __len__(self) -> int:
        return len(self.ids)

    def idx_of(self, item_ids: list[str], unseen: int) -> NDArray[np.int32]:
        found = (self.place_of.get(item_id) for item_id in item_ids)
        return np.array([unseen if place is None else place + NUM_RESERVED for place in found], dtype=np.int32)


def read_items(path: Path, features: tuple[Feature, ...]) -> Items:
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        by_name = {feature.name: feature for feature in features}
        arrays, raw = {}, {}
        for name in table.column_names:
            if name in OWN_COLUMNS:
                continue
            if name in by_name:
                arrays[name] = _array(table[name], by_name[name])
            else:
                raw[name.removeprefix("raw:")] = table[name].to_pylist()
        return Items(
            ids=table["item_id"].to_pylist(),
            titles=table["title"].to_pylist(),
            counts=table["count"].to_numpy().copy(),
            features=arrays,
            raw=raw,
        )


def _array(column: pa.ChunkedArray, feature: Feature) -> NDArray[Any]:
    length: int | None = getattr(feature, "length", None)
    if length is None:
        return column.to_numpy().astype(feature.dtype)
    flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    return flat.to_numpy().reshape(len(column), length).astype(feature.dtype)
