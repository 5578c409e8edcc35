"""Signs of training that goes wrong: gradients, a loss that does not fall, dead units, tables that collapse."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import nn

from training.ranks import Ranks
from training.signs import EXPLODES, StepSigns, TableSigns, Units, table_signs

MOST_DEAD = 0.5
LEAST_RANK = 0.1
"""Of the width, or of the rows where a table has fewer."""
VANISHES = 1e-3
"""Times the median norm of the first epoch's steps."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """An epoch's signs, the same on every rank; what could not be judged is left out."""

    loss: float
    thirds: tuple[float, float] | None = None
    norm_mean: float = 0.0
    norm_median: float = 0.0
    norm_largest: float = 0.0
    explosions: int = 0
    steps: int = 0
    update_ratio: float | None = None
    dead: dict[str, float] = field(default_factory=dict)
    tables: dict[str, TableSigns] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """What is worth a curve."""
        found: dict[str, float] = {}
        if self.steps:
            found = {
                "gradient_norm_mean": self.norm_mean,
                "gradient_norm_median": self.norm_median,
                "gradient_norm_largest": self.norm_largest,
            }
        if self.update_ratio is not None:
            found["update_ratio"] = self.update_ratio
        found |= {f"dead_units/{layer}": share for layer, share in self.dead.items()}
        for name, table in self.tables.items():
            found[f"effective_rank/{name}"] = table.effective_rank
            found[f"empty_rows/{name}"] = table.empty_share
        return found

    def warnings(self, *, first_norm: float | None = None, loss_before: float | None = None) -> list[str]:
        """A line a sign; `first_norm` is the first epoch's median norm, `loss_before` the loss of the epoch before."""
        lines = []
        if self.explosions:
            lines.append(
                f"gradients explode: in {self.explosions:,} of {self.steps:,} steps their norm was over {EXPLODES:.0f} "
                f"times the running median (largest {self.norm_largest:.3g}): set optimizer.clip_norm, warm up, or "
                "lower the learning rate."
            )
        if self.steps and (self.norm_median == 0 or self.norm_median < VANISHES * (first_norm or 0)):
            beside = f", in the first epoch {first_norm:.3g}" if first_norm is not None else ""
            lines.append(
                f"gradients vanish: their median norm is {self.norm_median:.3g}{beside}: the dense weights learn "
                "nothing more."
            )
        if loss_before is not None and self.loss >= loss_before:
            lines.append(
                f"the loss does not fall: {self.loss:.5g}, in the epoch before {loss_before:.5g}: a lower learning "
                "rate or optimizer.decay may help, unless this is all that can be learned."
            )
        elif loss_before is None and self.thirds is not None and self.thirds[1] >= self.thirds[0]:
            first, last = self.thirds
            lines.append(
                f"the loss does not fall: {first:.5g} over the first third of the epoch, {last:.5g} over the last: "
                "try other learning rates (headrace lr-range)."
            )
        for layer, share in self.dead.items():
            if share > MOST_DEAD:
                lines.append(
                    f"{share:.0%} of the units of {layer} are dead: zero for every row of a sample of valid. Lower the "
                    "learning rate, or warm up."
                )
        for name, table in self.tables.items():
            if table.effective_rank < LEAST_RANK * table.most:
                lines.append(
                    f"the embedding table {name!r} collapses: its rows span {table.effective_rank:.1f} of {table.most} "
                    "directions. A smaller width would do as well, or its learning rate is too high."
                )
        return lines


def diagnose(loss: float, steps: StepSigns, units: Units, model: nn.Module, ranks: Ranks) -> Diagnosis:
    """An epoch's signs over all ranks; `loss` is its mean. Collective."""
    norms, ratios = np.asarray(steps.norms), np.asarray(steps.ratios)
    return Diagnosis(
        loss=loss,
        thirds=steps.thirds(ranks),
        norm_mean=float(norms.mean()) if len(norms) else 0.0,
        norm_median=float(np.median(norms)) if len(norms) else 0.0,
        norm_largest=float(norms.max()) if len(norms) else 0.0,
        explosions=steps.explosions(),
        steps=len(norms),
        update_ratio=float(ratios.mean()) if len(ratios) else None,
        dead=units.dead_shares(ranks),
        tables=table_signs(model, ranks),
    )
