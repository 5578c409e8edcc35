"""Processes of ours, wherever their launcher put them: found by a variable in their environment, and ended."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_POLL_S = 0.05


def with_mark(mark: str) -> list[int]:
    """Processes that have this `NAME=value` in their environment, which children inherit.

    horovodrun starts its ranks in groups of their own, so a process group does not hold them all.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # another user's, or gone
                continue
    return found


def send(pids: list[int], which: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # its launcher, or another rank, was quicker
            os.kill(pid, which)


def end_marked(mark: str, *, grace_s: float = 5.0) -> None:
    """TERM to all with the mark but this process, and KILL to those that are still there after `grace_s`."""
    for which in (signal.SIGTERM, signal.SIGKILL):
        send([pid for pid in with_mark(mark) if pid != os.getpid()], which)
        until = time.monotonic() + grace_s
        while {*with_mark(mark)} - {os.getpid()} and time.monotonic() < until:
            time.sleep(_POLL_S)
