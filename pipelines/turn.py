"""Turn a wheel once: what was served becomes events, these a candidate, and the candidate, where it may, the champion.

A turn that was killed goes on with the step that was not done. Where nothing is new there is no turn.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn, TextIO

from pipelines.generations import write_pages
from pipelines.turning.beginnings import begin_wheel, known_wheels
from pipelines.turning.cleaning import clean
from pipelines.turning.engine import HEADRACE, Engine, StepFailed
from pipelines.turning.files import sha256_of
from pipelines.turning.lock import turning
from pipelines.turning.steps import STEPS, Site
from pipelines.turning.wheel_folder import GenerationFolder, WheelFolder
from pipelines.turning.work import NOT_UNDER_WAY
from schemas.errors import UserError
from schemas.gate import REFUSED, GateVerdict
from schemas.generations import PAGE, Generation, Turn
from schemas.programs import Parser
from schemas.settings import digest_of
from schemas.storage import absolute
from schemas.version import now_utc
from schemas.wheel import WheelSettings

_LAST_BEFORE_A_CANDIDATE = "ingest"
_NOT_OF_A_CANDIDATE = {"name", "trigger", "keep_generations", "ranks"}


def turn(
    wheel: WheelFolder, *, force: bool = False, only: str | None = None, program: tuple[str, ...] = HEADRACE
) -> int:
    """One turn, or one step of the turn under way; the exit code: 0, REFUSED, NOT_UNDER_WAY, or a program's."""
    settings = wheel.settings()
    with turning(wheel.path):
        began = time.monotonic()
        engine = engine_of(wheel, settings, force=force, only=only, program=program)
        if engine is None:
            print(f"turn: no turn of {wheel.path} is under way: nothing was new, or it has ended.")
            return NOT_UNDER_WAY
        names = [only] if only is not None else [*STEPS]
        try:
            code = run_steps(engine, wheel, names) if engine.turn.outcome == "running" else 0
        except StepFailed as failure:
            engine.note(outcome="failed", ended_at=now_utc())
            write_pages(wheel)
            say(f"turn {engine.turn.number}: the same command goes on with the step that failed.", to=sys.stderr)
            return failure.code
        if engine.turn.outcome != "running":
            say(f"turn {engine.turn.number}: {said_of(engine)} after {time.monotonic() - began:.0f} s")
            for cleaned in clean(wheel, keep=settings.keep_generations):
                say(f"turn {engine.turn.number}: removed snapshot and runs of generation {cleaned.path.name}")
        if engine.site.generation.path.exists():
            write_pages(wheel)
            if warning := nothing_learned(engine.site.generation.generation()):
                say(f"turn {engine.turn.number}: warning: {warning}")
            say(f"turn {engine.turn.number}: page: {wheel.path / PAGE}")
        return code


def engine_of(
    wheel: WheelFolder, settings: WheelSettings, *, force: bool, only: str | None, program: tuple[str, ...] = HEADRACE
) -> Engine | None:
    """The turn under way, or the next one; None where a step is asked for that does not begin one."""
    folders = wheel.generations()
    known = [(folder, found) for folder in folders if (found := folder.turn()) is not None]
    last = known[-1] if known else None
    under_way = last if last is not None and last[1].outcome in ("running", "failed") else None
    champion = wheel.in_service()
    begins = only in (None, next(iter(STEPS)))
    if under_way is not None and under_way[0].release in wheel.releases_in_use():
        # Killed after the release was put into service: it is not held against itself, nor made anew under a server.
        folder, found = under_way
        engine = Engine(_site(wheel, settings, folder), found, STEPS, _before(known, found), program)
        engine.note(outcome="promoted", ended_at=now_utc())
        if only != next(iter(STEPS)) and not force:
            return engine
        under_way = None
    wheel.check_champion()
    begun = {"champion": champion.id if champion is not None else None, "settings": digest_of_candidate(settings)}
    if under_way is not None and force and begins:
        folder, found = under_way
        Engine(_site(wheel, settings, folder), found, STEPS).note(outcome="abandoned", ended_at=now_utc())
        say(f"turn {found.number}: abandoned; its generation stays on record.")
        under_way = None
    if under_way is None and not begins:
        return None
    if under_way is not None:
        folder, found = under_way
        engine = Engine(_site(wheel, settings, folder), found, STEPS, _before(known, found), program)
        if only is None:
            say(f"turn {found.number}: goes on where it stopped.")
        engine.note(**begun, outcome="running", ended_at=None)
        return engine
    number = folders[-1].number + 1 if folders else 1
    fresh = Turn(number=number, started_at=now_utc(), forced=force)
    folder = wheel.generation(number)
    engine = Engine(_site(wheel, settings, folder), fresh, STEPS, _before(known, fresh), program)
    engine.note(**begun)
    return engine


