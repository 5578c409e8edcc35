"""Compare two rankers on a split: is the difference more than chance, by a paired bootstrap over users."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from schemas.errors import UserError
from schemas.programs import Parser
from schemas.snapshot import open_snapshot
from schemas.storage import absolute
from training.bootstrap import Difference, compare
from training.bundle import load_bundle
from training.later_snapshot import task_on
from training.loop import Trainer
from training.models.image_classifier import ImageClassifier
from training.models.ranker import Ranker
from training.programs import device, run, speaker
from training.ranking import Ranking, ScoredRows
from training.ranks import Ranks
from training.run_folder import RunFolder


def compare_runs(
    ranks: Ranks, runs: tuple[Path, Path], split: str, resamples: int, later: str | None = None
) -> dict[str, dict[str, Difference]]:
    """By head that both have and metric, what the first run's is above the second's; on a `later` snapshot if given."""
    bundles = [load_bundle(RunFolder(run).bundle, ranks) for run in runs]
    trained_on = {bundle.manifest.snapshot.digest for bundle in bundles}
    if len(trained_on) > 1 and later is None:
        raise UserError(
            f"{runs[0]} and {runs[1]} were trained on different snapshots: they know different rows. Give --snapshot, "
            "the later one, to compare them on."
        )
    snapshot = open_snapshot(later or bundles[0].manifest.snapshot.url)
    scored = list[ScoredRows]()
    for run_path, bundle in zip(runs, bundles, strict=True):
        if not isinstance(bundle.model, Ranker):
            held = f"an {bundle.recipe.model.name}" if isinstance(bundle.model, ImageClassifier) else "a retriever"
            raise UserError(f"{run_path} holds {held}: compare is for rankers, such as dlrm.")
        task, notes = task_on(bundle, RunFolder(run_path).bundle, snapshot, ranks, device())
        assert isinstance(task, Ranking)
        for note in notes:
            speaker("compare", ranks)(f"{run_path}: {note}")
        # The first run's batches for both: rows must come in one order.
        trainer = Trainer(
            task=task,
            snapshot=snapshot,
            recipe=bundles[0].recipe,
            ranks=ranks,
            device=device(),
            say=speaker("compare", ranks),
        )
        scored.append(task.scored(trainer.held_out(split, task)))
    heads = [head for head in scored[0].heads if head in scored[1].heads]
    if not heads:
        raise UserError(f"{runs[0]} and {runs[1]} have no label in common.")
    try:
        return {
            head: compare(scored[0].heads[head], scored[1].heads[head], ranks, resamples=resamples) for head in heads
        }
    except ValueError as error:  # on every rank alike
        raise UserError(f"{error}.") from None


def show(split: str, head: str, found: dict[str, Difference]) -> None:
    table = Table(title=f"{split}, {head}: the first run minus the second", title_justify="left")
    for name in ("metric", "difference", "95 % of samples of users", "p-value"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for metric, one in found.items():
        low, high = one.interval
        table.add_row(metric, f"{one.difference:+.5f}", f"{low:+.5f} to {high:+.5f}", f"{one.p_value:.3f}")
    Console().print(table)


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="python -m training.compare", description=__doc__)
    command.add_argument("run", help="folder of a run")
    command.add_argument("other", help="folder of another run on the same snapshot")
    command.add_argument("--snapshot", help="a later snapshot to compare them on, whatever each was trained on")
    command.add_argument("--split", choices=("valid", "test"), default="test", help="which split (test)")
    command.add_argument("--resamples", type=int, default=1000, help="of the users (1000)")
    given = command.parse_args(arguments)
    if given.resamples < 10:
        command.error(f"{given.resamples} resamples say nothing of chance: --resamples takes 10 or more")
    later = absolute(given.snapshot) if given.snapshot is not None else None

    def work(ranks: Ranks) -> None:
        runs = (Path(absolute(given.run)), Path(absolute(given.other)))
        for head, found in compare_runs(ranks, runs, given.split, given.resamples, later).items():
            if ranks.rank == 0:
                show(given.split, head, found)

    return run("compare", work)


if __name__ == "__main__":
    sys.exit(main())
