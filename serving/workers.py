"""Several processes of one server: they share the port, and each has a log of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from schemas.errors import UserError
from serving.telling import complain

RESTARTS_AFTER_S = 1.0
_LONGEST_WAIT_S = 60.0
_LOOKS_EVERY_S = 0.2
MISTAKE = 2
ANSWERS_WITHIN_S = 15
"""That a process which is to end has for the requests under way."""
_ENDS_WITHIN_S = 2.0 * ANSWERS_WITHIN_S


class Workers:
    """Starts processes, starts one that died again, hands signals on, and ends them all."""

    def __init__(self, commands: Sequence[Sequence[str]]) -> None:
        self._commands = [list(command) for command in commands]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._over = False
        self._due: dict[int, float] = {}
        """By place, when the process that died there is started again."""
        self._waits_s: dict[int, float] = {}
        """By place that has died once, how long the next start waits."""

    def run(self) -> None:
        """Return when all have ended after SIGTERM or SIGINT; UserError where one says that it cannot start."""
        handlers = {number: signal.signal(number, self._pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._pass_on)
        try:
            self._processes = [subprocess.Popen(command) for command in self._commands]
            while not self._over:
                time.sleep(_LOOKS_EVERY_S)
                self._start_again()
        finally:
            self._over = True
            for process in self._processes:
                process.terminate()
            until = time.monotonic() + _ENDS_WITHIN_S
            for process in self._processes:
                _end(process, until)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _start_again(self) -> None:
        for place, process in enumerate(self._processes):
            code = process.poll()
            if code is None or self._over:
                continue
            if code == MISTAKE and place not in self._waits_s:
                raise UserError(f"process {place + 1} of {len(self._processes)} cannot start; it says why.")
            if place not in self._due:
                wait_s = self._waits_s.get(place, RESTARTS_AFTER_S)
                said = f"process {place + 1} ended with {code}; it is started again in {wait_s:g} s"
                print(f"serve: {said}", file=sys.stderr, flush=True)
                self._due[place] = time.monotonic() + wait_s
                # The others serve on, so one that cannot start any more, as with a broken champion, is tried again.
                self._waits_s[place] = min(2 * wait_s, _LONGEST_WAIT_S) if code == MISTAKE else RESTARTS_AFTER_S
            elif time.monotonic() >= self._due[place]:
                del self._due[place]
                self._processes[place] = subprocess.Popen(self._commands[place])

    def _pass_on(self, number: int, frame: object) -> None:
        self._over = self._over or number != signal.SIGHUP
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)


def _end(process: subprocess.Popen[bytes], until: float) -> None:
    """Wait for a process that was told to end, and kill it where it does not."""
    try:
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        complain(f"serve: process {process.pid} does not end; it is killed")
        process.kill()
        process.wait()


def end_with_parent() -> None:
    """End this process, as SIGTERM does, when the one that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(RESTARTS_AFTER_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch parent", daemon=True).start()
