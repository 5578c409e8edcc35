"""Steps of an image classifier on fixed global batches, shared out unevenly; rank 0 writes what came out.

python -m tests.ranks.image_program SNAPSHOT WEIGHTS OUT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schemas.snapshot import Snapshot, open_snapshot
from training.batch import Batch
from training.classification import Classification
from training.feed import Feed
from training.models.batch_norm import BatchNorm, average_statistics
from training.optimizers import Optimizers
from training.programs import run
from training.ranks import Ranks
from training.reader import open_part
from training.recipe import read_recipe
from training.step import Stepper
from training.tasks import fresh_model, task_of

CPU = torch.device("cpu")
ROWS = 12


def batches(snapshot: Snapshot, ranks: Ranks) -> list[Batch]:
    """This rank's part of each global batch: 12 rows of one, or 5 and 7 of two, and once none and 12."""
    feed = Feed(open_part(snapshot, "train", columns=("image", "label", "row_id")), batch_size_per_rank=ROWS)
    parts = []
    for batch in feed:
        ends = [0, ROWS] if ranks.size == 1 else [0, 5 * (batch.step != 1), ROWS]
        rows = slice(ends[ranks.rank], ends[ranks.rank + 1])
        columns = {name: batch[name][rows] for name in batch.columns}
        parts.append(Batch(columns=columns, positions=batch.positions[rows], global_rows=ROWS, step=batch.step))
    return parts


def task(snapshot: Snapshot, ranks: Ranks, *settings: str) -> Classification:
    recipe = read_recipe("image_classifier", ["model.dropout=0", *settings])
    made = task_of(fresh_model(snapshot, None, recipe, ranks, CPU), snapshot, None, recipe, ranks, CPU)
    assert isinstance(made, Classification)
    return made


def learned(snapshot: Snapshot, weights: str, ranks: Ranks) -> dict[str, Any]:
    """With kept statistics: the loss of each step, in the second of which a stage more is frozen than in the last."""
    of = task(snapshot, ranks, f"model.pretrained={weights}")
    of.model.train()
    stepper = Stepper(
        task=of, recipe=of.recipe, ranks=ranks, device=CPU,
        optimizers=Optimizers(of.model, of.recipe.optimizer), gradients=ranks.summing(of.model),
    )  # fmt: skip
    losses = []
    for number, batch in enumerate([*batches(snapshot, ranks), *batches(snapshot, ranks)]):
        stepper.optimizers.begin_epoch(number)
        mine = stepper.step([batch], epoch=number, number=number)
        losses.append(float(ranks.sum(torch.tensor(mine, dtype=torch.float64), "loss")) / ROWS)
    of.model.eval()
    metrics = of.evaluate(batches(snapshot, ranks))
    return {"losses": losses, "metrics": metrics.heads["label"], "confusions": metrics.model_dump()["confusions"]}


def statistics(snapshot: Snapshot, ranks: Ranks) -> dict[str, list[list[float]]]:
    """With learned ones: those of the stem on every rank, before and after they were averaged."""
    of = task(snapshot, ranks, "model.pretrained=null", "model.unfreeze_every=0", "model.batch_norm=learned")
    norm = of.model.network.stem.norm
    assert isinstance(norm, BatchNorm)
    with torch.no_grad():
        of.loss_sum(batches(snapshot, ranks)[0], 0)

    def of_every_rank() -> list[list[float]]:
        mine = torch.cat([norm.mean, norm.variance]).detach().numpy()
        return ranks.gather(np.expand_dims(mine, 0), "found").tolist()

    before = of_every_rank()
    average_statistics(of.model, ranks)
    return {"before": before, "after": of_every_rank()}


def main() -> int:
    url, weights, out = sys.argv[1:]

    def work(ranks: Ranks) -> None:
        snapshot = open_snapshot(url)
        found = {"learned": learned(snapshot, weights, ranks), "statistics": statistics(snapshot, ranks)}
        if ranks.rank == 0:
            Path(out).write_text(json.dumps(found))

    return run("images", work)


if __name__ == "__main__":
    sys.exit(main())
