"""A server as a process of its own for the time of a measurement."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines import launch
from schemas.errors import UserError

_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
_STARTS_WITHIN_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Running:
    port: int
    process: subprocess.Popen[str]

    def cpu_s(self) -> float:
        """Of the server and all that it started, which are its session, so far."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid:
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[Running]:
    """Start it, wait for the line with its address, and stop it at the end."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=launch.environment(),
            cwd=launch.ROOT,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + _STARTS_WITHIN_S
        while not (found := _ADDRESS.search(log.read_text(encoding="utf-8"))):
            if process.poll() is not None or time.monotonic() > until:
                raise UserError(f"{' '.join(command[:4])} did not start: what it said is in {log}.")
            time.sleep(0.1)
        yield Running(port=int(found[1]), process=process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def serve(*words: str) -> list[str]:
    return [sys.executable, "-m", "serving.server", "--port", "0", *words]
