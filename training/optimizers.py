"""What a step changes: dense weights by AdamW, embedding tables by row-wise Adagrad."""

from __future__ import annotations

import torch
from torch import nn

from training.embeddings.files import tables_of
from training.recipe import OptimizerSettings


class Optimizers:
    """`dense` holds state of its own; the tables keep theirs beside their rows."""

    def __init__(self, model: nn.Module, settings: OptimizerSettings) -> None:
        self._model, self._tables, self._settings = model, tables_of(model), settings
        rows = {id(tables.weight) for tables in self._tables}
        self.dense = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if id(parameter) not in rows],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )

    def zero_grad(self) -> None:
        self._model.zero_grad()

    def step(self) -> None:
        """Collective where tables are sharded; the dense gradients are summed over the ranks already."""
        self.dense.step()
        for tables in self._tables:
            tables.update(self._settings.table_learning_rate)
