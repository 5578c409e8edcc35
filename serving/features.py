"""The features of one request, by the definitions that Spark applied to the log.

Features of users and items lie in the release, encoded; those of events are made here from the request, from what the
user did since the release, and from what `state/` knows of the past.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.features import (
    UNSEEN_IDX,
    AnyFeature,
    EncodedFeature,
    FeatureTransform,
    GapsFeature,
    HashFeature,
    HistoryFeature,
    PastFeature,
)
from schemas.served import Encoded
from serving.crosses import Cross
from serving.items import Items
from serving.past_state import PastState, key_text
from serving.sources import decides, made_of_events
from serving.users import User

STATE, VOCABULARIES = "state", "vocab"
AHEAD_MS = 60_000
"""Before a tile begins, in which what it needs is made."""
Done = Sequence[tuple[int, str]]
"""What a user did since the release: (time_ms, item_id), oldest first."""


class Features:
    """Makes the features of events; safe to call from several threads."""

    def __init__(self, transform: FeatureTransform, from_item: Mapping[str, str], folder: Path, items: Items) -> None:
        self._items = items
        self._of_users = tuple(f for f in transform.of("users") if isinstance(f, EncodedFeature))
        self._history = next((f for f in transform.features if isinstance(f, HistoryFeature)), None)
        self._gaps = next((f for f in transform.features if isinstance(f, GapsFeature)), None)
        of_events = made_of_events(transform)
        self._by = {f.name: decides(f, from_item) for f in of_events}
        self._events = {f.name: f for f in of_events}
        self._past = {
            f.name: PastState(f, folder / STATE / f"{f.name}.arrow") for f in of_events if isinstance(f, PastFeature)
        }
        self._lookups = {path.stem: _lookup(path) for path in sorted((folder / VOCABULARIES).glob("*.parquet"))}
        of_item: dict[str, Sequence[Any]] = {"item_id": items.ids, **items.raw}
        self._crosses = {
            f.name: Cross(f, of_item) for f in of_events if isinstance(f, HashFeature) and self._by[f.name] == "both"
        }
        self._nothing: dict[str, dict[str, int]] = {name: {} for name in transform.vocabularies}
        self._of_tile: dict[str, dict[int, NDArray[np.float32]]] = {}
        """By feature and tile: the one that lasts, and the next one once that is near."""
        self._keys: dict[str, list[str]] = {}
        for name, by in self._by.items():
            if by == "item" and isinstance(feature := self._events[name], PastFeature):
                self._keys[name] = [key_text(feature, self._item_row(place)) for place in range(len(items))]

    def user_features(self, user_id: str, user: User | None) -> dict[str, Any]:
        """As the release has them; of an unknown user, what nulls give."""
        if user is not None:
            return dict(user.features)
        return {f.name: f.encode({"user_id": user_id}, self._nothing) for f in self._of_users}

    def histories(self, user: User | None, since: Done, now_ms: int) -> dict[str, Encoded]:
        """The history, and how long ago each of its items was where the snapshot keeps times."""
        found: dict[str, Encoded] = {}
        if self._history is not None:
            recent = self._items.idx_of([item_id for _, item_id in since[-self._history.length :]], UNSEEN_IDX)
            before = user.history.tolist() if user is not None else []
            found[self._history.name] = self._history.of([*before, *recent.tolist()])
        if self._gaps is not None and (user is None or user.times_ms is not None):
            times = user.times_ms.tolist() if user is not None and user.times_ms is not None else []
            found[self._gaps.name] = self._gaps.of([*times, *(time_ms for time_ms, _ in since)], now_ms)
        return found

    def of_request(self, row: Mapping[str, Any], now_ms: int) -> dict[str, Encoded]:
        """Features of events that are the same whatever the item. `row` has raw values by the names of events."""
        return {name: self._encode(name, row, now_ms) for name, by in self._by.items() if by == "request"}

    def of_items(self, row: Mapping[str, Any], now_ms: int, places: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Features of events that the item has a part in, for each of these items: shape (len(places), ...)."""
        found: dict[str, NDArray[Any]] = {}
        for name, by in self._by.items():
            feature = self._events[name]
            if by == "both":
                found[name] = self._of_both(feature, row, now_ms, places)
            elif by == "item" and name in self._past:
                found[name] = self._past_of_items(name, now_ms)[places]
        return found

    def _of_both(
        self, feature: AnyFeature, row: Mapping[str, Any], now_ms: int, places: NDArray[np.int64]
    ) -> NDArray[Any]:
        if feature.name in self._crosses:
            return self._crosses[feature.name].values(row, places)
        assert isinstance(feature, PastFeature)  # features of one column have one who decides
        keys = [key_text(feature, {**row, **self._item_row(place)}) for place in places.tolist()]
        return self._past[feature.name].values(keys, now_ms)

    def _encode(self, name: str, row: Mapping[str, Any], now_ms: int) -> Encoded:
        feature = self._events[name]
        if isinstance(feature, PastFeature):
            return self._past[name].value(key_text(feature, row), now_ms)
        assert isinstance(feature, EncodedFeature)
        return feature.encode(row, self._lookups)

    def _item_row(self, place: int) -> dict[str, Any]:
        return {"item_id": self._items.ids[place], **{name: values[place] for name, values in self._items.raw.items()}}

    def prepare(self, now_ms: int) -> None:
        """Make what a tile that begins soon will need, on a thread that nobody waits for."""
        for name in self._keys:
            past = self._past[name]
            self._past_of_items(name, now_ms + min(AHEAD_MS, past.feature.tile_ms), keep_from=past.tile(now_ms))

    def _past_of_items(self, name: str, now_ms: int, keep_from: int | None = None) -> NDArray[np.float32]:
        """Of all items; they stay the same for as long as a tile lasts."""
        past, tiles = self._past[name], self._of_tile.setdefault(name, {})
        tile = past.tile(now_ms)
        values = tiles.get(tile)
        if values is None:
            values = past.values(self._keys[name], now_ms)
            for other in list(tiles):
                if other < (tile if keep_from is None else keep_from) or other > tile + 1:
                    tiles.pop(other, None)
            tiles[tile] = values
        return values


def _lookup(path: Path) -> dict[str, int]:
    table = pq.read_table(path, columns=["value", "idx"])
    return dict(zip(table["value"].to_pylist(), table["idx"].to_pylist(), strict=True))
