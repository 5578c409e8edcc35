"""The command line and the line of JSON of every peer. Needs Python alone."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LEARNING_RATES = {"adagrad": 0.01, "sgd": 0.1}
STEPS_OF_FINAL_LOSS = 10


class Arguments(argparse.Namespace):
    snapshot: Path
    steps: int
    warm_up: int
    batch: int
    optimizer: str
    layers: str


def parser(doc: str) -> argparse.ArgumentParser:
    """With what every peer takes."""
    command = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--snapshot", type=Path, required=True, help="folder that `headrace prepare` published")
    command.add_argument("--steps", type=int, required=True, help="steps that are timed")
    command.add_argument("--warm-up", type=int, default=10, help="steps before them (10)")
    command.add_argument("--batch", type=int, default=8192, help="rows of a step, on each rank (8192)")
    command.add_argument("--optimizer", choices=("adagrad", "sgd"), default="adagrad")
    command.add_argument("--layers", choices=("small", "large"), default="large", help="of the network (large)")
    return command


@dataclass
class Clock:
    """When each step of this rank was over, by the machine's monotonic clock, and its loss."""

    warm_up: int
    ended_s: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    _cpu_before_s: float = 0.0

    def step_is_over(self, loss: float) -> None:
        self.ended_s.append(time.monotonic())
        self.losses.append(loss)
        if len(self.ended_s) == self.warm_up:
            self._cpu_before_s = usage()[0]

    def times(self) -> dict[str, Any]:
        """Of this rank, whose last step was just over."""
        cpu_s, peak_rss_mb = usage()
        return {
            "began_s": self.ended_s[self.warm_up - 1],
            "ended_s": self.ended_s[-1],
            "step_s": [b - a for a, b in itertools.pairwise(self.ended_s[self.warm_up - 1 :])],
            "cpu_s": cpu_s - self._cpu_before_s,
            "peak_rss_mb": peak_rss_mb,
            "losses": self.losses[-STEPS_OF_FINAL_LOSS:],
        }


def usage() -> tuple[float, float]:
    """CPU seconds so far and peak megabytes of this process and of those that it started and that still run.

    Each one's own peak, added up, so that what processes share is counted in each.
    """
    ticks, peak_kb = 0, 0
    for pid in (os.getpid(), *_children(os.getpid())):
        try:
            # What stands after the program's name, which may hold blanks.
            numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except FileNotFoundError:
            continue
        ticks += int(numbers[11]) + int(numbers[12])
        peak_kb += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return ticks / os.sysconf("SC_CLK_TCK"), peak_kb / 1024


def _children(pid: int) -> list[int]:
    try:
        found = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except FileNotFoundError:
        return []
    return [*found, *(grandchild for child in found for grandchild in _children(child))]


def print_line(peer: str, given: Arguments, ranks: Sequence[dict[str, Any]], **more: Any) -> None:
    """One line of JSON from the times of all ranks. `step_s_fastest` tells what a busy machine hides."""
    seconds = max(one["ended_s"] for one in ranks) - min(one["began_s"] for one in ranks)
    steps = [s for one in ranks for s in one["step_s"]]
    losses = [loss for one in ranks for loss in one["losses"]]
    line = {
        "peer": peer,
        "ranks": len(ranks),
        "batch_per_rank": given.batch,
        "steps": len(ranks[0]["step_s"]),
        "optimizer": given.optimizer,
        "layers": given.layers,
        "samples_per_s": round(len(steps) * given.batch / seconds, 1),
        "seconds": round(seconds, 3),
        "step_s_median": round(statistics.median(steps), 4),
        "step_s_fastest": round(min(steps), 4),
        "cpu_s": round(sum(one["cpu_s"] for one in ranks), 2),
        "seconds_since_start": round(time.monotonic() - _STARTED_S, 3),
        "peak_rss_mb": round(sum(one["peak_rss_mb"] for one in ranks), 1),
        "final_mean_loss": round(sum(losses) / len(losses), 6),
        **more,
    }
    print(json.dumps(line), flush=True)


_STARTED_S = time.monotonic()
