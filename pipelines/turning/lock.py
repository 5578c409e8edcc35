"""One turn of a wheel at a time: a lock that the system frees when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.processes import end_marked
from schemas.errors import UserError

LOCK = ".turn.lock"
MARK = "HEADRACE_TURN"
"""Variable that marks the programs of a wheel's turn, with the wheel's folder."""


class TurnedAlready(UserError):
    """Somebody else holds the wheel's lock."""


@contextmanager
def turning(wheel: Path) -> Iterator[None]:
    """Hold the wheel's lock; TurnedAlready naming who holds it already.

    The holder's programs do not inherit it. Those of a turn that was killed may still run: they are ended, before what
    they write is written by others.
    """
    held = os.open(wheel / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(held, 32).decode(errors="replace").strip()
            raise TurnedAlready(
                f"{wheel} is being turned already, by process {holder or 'unknown'}: wait for it, or end it."
            ) from None
        os.ftruncate(held, 0)
        os.pwrite(held, f"{os.getpid()}\n".encode(), 0)
        end_programs(wheel)
        yield
    finally:
        os.close(held)


def mark_of(wheel: Path) -> dict[str, str]:
    """For the environment of the turn's programs."""
    return {MARK: str(wheel)}


def end_programs(wheel: Path) -> None:
    """End what runs of this wheel's turn: asked first, then killed."""
    end_marked(f"{MARK}={wheel}")
