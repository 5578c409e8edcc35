"""Retrieval as a task: a row's item against other items, then its rank among all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from schemas.bundle import SplitMetrics
from schemas.features import NULL_IDX, NUM_RESERVED, PADDING_IDX
from schemas.snapshot import Snapshot
from training.batch import Batch
from training.catalogue import Catalogue
from training.evaluation import HELD_OUT_COLUMNS, RankedRows, metrics_of, ranked
from training.history_augmentation import augmented
from training.losses import ItemSampler, bpr, counted, sampled_softmax
from training.models.retriever import Retriever
from training.models.sasrec import SASRec
from training.positions import following, last_rows, loss_of_positions, of_last_rows, only_rows
from training.ranks import Ranks
from training.recipe import AugmentSettings, LossSettings, ModelSettings, Recipe
from training.weighting import LABEL, PROPENSITY, by_propensity, not_to_recommend


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    model: nn.Module
    snapshot: Snapshot
    catalogue: Catalogue
    recipe: Recipe
    ranks: Ranks
    device: torch.device

    @property
    def retriever(self) -> Retriever:
        return cast(Retriever, self.model)

    @property
    def columns(self) -> tuple[str, ...]:
        settings = self._loss_settings
        of_user = ("user_idx", "row_id") if settings.rows == "last_of_user" else ()
        of_weights = ((PROPENSITY,) if settings.propensity else ()) + ((LABEL,) if settings.negative_rows else ())
        of_history = (("row_id",) if self._augment else ()) + (("history",) if settings.exclude_history else ())
        return tuple(dict.fromkeys((*self.retriever.columns, "item_idx", *of_user, *of_weights, *of_history)))

    @property
    def held_out_columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.retriever.columns, *HELD_OUT_COLUMNS)))

    @cached_property
    def sampler(self) -> ItemSampler:
        counts, settings = self.catalogue.counts.to(self.device), self._loss_settings
        return ItemSampler(counts, settings.sampling_exponent, seed=self.recipe.seed)

    def loss_sum(self, batch: Batch, epoch: int) -> Tensor:
        if self._loss_settings.positions == "all":
            return self._loss_of_all_positions(batch, epoch)
        settings = self._loss_settings
        weight_B = by_propensity(batch, settings.propensity, self.ranks) if settings.propensity else None
        if settings.negative_rows is not None and settings.negative_rows.weight == 0:
            kept_B = batch[LABEL] >= settings.negative_rows.below  # the others teach nothing, so nothing is scored
            batch, weight_B = only_rows(batch, kept_B), weight_B[kept_B] if weight_B is not None else None
        if batch.num_rows == 0:
            return self._nothing()
        excluded_BL = batch["history"] if settings.exclude_history else None
        if self._augment is not None:
            # A bag leaves out what is masked; in a sequence the index of null, which no item has, holds its place.
            mask = NULL_IDX if isinstance(self.model, SASRec) else PADDING_IDX
            batch = augmented(batch, self._augment, mask=mask, seed=self.recipe.seed, epoch=epoch)
        loss_B = self._loss(batch, epoch, excluded_BL)
        if settings.negative_rows is not None:
            loss_B = not_to_recommend(loss_B, batch, settings.negative_rows)
        return counted(loss_B if weight_B is None else loss_B * weight_B, batch).sum()

    def _loss_of_all_positions(self, batch: Batch, epoch: int) -> Tensor:
        """Summed, and scaled so that what the step makes of it, a mean over rows, is the mean over all positions."""
        sequences = cast(SASRec, self.model)
        if self._last_rows is not None:
            batch = of_last_rows(batch, self._last_rows)
        following_BL = following(batch)
        count = torch.tensor([int((following_BL >= NUM_RESERVED).sum())])
        total = int(self.ranks.sum(count, "positions_counted"))  # also where this rank has none
        if not int(count):
            return self._nothing()
        settings = self._loss_settings
        loss = loss_of_positions(
            sequences,
            batch,
            following_BL,
            self.sampler,
            num_sampled=settings.num_sampled,
            epoch=epoch,
            temperature=settings.temperature,
        )
        return loss * (batch.global_rows / total)

    @cached_property
    def _last_rows(self) -> Tensor | None:
        if self._loss_settings.rows == "every":
            return None
        return last_rows(self.snapshot).to(self.device)

    def _nothing(self) -> Tensor:
        """Of a rank without rows: every parameter gets a gradient of zeros."""
        return torch.stack([(parameter * 0).sum() for parameter in self.model.parameters()]).sum()

    def _loss(self, batch: Batch, epoch: int, excluded_BL: Tensor | None) -> Tensor:
        """One value a row."""
        settings = self._loss_settings
        if settings.name == "bpr":
            return bpr(self.retriever, batch, self.sampler, l2=settings.l2, epoch=epoch)
        return sampled_softmax(
            self.retriever,
            batch,
            self.sampler,
            num_sampled=settings.num_sampled,
            epoch=epoch,
            temperature=settings.temperature,
            excluded_BL=excluded_BL,
        )

    def evaluate(self, batches: Iterable[Batch]) -> SplitMetrics:
        return self.metrics(self.ranked(batches))

    def ranked(
        self, batches: Iterable[Batch], beside: Mapping[str, Callable[[Batch], NDArray[np.float64]]] | None = None
    ) -> RankedRows:
        """The ranks of this rank's rows; `beside` names what else is to be kept of each."""
        num_items, ks = self.catalogue.num_items, self.recipe.ks
        return ranked(self.retriever, batches, num_items=num_items, ks=ks, device=self.device, beside=beside)

    def metrics(self, rows: RankedRows) -> SplitMetrics:
        return metrics_of(rows, self.ranks, counts=self.catalogue.counts, ks=self.recipe.ks)

    def chosen(self, metrics: SplitMetrics) -> float:
        return metrics.full[self.recipe.chosen_by]

    @property
    def more_is_better(self) -> bool:
        return True

    def scalars(self, metrics: SplitMetrics) -> dict[str, float]:
        return metrics.full

    @property
    def _augment(self) -> AugmentSettings | None:
        assert isinstance(self.recipe.model, ModelSettings)
        return self.recipe.model.augment

    @property
    def _loss_settings(self) -> LossSettings:
        assert isinstance(self.recipe.loss, LossSettings)
        return self.recipe.loss
