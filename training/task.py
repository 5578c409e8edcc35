"""A task: what a model learns from a batch, and how good it is found to be. The loop knows no more of a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn

from schemas.bundle import SplitMetrics
from training.batch import Batch


class Task(Protocol):
    @property
    def model(self) -> nn.Module: ...

    @property
    def columns(self) -> tuple[str, ...]:
        """What `loss_sum` reads from a batch of train."""

    @property
    def held_out_columns(self) -> tuple[str, ...]:
        """What `evaluate` reads from a batch of valid or test."""

    def loss_sum(self, batch: Batch, epoch: int) -> Tensor:
        """The loss summed over the rank's rows; every parameter gets a gradient, even where there are no rows."""

    def evaluate(self, batches: Iterable[Batch]) -> SplitMetrics:
        """Metrics over all ranks' batches, of which every rank has as many."""

    def chosen(self, metrics: SplitMetrics) -> float:
        """The metric by which the best epoch is chosen."""

    @property
    def more_is_better(self) -> bool:
        """Of that metric."""

    def scalars(self, metrics: SplitMetrics) -> dict[str, float]:
        """What is worth a curve."""
