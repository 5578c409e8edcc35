"""All items by inner product with a user: exactly, or by an approximate index whose recall is measured.

Legend: B users, N items, D width, K found for each.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import faiss
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
EXACT_UP_TO = 50_000
_LINKS = 32  # of a node of the HNSW graph
_BUILD_BREADTH = 200
_PROBES_SHARE = 0.05  # of the cells of an inverted file
_MIN_BREADTH = 256


class ItemIndex:
    """The items' vectors; `recall` is the share of the exact best that it finds, 1 where it is exact."""

    def __init__(self, items_ND: Floats, kind: Literal["auto", "flat", "hnsw", "ivf"] = "auto") -> None:
        num_items, width = items_ND.shape
        exact = kind == "flat" or (kind == "auto" and num_items <= EXACT_UP_TO)
        self.kind = "flat" if exact else ("hnsw" if kind == "auto" else kind)
        self._num_items = num_items
        self._index: Any = faiss.IndexFlatIP(width)
        if self.kind == "hnsw":
            self._index = faiss.IndexHNSWFlat(width, _LINKS, faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efConstruction = _BUILD_BREADTH
        elif self.kind == "ivf":
            cells = max(1, min(int(4 * num_items**0.5), num_items // 39))
            self._cells = faiss.IndexFlatIP(width)  # kept: the index holds it by reference alone
            self._index = faiss.IndexIVFFlat(self._cells, width, cells, faiss.METRIC_INNER_PRODUCT)
            self._index.nprobe = max(1, int(_PROBES_SHARE * cells))
            self._index.train(items_ND)
        self._index.add(items_ND)
        self.recall = 1.0

    def search(self, users_BD: Floats, k: int) -> tuple[Floats, NDArray[np.int64]]:
        """Scores and places, shape (B, K), best first; place -1 where the index found no more."""
        k = min(k, self._num_items)
        parameters = None
        if self.kind == "hnsw":
            parameters = cast(Any, faiss).SearchParametersHNSW(efSearch=max(_MIN_BREADTH, 2 * k))
        scores_BK, places_BK = self._index.search(np.ascontiguousarray(users_BD), k, params=parameters)
        return scores_BK, places_BK

    def measure(self, users_BD: Floats, items_ND: Floats, k: int) -> float:
        """Compare with the exact best k of these users; keeps and gives the recall."""
        if self.kind != "flat":
            exact = faiss.IndexFlatIP(items_ND.shape[1])
            exact.add(items_ND)
            k = min(k, self._num_items)
            _, best_BK = exact.search(users_BD, k)
            _, found_BK = self.search(users_BD, k)
            shared = sum(len(np.intersect1d(best, found)) for best, found in zip(best_BK, found_BK, strict=True))
            self.recall = shared / best_BK.size
        return self.recall
