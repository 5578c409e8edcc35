"""Ranking as a task: what comes of an impression (a click, a long view, a like), a head for each.

Legend: B rows of a batch, T heads, R rows of a rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
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
from training.weighting import PROPENSITY, by_propensity


@dataclass(frozen=True)
class ScoredRows:
    """A rank's held-out rows by head, those left out whose label is not known; and the count and ids of all."""

    heads: dict[str, Scored]
    count: int
    id_sum: int
    known: dict[str, NDArray[np.bool_]]
    """By head, which of all rows have a label, shape (R,)."""
    beside: dict[str, NDArray[np.float64]]
    """Of all rows what was asked for beside, shape (R,)."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """`available` are the columns of the snapshot's splits: what is missing of items comes from the model's table."""

    model: Ranker
    recipe: Recipe
    ranks: Ranks
    available: frozenset[str]

    @property
    def settings(self) -> HeadsSettings:
        assert isinstance(self.recipe.loss, HeadsSettings)
        return self.recipe.loss

    @property
    def heads(self) -> dict[str, float]:
        """Weight by label."""
        return self.settings.heads

    @property
    def columns(self) -> tuple[str, ...]:
        of_weights = ({"weight"} & self.available) | ({PROPENSITY} if self.settings.propensity else set())
        return tuple(dict.fromkeys((*self._inputs, *self.heads, *sorted(of_weights))))

    @property
    def held_out_columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._inputs, *self.heads, "row_id", *({"user_idx"} & self.available))))

    @property
    def _inputs(self) -> list[str]:
        return [name for name in self.model.columns if name in self.available]

    def loss_sum(self, batch: Batch, epoch: int) -> Tensor:
        """Binary cross-entropy summed over rows and heads; a label that is not known (NaN) counts for nothing."""
        logits_BT, labels_BT = self.model(batch).float(), self._labels(batch)
        known_BT = labels_BT.isfinite()
        loss_BT = F.binary_cross_entropy_with_logits(logits_BT, labels_BT.nan_to_num(), reduction="none")
        loss_BT = loss_BT * known_BT * loss_BT.new_tensor(list(self.heads.values()))
        if "weight" in batch.columns:
            loss_BT = loss_BT * batch["weight"].unsqueeze(1)
        if self.settings.propensity is not None:
            loss_BT = loss_BT * by_propensity(batch, self.settings.propensity, self.ranks).unsqueeze(1)
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
    def scored(
        self, batches: Iterable[Batch], beside: Mapping[str, Callable[[Batch], NDArray[np.float64]]] | None = None
    ) -> ScoredRows:
        """What the model says of each of this rank's rows, and what came of it; 9 bytes a row and head, 8 a row.

        `beside` names what else is to be kept of each batch's rows, 8 bytes a row.
        """
        probabilities, labels, users, count, id_sum = [], [], [], 0, 0
        more: dict[str, list[NDArray[np.float64]]] = {name: [] for name in beside or {}}
        for batch in batches:  # also those without rows: the look-up of sharded tables waits for every rank
            probabilities.append(self.model(batch).sigmoid().float().cpu().numpy())
            labels.append(self._labels(batch).cpu().numpy())
            users.append(users_of(batch).cpu().numpy())
            for name, values in (beside or {}).items():
                more[name].append(values(batch))
            count += batch.num_rows
            id_sum += int((batch["row_id"] % ROW_ID_MODULUS).sum())
        probability_RT, label_RT, user_R = (np.concatenate(parts) for parts in (probabilities, labels, users))
        heads, all_known = {}, {}
        for place, name in enumerate(self.heads):
            known = all_known[name] = np.isfinite(label_RT[:, place])
            heads[name] = Scored(
                probability=probability_RT[known, place], label=label_RT[known, place], group=user_R[known]
            )
        columns = {name: np.concatenate(parts) for name, parts in more.items()}
        return ScoredRows(heads, count, id_sum, known=all_known, beside=columns)

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
