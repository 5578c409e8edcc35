"""Evaluate a run's model, and popularity beside it, on a split: alone, or on the ranks that horovodrun starts."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from schemas.bundle import RunEvaluation, SplitMetrics
from schemas.programs import Parser
from schemas.snapshot import open_snapshot
from schemas.storage import absolute
from training.bundle import load_bundle
from training.catalogue import read_catalogue
from training.loop import Trainer
from training.models.popularity import Popularity
from training.programs import device, run, speaker
from training.ranks import Ranks
from training.run_folder import RunFolder


def evaluate(ranks: Ranks, *, folder: RunFolder, split: str) -> None:
    """Write the run's evaluation of `split`, unless it stands already."""
    say = speaker("evaluate", ranks)
    bundle = load_bundle(folder.bundle)
    result = folder.evaluation(split)
    if result is None:
        snapshot = open_snapshot(bundle.manifest.snapshot.url)
        catalogue = read_catalogue(snapshot)
        trainer = Trainer(
            model=bundle.model.to(device()),
            snapshot=snapshot,
            catalogue=catalogue,
            recipe=bundle.recipe,
            ranks=ranks,
            device=device(),
            say=say,
        )
        popularity = Popularity(catalogue.counts).to(device())
        result = RunEvaluation(
            split=split,
            snapshot=bundle.manifest.snapshot,
            query_grain=bundle.manifest.query_grain,
            model=SplitMetrics.model_validate(asdict(trainer.evaluate(split))),
            popularity=SplitMetrics.model_validate(asdict(trainer.evaluate(split, popularity))),
        )
        if ranks.rank == 0:
            folder.save_evaluation(result)
    for name, value in result.model.full.items():
        say(f"{split} {name}: {value:.4f} (popularity {result.popularity.full[name]:.4f})")


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="python -m training.evaluate", description=__doc__)
    command.add_argument("--run", required=True, help="folder of the run")
    command.add_argument("--split", choices=("valid", "test"), default="test", help="which split (test)")
    given = command.parse_args(arguments)
    folder = RunFolder(Path(absolute(given.run)))
    return run("evaluate", lambda ranks: evaluate(ranks, folder=folder, split=given.split))


if __name__ == "__main__":
    sys.exit(main())
