"""What a step changes and by how much: dense weights by AdamW, embedding tables by row-wise Adagrad."""

from __future__ import annotations

import math

import torch
from torch import nn

from training.embeddings.files import tables_of
from training.recipe import OptimizerSettings


class Optimizers:
    """`dense` holds state of its own; the tables keep theirs beside their rows."""

    def __init__(
        self, model: nn.Module, settings: OptimizerSettings, *, total_steps: int = 0, world_size: int = 1
    ) -> None:
        self._model, self._tables, self._settings = model, tables_of(model), settings
        self._total_steps, self._scale = total_steps, float(world_size) if settings.scale_with_ranks else 1.0
        rows = {id(tables.weight) for tables in self._tables}
        self._dense_parameters = [parameter for parameter in model.parameters() if id(parameter) not in rows]
        self.dense = torch.optim.AdamW(
            self._dense_parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def zero_grad(self) -> None:
        self._model.zero_grad()
        for tables in self._tables:
            tables.sharded.drop_gradients()

    def step(self, number: int) -> None:
        """Take step `number` of the run, from 0.

        Collective where tables are sharded; the dense gradients are summed over the ranks already.
        """
        factor = self._scale * self.factor(number)
        if self._settings.clip_norm:
            nn.utils.clip_grad_norm_(self._dense_parameters, self._settings.clip_norm)
        for group in self.dense.param_groups:
            group["lr"] = self._settings.learning_rate * factor
        self.dense.step()
        for tables in self._tables:
            tables.update(self._settings.table_learning_rate * factor)

    def factor(self, number: int) -> float:
        """What the learning rates are multiplied by in a step: the warm-up, then the decay."""
        warmup, decay = self._settings.warmup_steps, self._settings.decay
        if number < warmup:
            return (number + 1) / warmup
        if decay == "none":
            return 1.0
        done = min(1.0, (number - warmup) / max(1, self._total_steps - warmup))
        return 1 - done if decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
