"""The watchdog: where ranks wait for one that does not come, it says for whom, since when and on what, and ends all."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from schemas.errors import UserError
from training.checkpoint import write_json
from training.ranks import GradientSum, Ranks

_EXIT = 75  # sysexits.h: a failure that another try may not meet
_LOOKS = 10  # within the limit


@dataclass(frozen=True, kw_only=True)
class State:
    """What a rank is doing, since when (Unix time), and when it was last seen to be alive."""

    rank: int
    host: str
    pid: int
    doing: str
    since: float
    seen: float
    rows: int = 0
    is_waiting: bool = False


class Watchdog:
    """Writes this rank's state into `folder` now and then, and reads the others' when it has waited for too long.

    The folder lies in the run's, which all hosts share. A rank that computes or reads for long is not ended: those who
    wait for it are, with its name.
    """

    def __init__(self, folder: Path, rank: int, size: int, *, limit_s: float) -> None:
        if limit_s <= 0:
            raise UserError(f"a rank cannot wait for {limit_s:g} s: --stall-limit takes more than 0 seconds.")
        self._folder, self._size, self._limit_s = folder, size, limit_s
        now = time.time()
        self._state = State(rank=rank, host=socket.gethostname(), pid=os.getpid(), doing="starts", since=now, seen=now)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._write()

    def does(self, doing: str, *, rows: int = 0) -> None:
        """Note what this rank turns to, and how many rows it has learned from since the last note."""
        done = self._state.rows + rows
        self._state = replace(self._state, doing=doing, since=time.time(), rows=done, is_waiting=False)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Within it the rank waits for the others."""
        before = self._state
        self._state = replace(before, doing=f"waits for {what}", since=time.time(), is_waiting=True)
        try:
            yield
        finally:
            self._state = replace(before, since=time.time())

    def _watch(self) -> None:
        while not self._over.wait(self._limit_s / _LOOKS):
            self._write()
            state = self._state
            if state.is_waiting and time.time() - state.since > self._limit_s:
                print(f"watchdog: {self.explain()}", file=sys.stderr, flush=True)
                os._exit(_EXIT)  # the main thread hangs in an exchange that nobody can end

    def _write(self) -> None:
        with suppress(OSError):  # a full disk shall not end the watch
            write_json(self._path(self._state.rank), asdict(replace(self._state, seen=time.time())))

    def explain(self) -> str:
        """Who waits for whom, in a few lines."""
        now, mine = time.time(), self._state
        waited = f"rank {mine.rank} {mine.doing} since {now - mine.since:.0f} s"
        lines = [f"{waited}, longer than the limit; ending the job."]
        for rank in range(self._size):
            if rank == mine.rank:
                continue
            state = self._read(rank)
            if state is None:
                lines.append(f"rank {rank} has not begun to train")
                continue
            silent = now - state.seen
            where = f"rank {rank} (pid {state.pid} on {state.host}, {state.rows:,} rows learned from)"
            if silent > 3 * self._limit_s / _LOOKS:
                gone = f"has not been heard of for {silent:.0f} s: dead, stopped, or cut off"
                lines.append(f"{where} {gone}; it {state.doing}")
            elif state.is_waiting:
                lines.append(f"{where} waits too, since {now - state.since:.0f} s: it {state.doing}")
            else:
                lines.append(f"{where} is what is waited for: it {state.doing} since {now - state.since:.0f} s")
        return "\n  ".join(lines)

    def _read(self, rank: int) -> State | None:
        try:
            return State(**json.loads(self._path(rank).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:05d}.json"


class WatchedRanks:
    """Ranks whose every exchange the watchdog knows of."""

    def __init__(self, ranks: Ranks, watchdog: Watchdog) -> None:
        self._ranks, self._watchdog = ranks, watchdog
        self.rank, self.size = ranks.rank, ranks.size

    def start_alike(self, model: nn.Module) -> None:
        with self._watchdog.waiting("the first weights"):
            self._ranks.start_alike(model)

    def summing(self, model: nn.Module, *, travels_as: torch.dtype = torch.float32) -> GradientSum:
        return _WatchedSum(self._ranks.summing(model, travels_as=travels_as), self._watchdog)

    def sum(self, values: Tensor, name: str) -> Tensor:
        with self._watchdog.waiting(f"the sum {name!r}"):
            return self._ranks.sum(values, name)

    def gather(self, values: NDArray[Any], name: str) -> NDArray[Any]:
        with self._watchdog.waiting(f"all ranks' {name!r}"):
            return self._ranks.gather(values, name)

    def exchange(self, values: Tensor, rows: Sequence[int], name: str) -> tuple[Tensor, list[int]]:
        with self._watchdog.waiting(f"the exchange {name!r}"):
            return self._ranks.exchange(values, rows, name)

    def hosts_changed(self) -> bool:
        with self._watchdog.waiting("news of the hosts"):
            return self._ranks.hosts_changed()


class _WatchedSum:
    def __init__(self, gradients: GradientSum, watchdog: Watchdog) -> None:
        self._gradients, self._watchdog = gradients, watchdog

    @property
    def paused(self) -> bool:
        return self._gradients.paused

    @paused.setter
    def paused(self, value: bool) -> None:
        self._gradients.paused = value

    def wait(self) -> None:
        with self._watchdog.waiting("the other ranks' gradients"):
            self._gradients.wait()
