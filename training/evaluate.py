"""Evaluate a run's model on a split, a retriever beside popularity: alone, or on ranks.

The split is of the run's own snapshot, or of a later one (training/later_snapshot.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from schemas.bundle import RunEvaluation, SplitMetrics
from schemas.errors import UserError
from schemas.manifest import Parent
from schemas.programs import Parser
from schemas.snapshot import open_snapshot
from schemas.storage import absolute
from training.bootstrap import bootstrap, bootstrap_curve
from training.bundle import Bundle, bundle_digest, load_bundle
from training.checkpoint import write_json
from training.confusion import confusion_table
from training.evaluation_page import page
from training.evaluation_tables import show, show_slices
from training.later_snapshot import task_on
from training.loop import Trainer
from training.models.image_classifier import ImageClassifier
from training.models.popularity import Popularity
from training.models.ranker import Ranker
from training.programs import device, run, speaker
from training.ranking import Ranking
from training.ranks import Ranks
from training.retrieval import Retrieval
from training.retrieval_slices import FULL, of_retriever
from training.run_folder import RunFolder
from training.slices import Slicer, cut, named, slice_metrics, slicers, worst_first
from training.tasks import catalogue_of, task_of
from training.train import parent_of


def evaluate(ranks: Ranks, *, folder: RunFolder, split: str, columns: Sequence[str] = ()) -> None:
    """Write the run's evaluation of `split`, of with slices by these columns, unless it stands already."""
    say = speaker("evaluate", ranks)
    bundle = load_bundle(folder.bundle, ranks)
    _check_slices(bundle, columns)
    result = folder.evaluation(split)
    # The first rank alone reads the bundle again for its digest.
    digest = bundle_digest(folder.bundle) if ranks.rank == 0 else None
    is_its_own = digest is not None and result is not None and result.bundle == digest
    of_this_bundle = ranks.sum(torch.tensor([int(is_its_own)]), "evaluations_of_this_bundle").item()
    is_ranker = isinstance(bundle.model, Ranker)
    if not of_this_bundle or result is None or not is_enough(result, columns, is_ranker=is_ranker):
        snapshot = open_snapshot(bundle.manifest.snapshot.url)
        task = task_of(bundle.model.to(device()), snapshot, catalogue_of(snapshot), bundle.recipe, ranks, device())
        trainer = Trainer(task=task, snapshot=snapshot, recipe=bundle.recipe, ranks=ranks, device=device(), say=say)
        # Slices of before stay: another column adds to them.
        result = evaluated(trainer, split, [*_sliced_by(result), *columns], bundle.manifest.snapshot)
        result = result.model_copy(update={"bundle": digest})
        if ranks.rank == 0:
            folder.save_evaluation(result)
    report(ranks, say, split, result)
    if ranks.rank == 0 and result.model.curves:
        say(f"page: {folder.save_evaluation_page(split, page(result))}")


def evaluate_on_later(
    ranks: Ranks, *, folder: RunFolder, split: str, snapshot_url: str, out: Path, columns: Sequence[str] = ()
) -> None:
    """Write to `out` how the run's model does on `split` of a later snapshot."""
    say = speaker("evaluate", ranks)
    bundle = load_bundle(folder.bundle, ranks)
    _check_slices(bundle, columns)
    snapshot = open_snapshot(snapshot_url)
    task, notes = task_on(bundle, folder.bundle, snapshot, ranks, device())
    trainer = Trainer(task=task, snapshot=snapshot, recipe=bundle.recipe, ranks=ranks, device=device(), say=say)
    result = evaluated(trainer, split, columns, parent_of(snapshot)).model_copy(update={"notes": tuple(notes)})
    for note in notes:
        say(note)
    report(ranks, say, split, result)
    if ranks.rank == 0:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            judged = result.model_copy(update={"bundle": bundle_digest(folder.bundle)})
            write_json(out, judged.model_dump(mode="json"))
        except OSError as error:
            raise UserError(f"--out {out} cannot be written: {error.strerror}.") from None
        say(f"wrote {out}")


