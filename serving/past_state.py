"""What features of the past look up: counts and labels of the last tiles of every key, as `prepare` left them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.features import FIELD_SEPARATOR, NULL_TEXT, PastFeature, Row, as_text
from serving.user_sorting import user_key


def key_text(feature: PastFeature, row: Row) -> str:
    """The values of `by` as Spark joins them."""
    texts = (as_text(row.get(name)) for name in feature.by)
    return FIELD_SEPARATOR.join(NULL_TEXT if text is None else text for text in texts)


def write_state(table: pa.Table, path: Path) -> None:
    """Write key, tile, rows and labels by ascending hash of the key."""
    hashes = np.fromiter((user_key(key) for key in table["key"].to_pylist()), np.uint64, table.num_rows)
    ordered = table.select(["key", "tile", "rows", "labels"]).add_column(0, "hash", pa.array(hashes))
    ordered = ordered.sort_by([("hash", "ascending"), ("key", "ascending"), ("tile", "ascending")]).combine_chunks()
    with pa.ipc.new_file(str(path), ordered.schema) as writer:
        writer.write_table(ordered)


class PastState:
    """The table of one feature, memory-mapped.

    Legend: K keys asked for, R rows of the table.
    """

    def __init__(self, feature: PastFeature, path: Path) -> None:
        self.feature = feature
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
        self._hash: NDArray[np.uint64] = table["hash"].to_numpy()
        self._tile: NDArray[np.int64] = table["tile"].to_numpy()
        self._rows: NDArray[np.int64] = table["rows"].to_numpy()
        self._labels: NDArray[np.float64] = table["labels"].to_numpy().astype(np.float64)
        self._key = table["key"]

    def value(self, key: str, now_ms: int) -> float:
        """The feature of an event of this key at `now_ms`."""
        return float(self.values([key], now_ms)[0])

    def values(self, keys: Sequence[str], now_ms: int) -> NDArray[np.float32]:
        """The same for each of many keys, in their order."""
        hashes_K = np.fromiter((user_key(key) for key in keys), np.uint64, len(keys))
        first_K = np.searchsorted(self._hash, hashes_K, "left")
        held_K = np.searchsorted(self._hash, hashes_K, "right") - first_K
        # R rows of the table that have the hash of a key: whose, and where.
        key_R = np.repeat(np.arange(len(keys)), held_K)
        row_R = np.arange(len(key_R)) + np.repeat(first_K - (np.cumsum(held_K) - held_K), held_K)
        counted_R = self._counts(self._tile[row_R], now_ms)
        key_R, row_R = key_R[counted_R], row_R[counted_R]
        found = self._key.take(pa.array(row_R)).to_pylist()
        own_R = np.fromiter((keys[k] == text for k, text in zip(key_R.tolist(), found, strict=True)), bool, len(key_R))
        key_R, row_R = key_R[own_R], row_R[own_R]
        rows_K = np.bincount(key_R, weights=self._rows[row_R], minlength=len(keys))
        labels_K = np.bincount(key_R, weights=self._labels[row_R], minlength=len(keys))
        values = map(self.feature.value, rows_K.tolist(), labels_K.tolist())
        return np.fromiter(values, np.float32, len(keys))

    def tile(self, now_ms: int) -> int:
        return now_ms // self.feature.tile_ms

    def _counts(self, tiles: NDArray[np.int64], now_ms: int) -> NDArray[Any]:
        """Which tiles an event at `now_ms` sees: the last ones before its own; all of train where it has folds."""
        if self.feature.folds is not None:
            return np.ones(len(tiles), dtype=bool)
        now = self.tile(now_ms)
        first = now - self.feature.tiles if self.feature.tiles is not None else 0
        return (tiles >= first) & (tiles < now)
