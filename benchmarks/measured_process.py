"""A command as a process of its own, watched: wall time, CPU time and peak memory of it and all that it starts.

A limit on memory is held by this watch, since making a control group needs rights that not everybody has.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Outcome = Literal["done", "out of memory", "failed"]

_SAMPLED_EVERY_S = 0.2
_YOUNG_S = 1.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_SAYS_OUT_OF_MEMORY = ("OutOfMemory", "Out of Memory", "out of memory", "MemoryError", "Cannot allocate memory")


@dataclass(frozen=True, kw_only=True)
class Measured:
    outcome: Outcome
    seconds: float
    cpu_s: float
    peak_mb: float
    """Anonymous and shared memory of all processes together: what no page of a file can be given up for."""
    peak_rss_mb: float
    """All that is resident, pages of mapped files too; what two processes share is counted twice."""


@dataclass
class _Watch:
    """The processes of one session, which all descendants of its leader are in, also orphans."""

    session: int
    peak_kb: int = 0
    peak_rss_kb: int = 0
    _ticks: dict[int, int] = field(default_factory=dict)
    _strangers: set[int] = field(default_factory=set)

    def sample(self) -> list[int]:
        """Look at every process of the session; give their ids."""
        members, held_kb, rss_kb = [], 0, 0
        pids = {int(entry) for entry in os.listdir("/proc") if entry.isdigit()}
        self._strangers &= pids
        for pid in pids - self._strangers:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) != self.session:
                    self._strangers.add(pid)
                    continue
                status = Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] != "Z":
                members.append(pid)
            if self._is_copy(pid, parent=int(fields[1]), started_s=int(fields[19]) / _TICKS_PER_S):
                continue
            self._ticks[pid] = int(fields[11]) + int(fields[12])
            kb = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.endswith(" kB")}
            held_kb += kb.get("RssAnon", 0) + kb.get("RssShmem", 0)
            rss_kb += kb.get("VmRSS", 0)
        self.peak_kb, self.peak_rss_kb = max(self.peak_kb, held_kb), max(self.peak_rss_kb, rss_kb)
        return members

    @staticmethod
    def _is_copy(pid: int, *, parent: int, started_s: float) -> bool:
        """Whether it was forked a moment ago and runs nothing of its own yet: its memory is its parent's.

        A JVM that starts a small program is there twice, whole, for some milliseconds.
        """
        if time.clock_gettime(time.CLOCK_BOOTTIME) - started_s > _YOUNG_S:
            return False
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes() == Path(f"/proc/{parent}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return True

    @property
    def cpu_s(self) -> float:
        """Up to the last sample of each process."""
        return sum(self._ticks.values()) / _TICKS_PER_S


def measure(
    command: Sequence[str], log: Path, *, limit_mb: float | None = None, environment: Mapping[str, str] | None = None
) -> Measured:
    """Run `command` to its end, or until it and its descendants hold more than `limit_mb`; its output goes to `log`."""
    began = time.perf_counter()
    with log.open("w") as output:
        running = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment and {**os.environ, **environment},
            start_new_session=True,
        )
    watch = _Watch(running.pid)
    too_much = False
    try:
        while running.poll() is None:
            watch.sample()
            too_much = limit_mb is not None and watch.peak_kb > limit_mb * 1024
            if too_much:
                break
            time.sleep(_SAMPLED_EVERY_S)
        seconds = time.perf_counter() - began
    finally:
        _end(watch)
        running.wait()
    return Measured(
        outcome=_outcome(running.returncode, too_much, log),
        seconds=seconds,
        cpu_s=watch.cpu_s,
        peak_mb=watch.peak_kb / 1024,
        peak_rss_mb=watch.peak_rss_kb / 1024,
    )


def _end(watch: _Watch) -> None:
    """End what is left of the session, such as a JVM whose Python is gone."""
    while members := watch.sample():
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def _outcome(code: int, too_much: bool, log: Path) -> Outcome:
    if too_much:
        return "out of memory"
    if code == 0:
        return "done"
    said = log.read_text(errors="replace")
    return "out of memory" if any(words in said for words in _SAYS_OUT_OF_MEMORY) else "failed"