def run_steps(engine: Engine, wheel: WheelFolder, names: list[str]) -> int:
    """Do the steps; 0, or REFUSED."""
    last = list(STEPS)[-1]
    for name in names:
        engine.check_reached(name)
        code = engine.run(name)
        if name == _LAST_BEFORE_A_CANDIDATE:
            # A turn that goes on may have taken in more than when it stopped.
            if engine.turn.events is None and not engine.turn.forced and is_old(engine.turn, wheel):
                say(f"turn: nothing is new since turn {_ended(wheel)[-1].number}; --force turns all the same.")
                shutil.rmtree(engine.site.generation.path)
                return 0
            engine.note(events=wheel.events_digest())
        if code == REFUSED:
            engine.note(outcome="refused", ended_at=now_utc())
            return REFUSED
        if name == last:
            engine.note(outcome="promoted", ended_at=now_utc())
    return 0


def nothing_learned(found: Generation | None) -> str | None:
    """Held-out rows are the newest: where they are all that came in, the candidate knows no more than the champion."""
    if found is None or not found.new_events or found.new_in_train != 0:
        return None
    held_out = found.splits["valid"] + found.splits["test"]
    return (
        f"all {found.new_events:,} new events are among the {held_out:,} newest, which are held out: nothing was "
        "learned of them. Give valid and test a smaller share (prepare.split in wheel.yaml), or turn less often."
    )


def is_old(turn: Turn, wheel: WheelFolder) -> bool:
    """Whether the last turn that came to its end had the same events and settings."""
    ended = _ended(wheel)
    return bool(ended) and (ended[-1].events, ended[-1].settings) == (wheel.events_digest(), turn.settings)


def digest_of_candidate(settings: WheelSettings) -> str:
    """Names what a candidate is made by, and let in by; of files of the wheel's own also what is in them."""
    named = [
        settings.contract,
        settings.features,
        *(one.recipe for one in (settings.retriever, settings.ranker) if one),
    ]
    files = [Path(name) for name in named if name is not None and Path(name).is_absolute()]
    changed = {str(path): sha256_of(path) for path in files}
    return digest_of([settings.model_dump(mode="json", exclude=_NOT_OF_A_CANDIDATE), changed])


def said_of(engine: Engine) -> str:
    """How it ended, with the reasons of a refusal."""
    if engine.turn.outcome == "promoted":
        return f"generation {engine.turn.id} is in service"
    verdict = GateVerdict.model_validate_json(engine.site.generation.verdict.read_text(encoding="utf-8"))
    failed = [f"{check.check}: {' '.join(check.reasons)}" for check in verdict.checks if check.verdict == "failed"]
    return f"generation {engine.turn.id} was refused ({'; '.join(failed)})"


def say(text: str, *, to: TextIO | None = None) -> None:
    print(text, file=to, flush=True)


def _site(wheel: WheelFolder, settings: WheelSettings, folder: GenerationFolder) -> Site:
    return Site(wheel=wheel, settings=settings, generation=folder, champion=wheel.in_service())


def _before(known: list[tuple[GenerationFolder, Turn]], turn: Turn) -> Turn | None:
    earlier = [found for _, found in known if found.number < turn.number]
    return earlier[-1] if earlier else None


def _ended(wheel: WheelFolder) -> list[Turn]:
    turns = [found for folder in wheel.generations() if (found := folder.turn()) is not None]
    return [found for found in turns if found.outcome in ("promoted", "refused")]


def _stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="headrace turn", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = command.add_argument
    add("--wheel", required=True, metavar="DIR", help="folder of the wheel, with its wheel.yaml")
    add("--new", metavar="NAME", help=f"write a wheel.yaml to begin with, and end: {', '.join(known_wheels())}")
    add("--raw", metavar="DIR", help="with --new: folder of the raw log (raw, in the wheel's folder)")
    add("--force", action="store_true", help="begin a new generation, though nothing is new or a turn is under way")
    add("--only", choices=[*STEPS], metavar="STEP", help=f"one step of the turn under way: {', '.join(STEPS)}")
    add("--page", action="store_true", help=f"write {PAGE} and its data anew, and end")
    given = command.parse_args(arguments)
    if given.raw is not None and given.new is None:
        command.error("--raw goes with --new; a wheel's own is in its wheel.yaml")
    for which in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(which, _stop)
    wheel = WheelFolder(Path(absolute(given.wheel)))
    try:
        if given.new is not None:
            say(begin_wheel(wheel.path, given.new, raw=given.raw))
            return 0
        if given.page:
            wheel.settings()
            say(f"turn: page: {write_pages(wheel)}")
            return 0
        return turn(wheel, force=given.force, only=given.only)
    except UserError as error:
        print(f"turn: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("turn: interrupted; the same command goes on from what is done", file=sys.stderr, flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
