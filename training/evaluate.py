"""Evaluate a run's model, and popularity beside it, on a split: alone, or on the ranks that horovodrun starts."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from schemas.bundle import RunEvaluation
from schemas.programs import Parser
from schemas.snapshot import open_snapshot
from schemas.storage import absolute
from training.bundle import load_bundle
from training.loop import Trainer
from training.models.popularity import Popularity
from training.programs import device, run, speaker
from training.ranks import Ranks
from training.retrieval import Retrieval
from training.run_folder import RunFolder
from training.tasks import catalogue_of, task_of


def evaluate(ranks: Ranks, *, folder: RunFolder, split: str) -> None:
    """Write the run's evaluation of `split`, unless it stands already."""
    say = speaker("evaluate", ranks)
    bundle = load_bundle(folder.bundle, ranks)
    result = folder.evaluation(split)
    if result is None:
        snapshot = open_snapshot(bundle.manifest.snapshot.url)
        catalogue = catalogue_of(snapshot)
        task = task_of(bundle.model.to(device()), snapshot, catalogue, bundle.recipe, ranks, device())
        trainer = Trainer(task=task, snapshot=snapshot, recipe=bundle.recipe, ranks=ranks, device=device(), say=say)
        baseline = None
        if isinstance(task, Retrieval):
            baseline = replace(task, model=Popularity(task.catalogue.counts).to(device()))
        result = RunEvaluation(
            split=split,
            snapshot=bundle.manifest.snapshot,
            query_grain=bundle.manifest.query_grain,
            model=trainer.evaluate(split),
            popularity=trainer.evaluate(split, baseline) if baseline is not None else None,
        )
        if ranks.rank == 0:
            folder.save_evaluation(result)
    for name, value in result.model.full.items():
        beside = f" (popularity {result.popularity.full[name]:.4f})" if result.popularity is not None else ""
        say(f"{split} {name}: {value:.4f}{beside}")
    for head, found in result.model.heads.items():
        say(f"{split} {head}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="python -m training.evaluate", description=__doc__)
    command.add_argument("--run", required=True, help="folder of the run")
    command.add_argument("--split", choices=("valid", "test"), default="test", help="which split (test)")
    given = command.parse_args(arguments)
    folder = RunFolder(Path(absolute(given.run)))
    return run("evaluate", lambda ranks: evaluate(ranks, folder=folder, split=given.split))


if __name__ == "__main__":
    sys.exit(main())
