"""Is an interrupted run the same as one that was not? Asked of a user's own recipe and snapshot, and answered."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines import launch
from pipelines.processes import send, with_mark
from schemas.errors import UserError
from schemas.programs import Parser, answering_mistakes
from schemas.storage import absolute

_POLL_S = 0.05
Step = tuple[int, int, int]
"""Rank, epoch, step."""


@dataclass(frozen=True)
class Learned:
    """What a rank learned from in a step."""

    rows: int
    row_ids: int
    loss: str


def verify(given: argparse.Namespace, rest: Sequence[str]) -> bool:
    """Train twice, the second time killed and gone on with; print how they compare, and say whether they are equal."""
    if given.ranks < 1 or given.checkpoint_every < 1:
        raise UserError("--ranks and --checkpoint-every take 1 or more.")
    to = Path(absolute(given.to))
    if to.exists() and any(to.iterdir()):
        raise UserError(f"{to} is not empty: give --to another folder.")
    every = ["--checkpoint-every", str(given.checkpoint_every)]
    whole, killed = to / "whole", to / "killed"
    _finish(_arguments(whole, every, rest), given.ranks)
    steps = read_steps(whole / "trace")
    kill_at = given.kill_after or max(given.checkpoint_every + 1, len(steps) // given.ranks // 2)
    if kill_at * given.ranks >= len(steps):
        raise UserError(
            f"the run has {len(steps) // given.ranks} steps, too few to be killed after {kill_at}: "
            "lower --kill-after and --checkpoint-every."
        )
    done = kill_when(killed / "trace", kill_at, _arguments(killed, every, rest), given.ranks)
    found = sorted(path.name for path in (killed / "run" / "checkpoints").glob("epoch-*"))
    print(f"verify-resume: killed all ranks after {done} steps; checkpoint {found[-1] if found else 'none yet'}")
    _finish(_arguments(killed, every, rest), given.ranks)
    again = read_steps(killed / "trace")
    return report(steps, again, *(_weights(folder / "run" / "bundle") for folder in (whole, killed)))


def read_steps(trace: Path) -> dict[Step, list[Learned]]:
    """What was learned in each step; twice where a step after the last checkpoint was done again."""
    steps: dict[Step, list[Learned]] = {}
    for file in sorted(trace.glob("steps-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                found = json.loads(line)
            except ValueError:  # cut short by the kill
                continue
            key = (int(file.stem.split("-")[1]), found["epoch"], found["step"])
            steps.setdefault(key, []).append(Learned(found["rows"], found["row_ids"], found["loss"]))
    return steps


def report(
    one: dict[Step, list[Learned]], other: dict[Step, list[Learned]], weights: dict[str, str], others: dict[str, str]
) -> bool:
    """Print the comparison; True where rows, losses and weights are the same to the bit."""
    pairs = [(one[step][0], learned) for step in one for learned in other.get(step, [])]
    missing = len({*one} ^ {*other})
    rows = sum(here.row_ids != there.row_ids or here.rows != there.rows for here, there in pairs)
    losses = [abs(float.fromhex(here.loss) - float.fromhex(there.loss)) for here, there in pairs]
    repeated = len(pairs) - len({*one} & {*other})
    differing = sorted(name for name in {*weights} | {*others} if weights.get(name) != others.get(name))
    table = Table(title="Interrupted against uninterrupted", title_justify="left")
    table.add_column("what")
    table.add_column("found", justify="right")
    table.add_row("steps of ranks compared", f"{len(pairs):,}")
    table.add_row("of these done twice, before and after the kill", f"{repeated:,}")
    table.add_row("steps that only one run has", f"{missing:,}")
    table.add_row("steps with other rows, or in another order", f"{rows:,}")
    table.add_row("steps with another loss", f"{sum(loss > 0 for loss in losses):,}")
    table.add_row("largest difference of a loss", f"{max(losses, default=0.0):.3g}")
    table.add_row("files of weights that differ", ", ".join(differing) or "none")
    Console().print(table)
    equal = not (missing or rows or any(losses) or differing)
    print(f"verify-resume: {'interrupted = uninterrupted' if equal else 'the runs DIFFER'}")
    return equal


def kill_when(trace: Path, steps: int, arguments: Sequence[str], ranks: int) -> int:
    """Start training, and SIGKILL all of its processes once every rank has done so many steps; give how many."""
    program = f"from pipelines import launch; raise SystemExit(launch.on_ranks(*{('training.train', [*arguments])!r}, "
    # horovodrun starts its ranks in groups of their own: their environment tells whose they are.
    mark = f"HEADRACE_VERIFY_RESUME={os.getpid()}"
    name, _, value = mark.partition("=")
    process = subprocess.Popen(
        [sys.executable, "-c", f"{program}ranks={ranks}))"],
        env={**launch.environment(), name: value},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    done = 0
    while process.poll() is None and done < steps:
        time.sleep(_POLL_S)
        done = min((len(_lines(file)) for file in trace.glob("steps-*.jsonl")), default=0)
    send(with_mark(mark), signal.SIGKILL)
    if process.wait() == 0:
        raise UserError("the run ended before it could be killed: lower --kill-after, or train on more rows.")
    if done < steps:
        raise UserError(f"training ended with code {process.returncode} before it was killed.")
    return done


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def _arguments(folder: Path, every: Sequence[str], rest: Sequence[str]) -> list[str]:
    return [*rest, *every, "--run", str(folder / "run"), "--trace", str(folder / "trace")]


def _finish(arguments: Sequence[str], ranks: int) -> None:
    code = launch.on_ranks("training.train", arguments, ranks=ranks)
    if code != 0:
        raise UserError(f"training ended with code {code}; what it said stands above.")


def _weights(bundle: Path) -> dict[str, str]:
    files = sorted(bundle.glob("*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def main(arguments: list[str] | None = None) -> int:
    command = Parser(
        prog="headrace verify-resume",
        description=f"{__doc__} All other settings are those of `headrace train`: --snapshot, --recipe, --set, "
        "--item-vectors and so on.",
        allow_abbrev=False,
    )
    command.add_argument("--to", required=True, help="a new folder for both runs and their traces")
    command.add_argument("--ranks", type=int, default=1, help="Horovod ranks (1)")
    command.add_argument("--checkpoint-every", type=int, default=20, metavar="STEPS", help="steps (20)")
    command.add_argument("--kill-after", type=int, default=0, metavar="STEPS", help="steps (0: half of all)")
    given, rest = command.parse_known_args(arguments)
    equal: list[bool] = []
    code = answering_mistakes("verify-resume", lambda: equal.append(verify(given, rest)))
    return code or int(not equal[0])


if __name__ == "__main__":
    sys.exit(main())
