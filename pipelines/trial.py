"""One trial of a search as processes of its own: `headrace train`, which ends with the search, however that ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipelines import launch
from pipelines.processes import end_marked
from schemas.programs import TRIAL, Parser

_LAST_BYTES = 1 << 16


class TrialProcess:
    """The training in `folder`: run/ as `headrace train` writes it, train.log with what it says."""

    def __init__(self, folder: Path, arguments: Sequence[str], *, ranks: int, launcher: str, threads: int) -> None:
        self.folder = folder
        self._mark = mark_of(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "train.log"
        self._said_before = self._log.stat().st_size if self._log.exists() else 0
        self._epochs_seen = 0
        program = [sys.executable, "-m", "pipelines.trial", "--ranks", str(ranks), "--on", launcher]
        variable, _, value = self._mark.partition("=")
        # A share of the cores for each trial, unless the user has said how many threads there should be.
        environment = {"OMP_NUM_THREADS": str(threads), **launch.environment(), variable: value}
        for secret in launch.SECRETS:  # of the study's store, which a trial does not speak to
            environment.pop(secret, None)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*program, *arguments, "--run", str(folder / "run")],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def new_epochs(self) -> list[tuple[int, float]]:
        """Epochs that have come to their end since the last call, with their valid values of `chosen_by`."""
        epochs = epochs_of(self.folder)[self._epochs_seen :]
        self._epochs_seen += len(epochs)
        return epochs

    def exit_code(self) -> int | None:
        """None while it trains."""
        return self._process.poll()

    def last_line(self) -> str:
        """The last that this training said, which is why it failed, if it did."""
        with self._log.open("rb") as log:
            log.seek(max(self._said_before, self._log.stat().st_size - _LAST_BYTES))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"ended with code {self._process.returncode} and said nothing"

    def end(self) -> None:
        """End all of its processes: asked first, then killed."""
        end_marked(self._mark)
        self._process.wait()
        self.close()

    def close(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()


def mark_of(folder: Path) -> str:
    """What stands in the environment of the trial's processes, and of no others."""
    return f"{TRIAL}={folder}"


def epochs_of(folder: Path) -> list[tuple[int, float]]:
    """Number and valid value of each epoch that the trial's run has written down."""
    path = folder / "run" / "metrics.jsonl"
    if not path.exists():
        return []
    whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return [(found["epoch"], found["chosen"]) for found in map(json.loads, whole)]


def _end_with_the_search(pipe: int) -> None:
    """Wait until the search's end of the pipe is closed, as it is even when the search is killed; then end all."""
    os.read(pipe, 1)
    end_marked(f"{TRIAL}={os.environ[TRIAL]}")
    os._exit(1)


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="python -m pipelines.trial", description=__doc__, allow_abbrev=False)
    command.add_argument("--ranks", type=int, default=1, help="how many ranks (1)")
    command.add_argument("--on", choices=("horovod", "torch"), default="horovod", help="horovodrun or torchrun")
    given, rest = command.parse_known_args(arguments)
    pipe = os.dup(0)  # which the training does not inherit
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=_end_with_the_search, args=(pipe,), daemon=True).start()
    if given.ranks > 1:  # in one process first: horovodrun's last line would be that a rank has failed, and not why
        code = launch.program("training.train", [*rest, "--check-only", "--world-size", str(given.ranks)])
        if code != 0:
            return code
    return launch.on_ranks("training.train", rest, ranks=given.ranks, launcher=given.on)


if __name__ == "__main__":
    sys.exit(main())
