"""One step: forward, backward, exchange, optimizer; and what is said where the loss is no number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from schemas.errors import LossNotFinite
from training.batch import Batch
from training.optimizers import Optimizers
from training.ranks import GradientSum, Ranks
from training.recipe import Recipe
from training.signs import StepSigns
from training.step_clock import TurnTo
from training.task import Task
from training.weighting import LABEL, PROPENSITY

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """Takes steps of a task on this rank, together with the others."""

    task: Task
    recipe: Recipe
    ranks: Ranks
    device: torch.device
    optimizers: Optimizers
    gradients: GradientSum
    turn_to: TurnTo = lambda phase: None
    """Told what the step turns to; a PhaseClock's."""
    signs: StepSigns = field(default_factory=StepSigns)
    """Of the steps that were taken."""

    def step(self, batches: Sequence[Batch], *, epoch: int, number: int) -> list[float]:
        """One step on the gradient of all batches together; give each batch's loss, summed over the rank's rows.

        `meets_no_number` is called where a loss is none, before others learn from it.
        """
        global_rows = sum(batch.global_rows for batch in batches)
        losses = []
        self.optimizers.zero_grad()
        for batch in batches:
            # All a rank draws at random (dropout) depends on its place in the run alone: a resumed run draws the same.
            torch.manual_seed(_seed_of(self.recipe.seed, epoch, batch.step, self.ranks.rank))
            self.gradients.paused = batch is not batches[-1]
            moved = batch.to(self.device)
            self.turn_to("forward")
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
                loss = self.task.loss_sum(moved, epoch)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                self.meets_no_number(batch, epoch, losses[-1])
            # A share of the global mean: summed over the ranks this is the gradient of one large batch.
            self.turn_to("backward")
            (loss / global_rows).backward()
        self.turn_to("exchange")
        self.gradients.wait()
        self.turn_to("optimizer")
        taken = self.optimizers.step(number, with_ratio=self.signs.wants_ratio)
        self.turn_to("rest")
        rows = sum(batch.num_rows for batch in batches)
        self.signs.add(taken.gradient_norm, taken.update_ratio, sum(losses), rows)
        return losses

    def meets_no_number(self, batch: Batch, epoch: int, loss: float) -> None:
        """Raise LossNotFinite naming rows and columns, or the weights."""
        raise LossNotFinite(self._why(batch, epoch, loss))

    def _why(self, batch: Batch, epoch: int, loss: float) -> str:
        """Which rows and columns, or which weights, hold what is no number."""
        where = f"epoch {epoch}, step {batch.step}, rank {self.ranks.rank}: the loss is {loss}"
        may_be_unknown = {*getattr(self.recipe.loss, "heads", {}), PROPENSITY, LABEL}  # which not a number says
        for name, column in batch.columns.items():
            if isinstance(column, Tensor) and column.is_floating_point() and name not in may_be_unknown:
                wrong = ~column.isfinite() if column.dim() == 1 else ~column.isfinite().flatten(1).all(1)
                if bool(wrong.any()):
                    such = ", ".join(map(str, batch["row_id"][wrong][:_SHOWN].tolist()))
                    return (
                        f"{where}: {int(wrong.sum()):,} of its rows have no finite {name!r}, such as row_id {such}. "
                        "Look them up in the snapshot; clip or log1p in the feature set bounds a number."
                    )
        for name, weights in (*self.task.model.named_parameters(), *self.task.model.named_buffers()):
            if weights.is_floating_point() and not bool(weights.isfinite().all()):
                return f"{where}: the weights {name!r} are no longer finite: lower the learning rate, or set clip_norm."
        rows = batch["row_id"][:_SHOWN].tolist()
        return (
            f"{where} on finite inputs and weights, in the batch that begins with row_id {', '.join(map(str, rows))}: "
            "lower the learning rate, or set clip_norm."
        )


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
