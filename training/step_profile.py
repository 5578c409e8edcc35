"""Where a step's time goes on this machine and these ranks: feed, forward, backward, exchange, optimizer."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
from rich.console import Console
from rich.table import Table

from schemas.errors import UserError
from schemas.programs import Parser
from schemas.snapshot import open_snapshot
from schemas.storage import absolute
from training.batch import Batch
from training.feed import Feed
from training.loop import Trainer
from training.programs import device, run
from training.ranks import Ranks
from training.recipe import Recipe, read_recipe
from training.step_clock import PHASES, ClockedRanks, PhaseClock
from training.tasks import fresh_task

_WARM_UP = 10


def profile(
    ranks: Ranks, *, url: str, recipe: Recipe, steps: int, as_json: bool, item_vectors: str | None = None
) -> None:
    """Train for some steps, throw away what was learned, and print the mean of the ranks' times."""
    snapshot, clock = open_snapshot(url), PhaseClock(device())
    clocked = ClockedRanks(ranks, clock)
    task = fresh_task(snapshot, recipe, clocked, device(), item_vectors=item_vectors)
    trainer = Trainer(
        task=task, snapshot=snapshot, recipe=recipe, ranks=clocked, device=device(), say=lambda line: None
    )
    ranks.start_alike(task.model)
    task.model.train()
    stepper, batches = trainer.stepper(clock.turn_to), endless(trainer.feed("train", ("row_id", *task.columns)))
    stepper.optimizers.begin_epoch(0)
    per_step: list[float] = []
    for number in range(_WARM_UP + steps):
        if number == _WARM_UP:
            clock.turn_to("rest")
            clock.seconds = dict.fromkeys(PHASES, 0.0)
        began = time.perf_counter()
        clock.turn_to("feed")
        together = list(islice(batches, recipe.accumulate))
        clock.turn_to("rest")
        stepper.step(together, epoch=0, number=number)
        per_step.append(time.perf_counter() - began)
    clock.turn_to("rest")
    mine = np.array([[*clock.seconds.values(), statistics.median(per_step[_WARM_UP:])]])
    found = ranks.gather(mine, "times").mean(0) * 1000
    phases: dict[str, float] = {phase: float(ms) / steps for phase, ms in zip(PHASES, found, strict=False)}
    if ranks.rank == 0:
        total = sum(phases.values())
        samples = recipe.batch_size_per_rank * recipe.accumulate * ranks.size / total * 1000
        if as_json:
            rounded = {f"{phase}_ms": round(ms, 3) for phase, ms in phases.items()}
            line = {"ranks": ranks.size, "steps": steps, "samples_per_s": round(samples), **rounded}
            print(json.dumps({**line, "median_step_ms": round(float(found[-1]), 3)}))
        else:
            show(phases, total, samples, ranks.size)


def show(phases: dict[str, float], total: float, samples: float, ranks: int) -> None:
    table = Table(title=f"A step of {ranks} rank(s): {samples:,.0f} samples/s", title_justify="left")
    table.add_column("phase")
    table.add_column("ms a step", justify="right")
    table.add_column("share", justify="right")
    for phase, ms in phases.items():
        table.add_row(phase, f"{ms:.2f}", f"{ms / total:.0%}")
    table.add_section()
    table.add_row("all", f"{total:.2f}", "")
    Console().print(table)


def endless(feed: Feed) -> Iterator[Batch]:
    """Epoch after epoch."""
    while True:
        yield from feed


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="python -m training.step_profile", description=__doc__)
    command.add_argument("--snapshot", required=True, help="folder or URL that prepare published")
    command.add_argument("--recipe", default="two_tower", help="built-in recipe, or a path ending in .yaml (two_tower)")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, as of train")
    command.add_argument("--item-vectors", metavar="FILE_OR_FOLDER", help="vectors of items, as of train")
    command.add_argument("--steps", type=int, default=50, help=f"steps, after {_WARM_UP} that are not counted (50)")
    command.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    given = command.parse_args(arguments)

    def work(ranks: Ranks) -> None:
        if given.steps < 1:
            raise UserError("--steps takes 1 or more.")
        recipe = read_recipe(given.recipe, given.set)
        vectors = absolute(given.item_vectors) if given.item_vectors else None
        url = absolute(given.snapshot)
        profile(ranks, url=url, recipe=recipe, steps=given.steps, as_json=given.json, item_vectors=vectors)

    return run("step-profile", work)


if __name__ == "__main__":
    sys.exit(main())
