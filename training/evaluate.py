"""Evaluate a run's model on a split, a retriever beside popularity: alone, or on ranks."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from schemas.bundle import RunEvaluation, SplitMetrics
from schemas.programs import Parser
from schemas.snapshot import open_snapshot
from schemas.storage import absolute
from training.bootstrap import bootstrap
from training.bundle import load_bundle
from training.loop import Trainer
from training.models.popularity import Popularity
from training.programs import device, run, speaker
from training.ranking import Ranking
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
            model=with_intervals(trainer, split),
            popularity=trainer.evaluate(split, baseline) if baseline is not None else None,
        )
        if ranks.rank == 0:
            folder.save_evaluation(result)
    for name, value in result.model.full.items():
        beside = f" (popularity {result.popularity.full[name]:.4f})" if result.popularity is not None else ""
        say(f"{split} {name}: {value:.4f}{beside}")
    for head, found in result.model.heads.items():
        if ranks.rank == 0:
            show(split, head, found, result.model.intervals.get(head, {}))


def with_intervals(trainer: Trainer, split: str) -> SplitMetrics:
    """The split's metrics; of a ranker, with the interval of each."""
    task = trainer.task
    if not isinstance(task, Ranking):
        return trainer.evaluate(split)
    rows = task.scored(trainer.held_out(split, task))
    metrics = trainer.checked(split, task.metrics(rows))
    intervals = {head: bootstrap(scored, trainer.ranks) for head, scored in rows.heads.items()}
    return metrics.model_copy(update={"intervals": intervals})


def show(split: str, head: str, found: dict[str, float], intervals: dict[str, tuple[float, float]]) -> None:
    table = Table(title=f"{split}: {head}", title_justify="left")
    for name in ("metric", "value", "95 % of samples of users"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name, value in found.items():
        low, high = intervals.get(name, (None, None))
        shown = f"{value:,.0f}" if name in ("rows", "users") else f"{value:.4f}"
        table.add_row(name, shown, f"{low:.4f} to {high:.4f}" if low is not None else "")
    Console().print(table)


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="python -m training.evaluate", description=__doc__)
    command.add_argument("--run", required=True, help="folder of the run")
    command.add_argument("--split", choices=("valid", "test"), default="test", help="which split (test)")
    given = command.parse_args(arguments)
    folder = RunFolder(Path(absolute(given.run)))
    return run("evaluate", lambda ranks: evaluate(ranks, folder=folder, split=given.split))


if __name__ == "__main__":
    sys.exit(main())
