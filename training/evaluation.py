"""Evaluation: every held-out item's rank among all items, and among given negatives, computed over the ranks.

One row in, one rank out; metrics are sums over rows, so the cost is linear and memory is one batch of scores.

Legend: B rows of a batch, R of a rank, D embedding width, N items that can be recommended, K the
largest k, or how many ks there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.bundle import SplitMetrics
from schemas.features import NUM_RESERVED
from schemas.ledger import ROW_ID_MODULUS
from training.batch import Batch, Ragged
from training.metrics import UNREACHABLE, ranking_metrics
from training.models.retriever import Retriever
from training.ranks import Ranks

HELD_OUT_COLUMNS = ("row_id", "query_id", "item_idx", "seen", "negatives")


@dataclass(frozen=True, kw_only=True)
class RankedRows:
    """What became of a rank's rows; each array has shape (R,)."""

    query: NDArray[np.int64]
    full: NDArray[np.int32]
    """Rank of each row's item among all that its user has not seen, from 1."""
    sampled: NDArray[np.int32]
    """The same among the row's given negatives."""
    listed: Tensor
    """How often each item stands within a first k, and in the last row how often it was chosen; shape (K + 1, N)."""
    id_sum: int
    beside: dict[str, NDArray[np.float64]]
    """By name what else was asked of each row, shape (R,)."""


def evaluate(
    model: Retriever,
    batches: Iterable[Batch],
    ranks: Ranks,
    *,
    counts: Tensor,
    ks: Sequence[int],
    device: torch.device,
) -> SplitMetrics:
    """Rank every row of the batches, on all ranks together; `counts`, shape (N,), are of the items in train."""
    rows = ranked(model, batches, num_items=len(counts), ks=ks, device=device)
    return metrics_of(rows, ranks, counts=counts, ks=ks)


@torch.no_grad()
def ranked(
    model: Retriever,
    batches: Iterable[Batch],
    *,
    num_items: int,
    ks: Sequence[int],
    device: torch.device,
    beside: Mapping[str, Callable[[Batch], NDArray[np.float64]]] | None = None,
) -> RankedRows:
    """Rank every row of the rank's batches; 16 bytes a row, and 8 for each number asked for `beside`.

    Items that the user has seen are left out of the full ranking, the row's own item never; ties go to the lower
    index. An item that was not in train cannot be recommended: it counts as relevant and as missed.
    """
    item_idx_N = torch.arange(NUM_RESERVED, NUM_RESERVED + num_items, device=device)
    items_ND = model.items(item_idx_N)
    queries, full, sampled, id_sum = [], [], [], 0
    more: dict[str, list[NDArray[np.float64]]] = {name: [] for name in beside or {}}
    listed = torch.zeros(len(ks) + 1, num_items, dtype=torch.int64)  # the last: how often each was chosen
    for batch in batches:
        if batch.num_rows == 0:
            continue
        users_BD = model.users(batch)
        scores_BN = users_BD @ items_ND.T
        if not bool(torch.isfinite(scores_BN).all()):
            raise ValueError("the model gives scores that are no finite numbers")
        target_B = batch["item_idx"].long() - NUM_RESERVED
        queries.append(batch["query_id"].cpu().numpy())
        full.append(full_ranks(scores_BN, target_B, batch.ragged("seen")).cpu().numpy())
        sampled.append(sampled_ranks(scores_BN, target_B, batch.ragged("negatives")).cpu().numpy())
        top_BK = masked(scores_BN, batch.ragged("seen")).topk(min(max(ks), num_items), dim=1).indices
        for place, k in enumerate(ks):
            listed[place] += torch.bincount(top_BK[:, :k].flatten().cpu(), minlength=num_items)
        listed[-1] += torch.bincount(target_B[target_B >= 0].cpu(), minlength=num_items)
        id_sum += int((batch["row_id"] % ROW_ID_MODULUS).sum())
        for name, values in (beside or {}).items():
            more[name].append(values(batch))
    return RankedRows(
        query=_stacked(queries, np.int64),
        full=_stacked(full, np.int32),
        sampled=_stacked(sampled, np.int32),
        listed=listed,
        id_sum=id_sum,
        beside={name: _stacked(parts, np.float64) for name, parts in more.items()},
    )


