"""A warm start of sharded tables over the ranks; rank 0 writes the logits of all rows.

python -m tests.ranks.warm_start_program SNAPSHOT BUNDLE OUT.json

{rank} in BUNDLE stands for the rank's number: folders that not all hosts have.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch

from schemas.snapshot import open_snapshot
from training.batch import Batch, to_columns
from training.bundle import read_manifest
from training.programs import run
from training.ranks import Ranks
from training.recipe import Recipe
from training.tasks import catalogue_of, fresh_model
from training.warm_start import plan_warm_start


def logits(ranks: Ranks, url: str, place: str) -> list[float]:
    snapshot, recipe = open_snapshot(url), Recipe.model_validate(read_manifest(Path(place.format(rank=0))).recipe)
    bundle = Path(place.format(rank=ranks.rank))
    model = fresh_model(snapshot, catalogue_of(snapshot), recipe, ranks, torch.device("cpu"))
    start = plan_warm_start(bundle, snapshot, recipe, ranks)
    start.fill(model, start.match(model))
    rows = pq.read_table(Path(url) / "valid" / "part-00000.parquet").select(list(model.columns))
    batch = Batch(
        columns=to_columns(rows, snapshot.transform.lengths),
        positions=torch.arange(rows.num_rows),
        global_rows=rows.num_rows,
        step=0,
    )
    with torch.no_grad():
        found: list[float] = model.eval()(batch).flatten().tolist()
    return found


def main() -> int:
    url, bundle, out = sys.argv[1:]

    def work(ranks: Ranks) -> None:
        found = logits(ranks, url, bundle)
        if ranks.rank == 0:
            Path(out).write_text(json.dumps(found))

    return run("warm_start", work)


if __name__ == "__main__":
    sys.exit(main())
