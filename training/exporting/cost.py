"""What smaller tables save in memory and cost in quality, on every row of valid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from schemas.export import TableCost
from schemas.snapshot import Snapshot
from training.embeddings.quantised import QuantisedTables
from training.loop import Trainer
from training.models.ranker import Ranker
from training.ranking import Ranking, ScoredRows
from training.ranks import OneRank
from training.recipe import Recipe
from training.tasks import task_of

_CPU = torch.device("cpu")
METRICS = ("auc", "log_loss")


def table_cost(
    before: Ranker, after: Ranker, *, snapshot: Snapshot | None, recipe: Recipe, say: Callable[[str], None]
) -> TableCost:
    """Memory, and on valid, where it can be read, probabilities and metrics of both; about 16 bytes a row and head."""
    tables = after.embeddings
    assert isinstance(tables, QuantisedTables)
    cost = TableCost(
        bytes=tables.bytes_by_table(), float32_bytes=QuantisedTables.of(before.embeddings, "float32").bytes_by_table()
    )
    if snapshot is None:
        return cost
    task = task_of(before, snapshot, None, recipe, OneRank(), _CPU)
    assert isinstance(task, Ranking)
    trainer = Trainer(task=task, snapshot=snapshot, recipe=recipe, ranks=OneRank(), device=_CPU, say=say)

    def scored(model: Ranker) -> ScoredRows:
        other = replace(task, model=model)
        return other.scored(trainer.held_out("valid", other))

    exact, rounded = scored(before), scored(after)
    change = {
        head: np.abs(exact.heads[head].probability.astype(np.float64) - rounded.heads[head].probability)
        for head in exact.heads
    }
    return cost.model_copy(
        update={
            "rows": exact.count,
            "largest_difference": {head: float(values.max(initial=0)) for head, values in change.items()},
            "mean_difference": {head: float(values.mean()) if len(values) else 0.0 for head, values in change.items()},
            "before": _shown(trainer.checked("valid", task.metrics(exact)).heads),
            "after": _shown(trainer.checked("valid", task.metrics(rounded)).heads),
        }
    )


def lines_of(cost: TableCost, precision: str) -> list[str]:
    """The cost as a person reads it, the largest tables first."""
    wide = max((len(name) for name in cost.bytes), default=0)
    lines = [f"{'table':<{wide}} {'MB float32':>11} {'MB ' + precision:>11}"]
    for name in sorted(cost.bytes, key=lambda name: -cost.float32_bytes[name]):
        lines.append(f"{name:<{wide}} {cost.float32_bytes[name] / 1e6:>11,.2f} {cost.bytes[name] / 1e6:>11,.2f}")
    whole, now = sum(cost.float32_bytes.values()), sum(cost.bytes.values())
    lines.append(f"tables take {now / 1e6:,.2f} MB instead of {whole / 1e6:,.2f} ({now / max(whole, 1):.0%})")
    for head, difference in cost.largest_difference.items():
        metrics = ", ".join(f"{name} {cost.before[head][name]:.5f} -> {cost.after[head][name]:.5f}" for name in METRICS)
        lines.append(
            f"{head} on {cost.rows:,} rows of valid: {metrics}; probabilities differ by "
            f"{cost.mean_difference[head]:.2g} on average, {difference:.2g} at most"
        )
    return lines


def _shown(heads: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {head: {name: found[name] for name in METRICS} for head, found in heads.items()}
