"""Ranking as a task: what comes of an impression (a click, a long view, a like), a head for each.

Legend: B rows of a batch, T heads, R rows of a rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.bundle import SplitMetrics
from schemas.ledger import ROW_ID_MODULUS
from training.batch import Batch
from training.click_metrics import Scored, click_metrics
from training.models.ranker import Ranker
from training.ranks import Ranks
from training.recipe import CHOOSING, HeadsSettings, Recipe


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """`available` are the columns of the snapshot's splits: what is missing of items comes from the model's table."""

    model: Ranker
    recipe: Recipe
    ranks: Ranks
    available: frozenset[str]

    @property
    def heads(self) -> dict[str, float]:
        """Weight by label."""
        assert isinstance(self.recipe.loss, HeadsSettings)
        return self.recipe.loss.heads

    @property
    def columns(self) -> tuple[str, ...]:
        inputs = [name for name in self.model.columns if name in self.available]
        return tuple(dict.fromkeys((*inputs, *self.heads, *({"weight"} & self.available))))

    @property
    def held_out_columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.columns, "row_id", *({"user_idx"} & self.available))))

    def loss_sum(self, batch: Batch, epoch: int) -> Tensor:
        """Binary cross-entropy summed over rows and heads; a label that is not known (NaN) counts for nothing."""
        logits_BT, labels_BT = self.model(batch).float(), self._labels(batch)
        known_BT = labels_BT.isfinite()
        loss_BT = F.binary_cross_entropy_with_logits(logits_BT, labels_BT.nan_to_num(), reduction="none")
        loss_BT = loss_BT * known_BT * loss_BT.new_tensor(list(self.heads.values()))
        if "weight" in batch.columns:
            loss_BT = loss_BT * batch["weight"].unsqueeze(1)
        return loss_BT.sum()

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> SplitMetrics:
        probabilities, labels, groups, row_ids, id_sum = [], [], [], 0, 0
        for batch in batches:  # also those without rows: the look-up of sharded tables waits for every rank
            probabilities.append(self.model(batch).sigmoid().float().cpu().numpy())
            labels.append(self._labels(batch).cpu().numpy())
            users = batch["user_idx"] if "user_idx" in batch.columns else batch["row_id"]
            groups.append(users.cpu().numpy().astype(np.int64))
            row_ids += batch.num_rows
            id_sum += int((batch["row_id"] % ROW_ID_MODULUS).sum())
        probability_RT, label_RT, group_R = (np.concatenate(parts) for parts in (probabilities, labels, groups))
        found = {}
        for place, name in enumerate(self.heads):
            known = np.isfinite(label_RT[:, place])
            scored = Scored(
                probability=probability_RT[known, place], label=label_RT[known, place], group=group_R[known]
            )
            found[name] = click_metrics(scored, self.ranks)
        rows, ids = self.ranks.sum(torch.tensor([row_ids, id_sum]), "held_out_rows").tolist()
        return SplitMetrics(num_rows=rows, row_id_sum=ids % ROW_ID_MODULUS, heads=found)

    def chosen(self, metrics: SplitMetrics) -> float:
        return metrics.heads[next(iter(self.heads))][self.recipe.chosen_by]

    @property
    def more_is_better(self) -> bool:
        return CHOOSING[self.recipe.chosen_by]

    def scalars(self, metrics: SplitMetrics) -> dict[str, float]:
        return {f"{head}/{name}": value for head, found in metrics.heads.items() for name, value in found.items()}

    def _labels(self, batch: Batch) -> Tensor:
        return torch.stack([batch[name] for name in self.heads], dim=1)