def evaluated(trainer: Trainer, split: str, columns: Sequence[str], snapshot: Parent) -> RunEvaluation:
    """What the trainer's task makes of a split of its snapshot, with slices by these columns."""
    task, stored, baseline = trainer.task, trainer.snapshot, None
    if isinstance(task, Ranking):
        found = of_ranker(trainer, task, split, slicers(columns, stored, split, catalogue_of(stored)))
    elif isinstance(task, Retrieval):
        found = of_retriever(trainer, task, split, slicers(columns, stored, split, task.catalogue))
        baseline = replace(task, model=Popularity(task.catalogue.counts).to(trainer.device))
    else:
        found = trainer.evaluate(split)
    return RunEvaluation(
        split=split,
        snapshot=snapshot,
        query_grain=trainer.snapshot.manifest.query_grain,
        model=found,
        popularity=trainer.evaluate(split, baseline) if baseline is not None else None,
    )


def report(ranks: Ranks, say: Callable[[str], None], split: str, result: RunEvaluation) -> None:
    for name, value in result.model.full.items():
        beside = f" (popularity {result.popularity.full[name]:.4f})" if result.popularity is not None else ""
        say(f"{split} {name}: {value:.4f}{beside}")
    if ranks.rank != 0:
        return
    for head in result.model.heads:
        show(split, head, result.model)
    if FULL in result.model.slices:
        show_slices(result.model.slices[FULL])
    if result.model.confusions:
        Console(markup=False, emoji=False).print(confusion_table(split, result.model.confusions))


def _check_slices(bundle: Bundle, columns: Sequence[str]) -> None:
    if columns and isinstance(bundle.model, ImageClassifier):
        raise UserError(f"{bundle.recipe.model.name} has no slices: --slice is for rankers and retrievers.")


def is_enough(result: RunEvaluation, columns: Sequence[str], *, is_ranker: bool) -> bool:
    """Whether what stands has all that is asked for; rankers' evaluations of a former version lack curves."""
    return (bool(result.model.curves) or not is_ranker) and {*columns} <= {*_sliced_by(result)}


def of_ranker(trainer: Trainer, task: Ranking, split: str, slicing: Sequence[Slicer]) -> SplitMetrics:
    """The split's metrics with the interval of each, calibration curves, and slices."""
    ranks, snapshot = trainer.ranks, trainer.snapshot
    reads = tuple(column for slicer in slicing for column in slicer.reads)
    rows = task.scored(trainer.held_out(split, task, reads), {slicer.name: slicer.values for slicer in slicing})
    metrics = trainer.checked(split, task.metrics(rows))
    cuts = [cut(slicer, rows.beside[slicer.name], ranks) for slicer in slicing]
    intervals, curves, slices = {}, {}, {}
    for head, scored in rows.heads.items():
        curves[head], of_ece = bootstrap_curve(scored, ranks)
        intervals[head] = bootstrap(scored, ranks) | ({"ece": of_ece} if of_ece is not None else {})
        if cuts:
            found = slice_metrics(cuts, scored, rows.known[head], ranks)
            slices[head] = worst_first(named(found, snapshot), intervals[head])
    return metrics.model_copy(update={"intervals": intervals, "curves": curves, "slices": slices})


def _sliced_by(result: RunEvaluation | None) -> list[str]:
    every = result.model.slices.values() if result is not None else ()
    return list(dict.fromkeys(one.column for slices in every for one in slices))


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="python -m training.evaluate", description=__doc__)
    command.add_argument("--run", required=True, help="folder of the run")
    command.add_argument("--split", choices=("valid", "test"), default="test", help="which split (test)")
    command.add_argument(
        "--slice",
        action="append",
        default=[],
        metavar="COLUMN",
        help="a ranker's or retriever's metrics by this column's values or quartiles; may be given again",
    )
    command.add_argument("--snapshot", help="a later snapshot, which the run's model is judged on; needs --out")
    command.add_argument("--out", metavar="FILE", help="with --snapshot: file for what was found, as JSON")
    given = command.parse_args(arguments)
    if (given.snapshot is None) != (given.out is None):
        command.error("--snapshot and --out go together: the run's folder holds what it does on its own snapshot")
    folder = RunFolder(Path(absolute(given.run)))
    if given.snapshot is not None:
        later, out = absolute(given.snapshot), Path(absolute(given.out))
        return run(
            "evaluate",
            lambda ranks: evaluate_on_later(
                ranks, folder=folder, split=given.split, snapshot_url=later, out=out, columns=given.slice
            ),
        )
    return run("evaluate", lambda ranks: evaluate(ranks, folder=folder, split=given.split, columns=given.slice))


if __name__ == "__main__":
    sys.exit(main())
