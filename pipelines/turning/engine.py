"""Running a turn's steps: each once, with its state on disk before and after it, so that a killed turn goes on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines import launch
from pipelines.turning.files import write_model
from pipelines.turning.lock import end_programs, mark_of
from pipelines.turning.steps import Plan, Site
from pipelines.turning.work import NOT_UNDER_WAY, Needless, Work
from schemas.durable import write_text
from schemas.errors import UserError
from schemas.gate import REFUSED
from schemas.generations import TURN, StepRecord, Turn
from schemas.version import now_utc

HEADRACE = (sys.executable, "-m", "pipelines.cli")
_LAST_LINES = 20
_MISTAKEN = 2


class StepFailed(Exception):
    """A program ended with an error; its last words have been shown."""

    def __init__(self, step: str, code: int) -> None:
        super().__init__(f"{step}: exit code {code}")
        # The gate's own, and Airflow's for a task that there was no need of, would be taken for what they mean.
        self.code = 1 if code in (REFUSED, NOT_UNDER_WAY) else code


@dataclass
class Engine:
    """One turn, on its way through `steps`."""

    site: Site
    turn: Turn
    steps: Mapping[str, Plan]
    before: Turn | None = None
    """The turn before this one: what it left of the wheel's own folders may stand."""
    program: tuple[str, ...] = HEADRACE

    def run(self, name: str) -> int:
        """Do the step, unless it is done; its exit code, 0 or, of a gate, REFUSED. Raises StepFailed."""
        found = self.turn.step(name)
        work = self.steps[name](self.site)
        if isinstance(work, Needless):
            # A report of another champion, or a model that wheel.yaml no longer names, would be taken for this turn's.
            if work.clear() or found is None or found.code != 0:
                self._note(StepRecord(name=name, started_at=now_utc(), seconds=0.0, code=0, skipped=work.reason))
            self._say(name, f"not needed: {work.reason}")
            return 0
        inputs = work.inputs()
        if found is not None and found.inputs == inputs and _is_done(found, work):
            self._say(name, "done before")
            assert found.code is not None
            return found.code
        if found is None and self._stands(name, work, inputs):
            reason = "stands as the last turn left it"
            self._note(StepRecord(name=name, started_at=now_utc(), seconds=0.0, code=0, skipped=reason, inputs=inputs))
            self._say(name, reason)
            return 0
        return self._do(name, work, inputs, found)

    def check_reached(self, name: str) -> None:
        """UserError where a step before this one is not done."""
        for earlier in list(self.steps)[: list(self.steps).index(name)]:
            record = self.turn.step(earlier)
            if record is None or record.code not in (0, REFUSED):
                raise UserError(
                    f"turn {self.turn.number}: {name} comes after {earlier}, which is not done: run it first."
                )

    def note(self, **changes: object) -> None:
        """Change what is known of the turn, and keep it."""
        self.turn = self.turn.model_copy(update=changes)
        write_model(self.site.generation.path / TURN, self.turn)

    def log_of(self, name: str) -> Path:
        return self.site.generation.path / "log" / f"{name}.txt"

    def _do(self, name: str, work: Work, inputs: str, found: StepRecord | None) -> int:
        if work.afresh or (found is not None and found.inputs != inputs):
            # What was made of other inputs is in the way: programs refuse to go on from it. Later steps read it.
            self._check_out_of_service(work)
            work.clear()
        started, began = now_utc(), time.monotonic()
        self._note(StepRecord(name=name, started_at=started, inputs=inputs))
        for path, text in work.files.items():
            write_text(path, text)
        print(self._title(name), end=" ", flush=True)
        code = self._commands(name, work)
        seconds = time.monotonic() - began
        if code == _MISTAKEN and work.may_lack:
            reason = f"no report: {_last_line(self.log_of(name))}"
            record = StepRecord(name=name, started_at=started, seconds=round(seconds, 2), code=0, skipped=reason)
            self._note(record.model_copy(update={"inputs": inputs}))
            print(f"{seconds:.0f} s, {reason}", flush=True)
            return 0
        self._note(StepRecord(name=name, started_at=started, seconds=round(seconds, 2), code=code, inputs=inputs))
        if code == 0 or (code == REFUSED and work.may_refuse):
            print(f"{seconds:.0f} s" + (", refused" if code else ""), flush=True)
            return code
        print(f"failed with exit code {code} after {seconds:.0f} s", flush=True)
        _show_last_lines(self.log_of(name))
        raise StepFailed(name, code)

    def _commands(self, name: str, work: Work) -> int:
        log = self.log_of(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**launch.environment(), **mark_of(self.site.wheel.path)}
        for command in work.commands:
            with log.open("a", encoding="utf-8") as to:
                to.write(f"$ headrace {' '.join(command)}\n")
                to.flush()
                # A group of its own: the terminal's Ctrl-C reaches the turn, which ends what it started.
                running = subprocess.Popen(
                    [*self.program, *command],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=to,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                try:
                    code = running.wait()
                except BaseException:  # Ctrl-C, or SIGTERM: nothing goes on without us
                    end_programs(self.site.wheel.path)
                    running.wait()
                    raise
            if code != 0:
                return code if code > 0 else 128 - code
        return 0

    def _check_out_of_service(self, work: Work) -> None:
        """UserError where the step would remove a release from under its server, or one that a rollback goes to."""
        for release in self.site.wheel.releases_in_use():
            if release in work.writes:
                raise UserError(f"{release} is in service, or was: begin another generation with --force.")

    def _stands(self, name: str, work: Work, inputs: str) -> bool:
        then = self.before.step(name) if self.before is not None else None
        is_there = bool(work.lasting) and all(path.exists() for path in work.lasting)
        return is_there and then is not None and then.code == 0 and then.inputs == inputs

    def _note(self, record: StepRecord) -> None:
        """Keep the record, in the order of the steps."""
        others = tuple(step for step in self.turn.steps if step.name != record.name)
        place = {name: number for number, name in enumerate(self.steps)}
        ordered = sorted((*others, record), key=lambda step: place.get(step.name, len(place)))
        self.note(steps=tuple(ordered))

    def _title(self, name: str) -> str:
        return f"turn {self.turn.number}: [{list(self.steps).index(name) + 1}/{len(self.steps)}] {name} ..."

    def _say(self, name: str, what: str) -> None:
        print(f"{self._title(name)} {what}", flush=True)


def _is_done(found: StepRecord, work: Work) -> bool:
    ended_well = found.code == 0 or (found.code == REFUSED and work.may_refuse)
    return ended_well and work.stands()


def _last_line(log: Path) -> str:
    with log.open(encoding="utf-8", errors="replace") as file:
        return (deque((line.strip() for line in file if line.strip()), maxlen=1) or [""])[0]


def _show_last_lines(log: Path) -> None:
    with log.open(encoding="utf-8", errors="replace") as file:
        lines = deque(file, maxlen=_LAST_LINES)
    for line in lines:
        print(f"  | {line.rstrip()}", file=sys.stderr)
    print(f"the whole of it: {log}", file=sys.stderr, flush=True)
