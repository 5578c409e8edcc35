"""Between turns: how much has changed since the events that the last candidate knows."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pipelines.turning.engine import HEADRACE, Engine
from pipelines.turning.steps import Plan, Site, feedback, ingest
from pipelines.turning.wheel_folder import GenerationFolder, WheelFolder, is_release
from pipelines.turning.work import Work
from schemas.drift import DriftReport
from schemas.generations import Turn
from schemas.release import RELEASE, Release
from schemas.settings import parse_model
from schemas.version import now_utc
from schemas.wheel import WheelSettings

FOLDER = "watch"
"""Beside generations/: the last comparison, and what its programs said."""


def drifted_share(wheel: WheelFolder, settings: WheelSettings, *, program: tuple[str, ...] = HEADRACE) -> float | None:
    """Share of columns whose events after the last candidate's are others than those before; None where there is
    nothing to compare.

    What has landed becomes events for it, as it would in a turn; StepFailed where a program fails. The caller holds the
    wheel's lock.
    """
    turns = [turn for folder in wheel.generations() if (turn := folder.turn()) is not None]
    release = _last_release(wheel, turns)
    if release is None:
        return None
    folder = GenerationFolder(wheel.path / FOLDER)
    site = Site(wheel=wheel, settings=settings, generation=folder, champion=wheel.in_service())
    steps: dict[str, Plan] = {"feedback": feedback, "ingest": ingest, "drift": partial(drift, release=release)}
    engine = Engine(site, Turn(number=turns[-1].number, started_at=now_utc()), steps, turns[-1], program)
    for name in steps:
        engine.run(name)
    report = _report_of(site)
    if not report.is_file():
        return None
    found = parse_model(DriftReport, json.loads(report.read_text(encoding="utf-8")), where=str(report))
    compared = [column for column in found.columns if column.verdict != "not_enough_rows"]
    return len(found.drifted) / len(compared) if compared else None


def drift(site: Site, *, release: Path) -> Work:
    path = release / RELEASE
    found = parse_model(Release, json.loads(path.read_text(encoding="utf-8")), where=str(path))
    after = datetime.fromtimestamp((found.last_event_time_ms + 1) / 1000, UTC).isoformat(timespec="milliseconds")
    events, out = str(site.wheel.events), _report_of(site).parent
    windows = ("--reference-window", f",{after}", "--current-window", f"{after},")
    command = ("drift", "--reference", events, "--current", events, *windows, "--out", str(out))
    # Where too little has come in since, there is no report.
    return Work(commands=(command,), writes=(out,), afresh=True, may_lack=True)


def _last_release(wheel: WheelFolder, turns: list[Turn]) -> Path | None:
    """Of the last turn that came to its end, or else the one in service.

    A refused candidate has learned from what had changed by then: held against the champion's events, which stay as
    they were, the same change would be a reason for turn after turn.
    """
    ended = [wheel.generation(turn.number).release for turn in turns if turn.outcome in ("promoted", "refused")]
    champion = wheel.in_service()
    known = [*ended[-1:], *([wheel.release_of(champion)] if champion is not None else [])]
    return next((release for release in known if turns and is_release(release)), None)


def _report_of(site: Site) -> Path:
    return site.generation.path / "drift" / "drift.json"
