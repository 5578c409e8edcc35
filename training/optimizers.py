"""What a step changes and by how much: dense weights by AdamW, embedding tables by row-wise Adagrad or Adam."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.embeddings.files import tables_of
from training.embeddings.rows import RowRule, adagrad_, adam_
from training.learning_groups import freeze, groups_of
from training.recipe import OptimizerSettings


class StepTaken(NamedTuple):
    """What a step did to the dense weights; the same on every rank, for their gradients are."""

    gradient_norm: float
    """Before it was clipped."""
    update_ratio: float | None
    """Norm of the change over that of the weights, where it was asked for: it needs a copy of the weights."""


class Optimizers:
    """`dense` holds state of its own; the tables keep theirs beside their rows."""

    def __init__(
        self, model: nn.Module, settings: OptimizerSettings, *, total_steps: int = 0, world_size: int = 1
    ) -> None:
        self._model, self._tables, self._settings = model, tables_of(model), settings
        self._total_steps, self.scale = total_steps, float(world_size) if settings.scale_with_ranks else 1.0
        is_adam = settings.table_optimizer == "adam"
        self._rule: RowRule = partial(adam_, beta2=settings.table_beta2) if is_adam else adagrad_
        rows = {id(tables.weight) for tables in self._tables}
        self._dense_parameters = [parameter for parameter in model.parameters() if id(parameter) not in rows]
        self._groups = groups_of(model, self._dense_parameters)
        self.dense = torch.optim.AdamW(
            [{"params": list(group.parameters)} for group in self._groups],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def begin_epoch(self, epoch: int) -> list[str]:
        """Freeze the groups whose epoch has not come, and give their names."""
        return freeze(self._groups, epoch)

    def zero_grad(self) -> None:
        self._model.zero_grad()
        for tables in self._tables:
            tables.sharded.drop_gradients()

    def step(self, number: int, *, with_ratio: bool = False) -> StepTaken:
        """Take step `number` of the run, from 0.

        Collective where tables are sharded; the dense gradients are summed over the ranks already.
        """
        dense_rate, table_rate = self.rates(number)
        dense = self._dense_parameters
        gradients = [parameter.grad for parameter in dense if parameter.grad is not None]
        gradient_norm = nn.utils.get_total_norm(gradients)
        if self._settings.clip_norm:
            nn.utils.clip_grads_with_norm_(dense, self._settings.clip_norm, gradient_norm)
        before = [parameter.detach().clone() for parameter in dense] if with_ratio else []
        for group, named in zip(self.dense.param_groups, self._groups, strict=True):
            group["lr"] = dense_rate * named.rate
        self.dense.step()
        ratio = _update_ratio(before, dense) if before else None
        for tables in self._tables:
            tables.update(table_rate, self._rule)
        return StepTaken(float(gradient_norm), ratio)

    def rates(self, number: int) -> tuple[float, float]:
        """Learning rates of a step, of the dense weights and of the tables."""
        factor = self.scale * self.factor(number)
        return self._settings.learning_rate * factor, self._settings.table_learning_rate * factor

    def factor(self, number: int) -> float:
        """What the learning rates are multiplied by in a step: the warm-up, then the decay."""
        warmup, decay = self._settings.warmup_steps, self._settings.decay
        if number < warmup:
            return (number + 1) / warmup
        if decay == "none":
            return 1.0
        done = min(1.0, (number - warmup) / max(1, self._total_steps - warmup))
        return 1 - done if decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def _update_ratio(before: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> float:
    changes = [parameter.detach() - old for parameter, old in zip(parameters, before, strict=True)]
    return float(nn.utils.get_total_norm(changes) / nn.utils.get_total_norm(before).clamp(min=1e-12))
