"""Learning-rate range test: rates rise step by step until the loss breaks away; what falls fastest is a good one.

Smith 2017 (section 3.3), with rates that rise exponentially. The model is thrown away.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from schemas.errors import UserError
from schemas.programs import Parser
from schemas.snapshot import open_snapshot
from schemas.storage import absolute
from training.batch import Batch
from training.feed import Feed
from training.loop import Trainer, groups
from training.optimizers import Optimizers
from training.programs import device, run, speaker
from training.ranks import Ranks
from training.recipe import RankerSettings, Recipe, read_recipe
from training.step import Stepper
from training.tasks import fresh_task

Of = Literal["dense", "tables"]
SETTING: dict[Of, str] = {"dense": "optimizer.learning_rate", "tables": "optimizer.table_learning_rate"}
BREAKS_AWAY = 4.0
"""Times the smallest smoothed loss, at which the test ends."""
FEWEST_STEPS = 20
_SMOOTHING, _SETTLED = 0.9, 10  # steps after which the running mean is one of many losses
_ROWS_SHOWN = 12


class Point(NamedTuple):
    """A step: its rate as a recipe would have it, the mean loss of its rows on all ranks, and the smoothed one."""

    rate: float
    loss: float
    smoothed: float


class RisingRates(Optimizers):
    """Optimizers of which the dense weights' rate, or the tables', follows `rising`; the others learn nothing.

    Would they learn as well, the loss would fall at first whatever the rate is, and fastest there.
    """

    of: Of = "dense"
    rising: Sequence[float] = ()

    def rates(self, number: int) -> tuple[float, float]:
        rate = self.scale * self.rising[number]
        return (rate, 0.0) if self.of == "dense" else (0.0, rate)


class Unstopped(Stepper):
    """A loss that is no number is what the test looks for: all ranks go on to the step's end and see it together."""

    def meets_no_number(self, batch: Batch, epoch: int, loss: float) -> None:
        pass


def rising_rates(first: float, last: float, steps: int) -> list[float]:
    """From first to last, each as many times the one before."""
    return [first * (last / first) ** (step / (steps - 1)) for step in range(steps)]


def range_test(trainer: Trainer, rates: Sequence[float], *, of: Of) -> list[Point]:
    """Take a step at each rate, until the loss is no number or far above its smallest. Collective.

    Changes the trainer's model: give a fresh one.
    """
    task, recipe, ranks = trainer.task, trainer.recipe, trainer.ranks
    optimizers = RisingRates(task.model, recipe.optimizer, world_size=ranks.size)
    optimizers.of, optimizers.rising = of, rates
    optimizers.begin_epoch(0)
    ranks.start_alike(task.model)
    stepper = Unstopped(
        task=task,
        recipe=recipe,
        ranks=ranks,
        device=trainer.device,
        optimizers=optimizers,
        gradients=ranks.summing(task.model),
    )
    task.model.train()
    points: list[Point] = []
    feed = trainer.feed("train", ("row_id", *task.columns))
    for number, (epoch, batches) in zip(range(len(rates)), _forever(feed, recipe.accumulate), strict=False):
        losses = stepper.step(batches, epoch=epoch, number=number)
        mine = torch.tensor([sum(losses), sum(batch.num_rows for batch in batches)], dtype=torch.float64)
        loss_sum, rows = ranks.sum(mine, "range_loss").tolist()
        points.append(_next_point(points, rates[number], loss_sum / rows))
        if not points[-1].smoothed <= BREAKS_AWAY * min(point.smoothed for point in points):  # also where it is NaN
            break
    return points


def steepest(points: Sequence[Point]) -> float | None:
    """The rate at which the smoothed loss falls fastest against log(rate), before its smallest; None if it never does.

    The first ten steps are left out: their running mean follows single losses, which jump.
    """
    known = [point for point in points[_SETTLED:] if math.isfinite(point.smoothed)]
    lowest = int(np.argmin([point.smoothed for point in known])) if known else 0
    falling = known[: lowest + 1]
    if len(falling) < 3:
        return None
    slope = np.gradient([point.smoothed for point in falling], np.log([point.rate for point in falling]))
    place = int(np.argmin(slope))
    return falling[place].rate if slope[place] < 0 else None


def _forever(feed: Feed, together: int) -> Iterator[tuple[int, list[Batch]]]:
    """The steps of epoch after epoch, each with its epoch."""
    while True:
        epoch = feed.epoch
        yield from ((epoch, batches) for batches in groups(feed, together))


def _next_point(before: Sequence[Point], rate: float, loss: float) -> Point:
    """A running mean of the losses, corrected for its beginning at 0 (Kingma and Ba 2015, section 3)."""
    steps = len(before)
    last = before[-1].smoothed * (1 - _SMOOTHING**steps) if before else 0.0
    mean = _SMOOTHING * last + (1 - _SMOOTHING) * loss
    return Point(rate, loss, mean / (1 - _SMOOTHING ** (steps + 1)))


