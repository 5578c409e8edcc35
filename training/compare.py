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
from training.loop import Trainer
from training.programs import device, run, speaker
from training.ranking import Ranking, ScoredRows
from training.ranks import Ranks
from training.run_folder import RunFolder
from training.tasks import catalogue_of, task_of


def compare_runs(ranks: Ranks, runs: tuple[Path, Path], split: str, resamples: int) -> dict[str, dict[str, Difference]]:
    """By head that both have and metric, what the first run's is above the second's."""
    bundles = [load_bundle(RunFolder(run).bundle, ranks) for run in runs]
    trained_on = {bundle.manifest.snapshot.digest for bundle in bundles}
    if len(trained_on) > 1:
        raise UserError(f"{runs[0]} and {runs[1]} were trained on different snapshots: they know different rows.")
    snapshot = open_snapshot(bundles[0].manifest.snapshot.url)
    catalogue, scored = catalogue_of(snapshot), list[ScoredRows]()
    for run_path, bundle in zip(runs, bundles, strict=True):
        task = task_of(bundle.model.to(device()), snapshot, catalogue, bundle.recipe, ranks, device())
        if not isinstance(task, Ranking):
            raise UserError(f"{run_path} holds a retriever: compare is for rankers, such as dlrm.")
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
    command.add_argument("--split", choices=("valid", "test"), default="test", help="which split (test)")
    command.add_argument("--resamples", type=int, default=1000, help="of the users (1000)")
    given = command.parse_args(arguments)
    if given.resamples < 10:
        command.error(f"{given.resamples} resamples say nothing of chance: --resamples takes 10 or more")

    def work(ranks: Ranks) -> None:
        runs = (Path(absolute(given.run)), Path(absolute(given.other)))
        for head, found in compare_runs(ranks, runs, given.split, given.resamples).items():
            if ranks.rank == 0:
                show(given.split, head, found)

    return run("compare", work)


if __name__ == "__main__":
    sys.exit(main())