def metrics_of(rows: RankedRows, ranks: Ranks, *, counts: Tensor, ks: Sequence[int]) -> SplitMetrics:
    """`full` ranks all items but those seen, `sampled` the row's given negatives; of_lists says what `full` has beside.

    Collective.
    """
    every_query = ranks.gather(rows.query, "query_id")
    every_full = ranks.gather(rows.full, "full_rank")
    every_sampled = ranks.gather(rows.sampled, "sampled_rank")
    full_metrics = ranking_metrics(every_query, every_full, ks)
    full_metrics |= of_lists(ranks.sum(rows.listed, "listed"), counts.cpu(), ks)
    return SplitMetrics(
        full=full_metrics,
        sampled=ranking_metrics(every_query, every_sampled, ks),
        num_rows=len(every_query),
        num_queries=len(np.unique(every_query)),
        row_id_sum=int(ranks.sum(torch.tensor([rows.id_sum]), "row_id_sum")) % ROW_ID_MODULUS,
    )


def of_lists(listed_KN: Tensor, counts_N: Tensor, ks: Sequence[int]) -> dict[str, float]:
    """What the lists are like, from how often each item stands within a first k; the last row is of chosen items.

    Coverage@k: share of items that stand in anyone's list. Novelty@k: mean of -log2 of an item's share of train's rows
    (Zhou et al. 2010, self-information), in bits. Popularity_lift@k: how much more popular in train the listed items
    are than those that users chose, 0 for as popular (Abdollahpouri et al. 2020, section 3).
    """
    share_N = counts_N.clamp(min=1).double() / counts_N.clamp(min=1).sum()
    weights_KN = listed_KN.double() / listed_KN.sum(1, keepdim=True)
    novelty_K, popularity_K = weights_KN @ -share_N.log2(), weights_KN @ share_N
    found = {}
    for place, k in enumerate(ks):
        found[f"coverage@{k}"] = float((listed_KN[place] > 0).double().mean())
        found[f"novelty@{k}"] = float(novelty_K[place])
        found[f"popularity_lift@{k}"] = float(popularity_K[place] / popularity_K[-1] - 1)
    return found


def full_ranks(scores_BN: Tensor, target_B: Tensor, seen: Ragged) -> Tensor:
    """Each row's rank of its item among all unseen items, from 1; int32, shape (B,)."""
    reachable_B = target_B >= 0
    column_B1 = target_B.clamp(min=0).unsqueeze(1)
    own_B1 = scores_BN.gather(1, column_B1)
    return _ranks(masked(scores_BN, seen), own_B1, column_B1, reachable_B)


def sampled_ranks(scores_BN: Tensor, target_B: Tensor, negatives: Ragged) -> Tensor:
    """Each row's rank of its item among its own negatives, from 1, ties against it; int32, shape (B,)."""
    reachable_B = target_B >= 0
    own_B = scores_BN.gather(1, target_B.clamp(min=0).unsqueeze(1)).squeeze(1)
    row = negatives.row_of_value()
    at_least = scores_BN[row, negatives.values.long() - NUM_RESERVED] >= own_B[row]
    rank_B = 1 + torch.zeros_like(target_B).index_add_(0, row, at_least.long())
    return rank_B.masked_fill(~reachable_B, UNREACHABLE).to(torch.int32)


def masked(scores_BN: Tensor, seen: Ragged) -> Tensor:
    """The scores with every row's seen items at minus infinity."""
    known = seen.values >= NUM_RESERVED
    row, column = seen.row_of_value()[known], seen.values[known].long() - NUM_RESERVED
    return scores_BN.index_put((row, column), scores_BN.new_tensor(float("-inf")))


def _ranks(scores_BN: Tensor, own_B1: Tensor, column_B1: Tensor, reachable_B: Tensor) -> Tensor:
    before_BN = torch.arange(scores_BN.shape[1], device=scores_BN.device) < column_B1
    ahead_B = ((scores_BN > own_B1) | ((scores_BN == own_B1) & before_BN)).sum(1)
    return (1 + ahead_B).masked_fill(~reachable_B, UNREACHABLE).to(torch.int32)


def _stacked(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
