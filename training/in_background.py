"""One piece of work at a time on a thread of its own: a checkpoint that is written while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field


class Abandoned(Exception):
    """The work was told to end early."""


@dataclass(frozen=True)
class Signals:
    """Between the work and who waits for it."""

    unwanted: threading.Event = field(default_factory=threading.Event)
    """Set when nobody wants the work any longer: it raises Abandoned."""
    half_done: threading.Event = field(default_factory=threading.Event)
    """Set by the work when what is left of it waits for others."""


class InBackground:
    """`begin` comes after `settle` or `abandon` of the work before."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._signals = Signals()

    def begin(self, work: Callable[[Signals], None]) -> None:
        self._signals = Signals()
        self._thread = threading.Thread(target=self._do, args=(work, self._signals), name="checkpoint")
        self._thread.start()

    @property
    def is_begun(self) -> bool:
        """Whether there is work that nobody has settled or abandoned."""
        return self._thread is not None

    def wait_for_half(self) -> BaseException | None:
        """Wait until the work is half done or over; give what it raised, if it has."""
        self._signals.half_done.wait()
        return self._error

    def settle(self) -> None:
        """Wait for the work under way; raises what it raised."""
        if self._thread is not None:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error

    def abandon(self) -> None:
        """Tell the work under way to end, and wait until it has."""
        self._signals.unwanted.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = self._error = None

    def _do(self, work: Callable[[Signals], None], signals: Signals) -> None:
        try:
            work(signals)
        except Abandoned:
            pass
        except BaseException as error:
            self._error = error
        finally:
            signals.half_done.set()
