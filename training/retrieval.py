"""Retrieval as a task: a row's item against other items, then its rank among all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from schemas.bundle import SplitMetrics
from training.batch import Batch
from training.catalogue import Catalogue
from training.evaluation import HELD_OUT_COLUMNS, evaluate
from training.losses import ItemSampler, bpr, counted, sampled_softmax
from training.models.retriever import Retriever
from training.ranks import Ranks
from training.recipe import LossSettings, Recipe


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    model: nn.Module
    catalogue: Catalogue
    recipe: Recipe
    ranks: Ranks
    device: torch.device

    @property
    def retriever(self) -> Retriever:
        return cast(Retriever, self.model)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.retriever.columns, "item_idx")))

    @property
    def held_out_columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.retriever.columns, *HELD_OUT_COLUMNS)))

    @cached_property
    def sampler(self) -> ItemSampler:
        counts, settings = self.catalogue.counts.to(self.device), self._loss_settings
        return ItemSampler(counts, settings.sampling_exponent, seed=self.recipe.seed)

    def loss_sum(self, batch: Batch, epoch: int) -> Tensor:
        if batch.num_rows == 0:
            return torch.stack([(parameter * 0).sum() for parameter in self.model.parameters()]).sum()
        return counted(self._loss(batch, epoch), batch).sum()

    def _loss(self, batch: Batch, epoch: int) -> Tensor:
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
        )

    def evaluate(self, batches: Iterable[Batch]) -> SplitMetrics:
        return evaluate(
            self.retriever,
            batches,
            self.ranks,
            counts=self.catalogue.counts,
            ks=self.recipe.ks,
            device=self.device,
        )

    def chosen(self, metrics: SplitMetrics) -> float:
        return metrics.full[self.recipe.chosen_by]

    @property
    def more_is_better(self) -> bool:
        return True

    def scalars(self, metrics: SplitMetrics) -> dict[str, float]:
        return metrics.full

    @property
    def _loss_settings(self) -> LossSettings:
        assert isinstance(self.recipe.loss, LossSettings)
        return self.recipe.loss
