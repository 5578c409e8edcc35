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
from schemas.errors import UserError
from schemas.features import NUM_RESERVED
from schemas.ledger import ROW_ID_MODULUS
from training.batch import Batch
from training.click_metrics import Scored, click_metrics
from training.models.ranker import Ranker
from training.ranks import Ranks
from training.recipe import CHOOSING, HeadsSettings, Recipe


@dataclass(frozen=True)
class ScoredRows:
    """A rank's held-out rows by head, those left out whose label is not known; and the count and ids of all."""

    heads: dict[str, Scored]
    count: int
    id_sum: int


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

    def evaluate(self, batches: Iterable[Batch]) -> SplitMetrics:
        rows = self.scored(batches)
        return self.metrics(rows)

    def metrics(self, rows: ScoredRows) -> SplitMetrics:
        found = {}
        for name, scored in rows.heads.items():
            try:
                found[name] = click_metrics(scored, self.ranks)
            except ValueError as error:  # on every rank alike
                raise UserError(f"head {name!r}: {error}.") from None
        count, ids = self.ranks.sum(torch.tensor([rows.count, rows.id_sum]), "held_out_rows").tolist()
        return SplitMetrics(num_rows=count, row_id_sum=ids % ROW_ID_MODULUS, heads=found)

    @torch.no_grad()
    def scored(self, batches: Iterable[Batch]) -> ScoredRows:
        """What the model says of each of this rank's rows, and what came of it; 8 bytes a row and head, 8 a row."""
        probabilities, labels, users, count, id_sum = [], [], [], 0, 0
        for batch in batches:  # also those without rows: the look-up of sharded tables waits for every rank
            probabilities.append(self.model(batch).sigmoid().float().cpu().numpy())
            labels.append(self._labels(batch).cpu().numpy())
            users.append(users_of(batch).cpu().numpy())
            count += batch.num_rows
            id_sum += int((batch["row_id"] % ROW_ID_MODULUS).sum())
        probability_RT, label_RT, user_R = (np.concatenate(parts) for parts in (probabilities, labels, users))
        heads = {}
        for place, name in enumerate(self.heads):
            known = np.isfinite(label_RT[:, place])
            heads[name] = Scored(
                probability=probability_RT[known, place], label=label_RT[known, place], group=user_R[known]
            )
        return ScoredRows(heads, count, id_sum)

    def chosen(self, metrics: SplitMetrics) -> float:
        return metrics.heads[next(iter(self.heads))][self.recipe.chosen_by]

    @property
    def more_is_better(self) -> bool:
        return CHOOSING[self.recipe.chosen_by]

    def scalars(self, metrics: SplitMetrics) -> dict[str, float]:
        return {f"{head}/{name}": value for head, found in metrics.heads.items() for name, value in found.items()}

    def _labels(self, batch: Batch) -> Tensor:
        return torch.stack([batch[name] for name in self.heads], dim=1)


def users_of(batch: Batch) -> Tensor:
    """The user of each row, int64; who is not known, or new, is a user for each row."""
    alone = batch["row_id"] | (1 << 62)
    if "user_idx" not in batch.columns:
        return alone
    user = batch["user_idx"].long()
    return torch.where(user < NUM_RESERVED, alone, user)