def show(points: Sequence[Point], *, of: Of, suggested: float | None) -> None:
    table = Table()
    for name in (SETTING[of], "loss", "smoothed"):
        table.add_column(name, justify="right")
    shown = {round(place) for place in np.linspace(0, len(points) - 1, min(_ROWS_SHOWN, len(points)))}
    for place in sorted(shown):
        point = points[place]
        table.add_row(f"{point.rate:.2e}", f"{point.loss:.4f}", f"{point.smoothed:.4f}")
    Console().print(table)
    if suggested is None:
        print("lr-range: the loss fell at none of these rates: try others (--from, --to), or more --steps.")
    else:
        print(f"lr-range: the loss falls fastest at about {suggested:.1e}: --set {SETTING[of]}={suggested:.1e}")


def plot(points: Sequence[Point], path: Path, *, of: Of, suggested: float | None, figures: Any) -> None:
    """Write the picture, whole or not at all; `figures` is matplotlib.figure."""
    figure = figures.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    rates = [point.rate for point in points]
    axes.semilogx(rates, [point.loss for point in points], color="0.8", label="loss of a step")
    axes.semilogx(rates, [point.smoothed for point in points], color="tab:blue", label="smoothed")
    if suggested is not None:
        axes.axvline(suggested, color="tab:orange", linestyle="--", label=f"falls fastest: {suggested:.1e}")
    smoothed = [point.smoothed for point in points if math.isfinite(point.smoothed)]
    if smoothed:
        # The fall fills the picture; where the loss breaks away may leave it.
        low, high = min(smoothed), max(smoothed[: smoothed.index(min(smoothed)) + 1])
        if low < high:
            axes.set_ylim(low - 0.3 * (high - low), high + (high - low))
    axes.set_xlabel(SETTING[of])
    axes.set_ylabel("loss")
    axes.legend()
    draft = path.with_name(f".{path.name}.draft")
    figure.savefig(draft, format="png", dpi=120)
    draft.rename(path)


def lr_range(
    ranks: Ranks, *, snapshot_url: str, recipe: Recipe, rates: Sequence[float], of: Of, picture: Path,
    item_vectors: str | None = None,
) -> float | None:  # fmt: skip
    """Show the test and write its picture; give the rate that it suggests."""
    figures = _matplotlib()
    if of == "tables" and not isinstance(recipe.model, RankerSettings):
        raise UserError(f"{recipe.model.name} is no ranker: it has no table_learning_rate to look for (--of tables).")
    if not picture.parent.is_dir():
        raise UserError(f"{picture.parent} does not exist: give --plot a file in a folder that does.")
    snapshot = open_snapshot(snapshot_url)
    task = fresh_task(snapshot, recipe, ranks, device(), item_vectors=item_vectors)
    say = speaker("lr-range", ranks)
    trainer = Trainer(task=task, snapshot=snapshot, recipe=recipe, ranks=ranks, device=device(), say=say)
    points = range_test(trainer, rates, of=of)
    suggested = steepest(points)
    if ranks.rank == 0:
        show(points, of=of, suggested=suggested)
        plot(points, picture, of=of, suggested=suggested, figures=figures)
    say(f"{len(points)} steps; picture: {picture}")
    return suggested


def _matplotlib() -> Any:
    try:
        from matplotlib import figure
    except ImportError:
        raise UserError("lr-range draws with matplotlib: install headrace[tracking].") from None
    return figure


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="python -m training.lr_range", description=__doc__)
    command.add_argument("--snapshot", required=True, help="folder or URL that prepare published")
    command.add_argument("--recipe", default="two_tower", help="built-in recipe, or a path ending in .yaml (two_tower)")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. batch_size_per_rank=1024"
    )
    command.add_argument("--item-vectors", metavar="FILE_OR_FOLDER", help="vectors of items, as of train")
    command.add_argument("--from", dest="first", type=float, default=1e-6, metavar="RATE", help="lowest rate (1e-6)")
    command.add_argument("--to", dest="last", type=float, default=1.0, metavar="RATE", help="highest rate (1)")
    command.add_argument("--steps", type=int, default=100, help="steps from the one to the other (100)")
    command.add_argument(
        "--of",
        choices=("dense", "tables"),
        default="dense",
        help="rate of dense weights or of a ranker's tables (dense)",
    )
    command.add_argument("--plot", default="lr-range.png", metavar="FILE", help="the picture (lr-range.png)")
    given = command.parse_args(arguments)
    if not 0 < given.first < given.last < math.inf:
        command.error(f"--from {given.first:g} --to {given.last:g}: rates rise from more than 0 to more than that")
    if given.steps < FEWEST_STEPS:
        command.error(f"--steps {given.steps}: {FEWEST_STEPS} or more are needed to see a loss fall")

    def work(ranks: Ranks) -> None:
        lr_range(
            ranks,
            snapshot_url=absolute(given.snapshot),
            recipe=read_recipe(given.recipe, given.set),
            rates=rising_rates(given.first, given.last, given.steps),
            of=given.of,
            picture=Path(given.plot).absolute(),
            item_vectors=absolute(given.item_vectors) if given.item_vectors else None,
        )

    return run("lr-range", work)


if __name__ == "__main__":
    sys.exit(main())
