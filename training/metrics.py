"""Ranking metrics from the rank of every held-out item; each query counts once.

Legend: R held-out rows, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

UNREACHABLE = np.iinfo(np.int32).max
"""The rank of an item that cannot be recommended: it was not in train."""


def ranking_metrics(query_ids: NDArray[np.int64], ranks: NDArray[np.int32], ks: Sequence[int]) -> dict[str, float]:
    """Recall@k, NDCG@k, HR@k and MRR@k, averaged over queries; a query's relevant items are its rows.

    query_ids and ranks have shape (R,); ranks count from 1 in the full ranking of the query's items.
    Recall@k: share of the query's relevant items within the first k. NDCG@k: sum of 1 / log2(rank + 1) over them,
    divided by that of the best order, cut at k (Jarvelin and Kekalainen 2002, binary gains). HR@k: whether there is
    any. MRR@k: 1 / rank of the first one, 0 beyond k.
    """
    queries, query_of_row = np.unique(query_ids, return_inverse=True)
    num_relevant = np.bincount(query_of_row, minlength=len(queries))
    best = np.full(len(queries), UNREACHABLE, dtype=np.int64)
    np.minimum.at(best, query_of_row, ranks)
    metrics: dict[str, float] = {}
    for k in ks:
        within = ranks <= k
        hits = np.bincount(query_of_row, weights=within, minlength=len(queries))
        gains = np.where(within, 1 / np.log2(ranks.astype(np.float64) + 1), 0.0)
        dcg = np.bincount(query_of_row, weights=gains, minlength=len(queries))
        ideal = np.cumsum(1 / np.log2(np.arange(k) + 2))
        metrics[f"recall@{k}"] = float((hits / num_relevant).mean())
        metrics[f"ndcg@{k}"] = float((dcg / ideal[np.minimum(num_relevant, k) - 1]).mean())
        metrics[f"hr@{k}"] = float((hits > 0).mean())
        metrics[f"mrr@{k}"] = float(np.where(best <= k, 1 / best, 0.0).mean())
    return metrics
