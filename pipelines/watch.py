"""Turn a wheel again and again: when so much time has passed, so much has come in, or so much has changed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from pipelines import launch
from pipelines.turning.arrivals import land, new_events, taken_in_at
from pipelines.turning.drift_since import drifted_share
from pipelines.turning.engine import HEADRACE, StepFailed
from pipelines.turning.lock import TurnedAlready, turning
from pipelines.turning.wheel_folder import WheelFolder
from schemas.errors import UserError
from schemas.gate import REFUSED
from schemas.programs import Parser
from schemas.storage import absolute
from schemas.wheel import Trigger, WheelSettings

_LOOK_EVERY_S = 60.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 60.0, 3600.0
_HOUR_S = 3600.0


class Stopped(BaseException):
    """SIGTERM, or Ctrl-C."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is known of a wheel when it is looked at; times are seconds since 1970."""

    now_s: float
    last_turn_s: float | None = None
    """When the last turn began; None before the first."""
    under_way: bool = False
    new_events: int = 0
    """That have landed since the last turn took in what had."""
    drifted: float | None = None
    """Share of columns; None where nobody has looked."""
    failures: int = 0
    """Turns that failed one after the other."""
    last_failure_s: float = 0.0


def reason_to_turn(trigger: Trigger, seen: Seen) -> str | None:
    """Why the wheel is to be turned now; None to let it rest. After failures nothing is tried before its time."""
    if seen.failures:
        waited = seen.now_s - seen.last_failure_s
        return "the last one failed" if waited >= wait_after(seen.failures) else None
    if seen.under_way:
        return "a turn is under way"
    if seen.last_turn_s is None:
        return "it has never been turned"
    hours = (seen.now_s - seen.last_turn_s) / _HOUR_S
    if trigger.every_hours is not None and hours >= trigger.every_hours:
        return f"the last turn was {hours:.1f} hours ago"
    if trigger.new_events is not None and seen.new_events >= trigger.new_events:
        return f"{seen.new_events:,} events have come in"
    if trigger.drifted is not None and seen.drifted is not None and seen.drifted >= trigger.drifted:
        return f"{seen.drifted:.0%} of the columns have drifted"
    return None


def wait_after(failures: int) -> float:
    """Seconds before the next try: twice as long after each failure, up to an hour."""
    return float(min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (failures - 1)))


@dataclass
class Watch:
    """Looks at a wheel, turns it when there is a reason, and remembers how that went."""

    wheel: WheelFolder
    turn: Callable[[], int]
    clock: Callable[[], float] = time.time
    failures: int = 0
    last_failure_s: float = 0.0
    tried_s: float | None = None
    """When a turn was last begun here, also where nothing was new and no generation came of it."""
    looked_at: frozenset[str] = frozenset()
    """Landed files that were there when columns were last compared."""

    def look(self) -> None:
        """One look, and the turn that comes of it."""
        settings = self.wheel.settings()
        try:
            with turning(self.wheel.path):
                reason = reason_to_turn(settings.trigger, self.seen(settings))
        except TurnedAlready:  # by somebody else: what is seen now is not what will be when that ends
            return
        if reason is None:
            return
        say(f"watch: turning {self.wheel.path}: {reason}")
        self.tried_s = self.clock()
        code = self.turn()
        if code in (0, REFUSED):
            self.failures = 0
            return
        self.failures, self.last_failure_s = self.failures + 1, self.clock()
        say(f"watch: the turn ended with exit code {code}; the next try in {wait_after(self.failures):.0f} s")

    def seen(self, settings: WheelSettings) -> Seen:
        turns = [found for folder in self.wheel.generations() if (found := folder.turn()) is not None]
        began = [datetime.fromisoformat(one.started_at).replace(tzinfo=UTC).timestamp() for one in turns[-1:]]
        times = [*began, *([self.tried_s] if self.tried_s is not None else [])]
        known = Seen(
            now_s=self.clock(),
            last_turn_s=max(times, default=None),
            under_way=bool(turns) and turns[-1].outcome in ("running", "failed"),
            failures=self.failures,
            last_failure_s=self.last_failure_s,
        )
        # A turn lands by itself; where landing or Spark fails, the time of the next one still comes.
        looks_further = settings.trigger.new_events is not None or settings.trigger.drifted is not None
        if not looks_further or known.failures or reason_to_turn(settings.trigger, known) is not None:
            return known
        land(self.wheel)
        # Where a try found nothing new, windows are open still: what had come in by then is no reason again.
        since_s = max(taken_in_at(turns[-1] if turns else None), self.tried_s or 0.0)
        new, files = new_events(self.wheel, settings.feedback, since_s)
        known = Seen(**{**vars(known), "new_events": new})
        # Spark has to look at columns: only where nothing else is a reason, and something has landed since.
        resting = settings.trigger.drifted is not None and reason_to_turn(settings.trigger, known) is None
        if resting and files and files != self.looked_at:
            self.looked_at = files
            return Seen(**{**vars(known), "drifted": drifted_share(self.wheel, settings)})
        return known


def watch(wheel: WheelFolder, *, every_s: float, program: tuple[str, ...] = (*HEADRACE, "turn")) -> NoReturn:
    """Look every `every_s` seconds until Stopped, which ends a turn under way first."""
    found = Watch(wheel, lambda: _turn((*program, "--wheel", str(wheel.path))))
    while True:
        try:
            found.look()
        except (UserError, StepFailed) as error:
            # A wheel.yaml that is being written, a database that is away: it may be put right. No turn has failed.
            say(f"watch: {error}")
        time.sleep(every_s)


def _turn(command: tuple[str, ...]) -> int:
    with subprocess.Popen(command, env=launch.environment(), stdin=subprocess.DEVNULL) as running:
        try:
            return running.wait()
        except BaseException:
            running.send_signal(signal.SIGTERM)
            running.wait()
            raise


def say(text: str) -> None:
    print(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}", flush=True)


def _stop(number: int, frame: object) -> NoReturn:
    for which in (signal.SIGTERM, signal.SIGINT):  # the turn is ended already: a second one would leave it behind
        signal.signal(which, signal.SIG_IGN)
    raise Stopped


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="headrace watch", description=__doc__)
    add = command.add_argument
    add("--wheel", required=True, metavar="DIR", help="folder of the wheel; its wheel.yaml says when (trigger:)")
    add(
        "--every",
        type=float,
        default=_LOOK_EVERY_S,
        metavar="SECONDS",
        help=f"how often to look whether there is a reason ({_LOOK_EVERY_S:.0f})",
    )
    given = command.parse_args(arguments)
    if given.every <= 0:
        command.error("--every takes seconds, more than 0")
    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, _stop)
    wheel = WheelFolder(Path(absolute(given.wheel)))
    try:
        wheel.settings()
        say(f"watch: looking at {wheel.path} every {given.every:g} s")
        watch(wheel, every_s=given.every)
    except UserError as error:
        print(f"watch: {error}", file=sys.stderr, flush=True)
        return 2
    except Stopped:
        say("watch: stopped; what was under way goes on with the next turn")
        return 0


if __name__ == "__main__":
    sys.exit(main())
