"""The wheels of the benchmark: their settings, their turns, and what servers would have logged for them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from benchmarks.wheel_parts.real_log import RealLog
from pipelines import launch
from pipelines.turning.beginnings import begin_wheel
from pipelines.turning.wheel_folder import WheelFolder
from schemas.durable import write_text
from schemas.errors import UserError
from schemas.gate import REFUSED
from schemas.served import Action, Impression
from serving.append_log import AppendLog

_EPOCHS = re.compile(r"^epochs=")


def new_wheel(
    folder: Path,
    log: RealLog,
    seed_end_ms: int,
    *,
    epsilon: float,
    epochs: int,
    train_days: float | None = None,
    past_share: float = 0.0,
    seed: int,
) -> WheelFolder:
    """The built-in one without its ranker, on the first part of the log, with so many epochs and this much chance."""
    wheel = WheelFolder(folder)
    if wheel.wheel.is_file():
        return wheel
    log.write_seed(seed_end_ms, folder / "raw")
    begin_wheel(folder / "template", log.name)
    settings: dict[str, Any] = yaml.safe_load((folder / "template" / "wheel.yaml").read_text(encoding="utf-8"))
    settings["raw"] = "raw"
    # What is measured is whether the items that people took are found among all: retrieval. A ranker orders by how
    # likely those who met an item take it, which says nothing of who met it, and that decides here.
    settings["ranker"] = None
    if log.name == "kuairand":
        settings["prepare"]["train-histories"] = "others"  # the ranker's rows would have to hold what came before them
    settings["feedback"]["window_hours"] = 1  # replayed users act within seconds, and periods may be hours long
    kept = [one for one in settings["retriever"].get("set", []) if not _EPOCHS.match(one)]
    settings["retriever"]["set"] = [*kept, f"epochs={epochs}", f"seed={seed}"]
    kind = "epsilon_greedy" if epsilon else "none"
    settings["serving"]["exploration"] = {"kind": kind, "epsilon": epsilon, "pool": 50}
    # What is measured here is what turning does to quality, so the gate stops only what is clearly worse.
    settings["gate"] = {
        "metrics": {"ndcg@10": 0.02},
        "waived": ["drift", "skew", "slices", "calibration", "off_policy"],
    }
    settings["keep_generations"] = 2
    settings |= {"train_days": train_days, "past_share": past_share}
    write_text(wheel.wheel, yaml.safe_dump(settings, sort_keys=False))
    return wheel


def turn(wheel: WheelFolder) -> None:
    """Turn once, or go on with the turn that was cut off. UserError where it fails."""
    # These logs are small, and never repay the JVM's second compiler: a turn takes half the processor time without it.
    os.environ.setdefault("JAVA_TOOL_OPTIONS", f"{launch.FOR_SMALL_DATA} -XX:+UseSerialGC")
    code = launch.program("pipelines.turn", ["--wheel", str(wheel.path)])
    if code not in (0, REFUSED):
        raise UserError(f"the turn of {wheel.path} failed with exit code {code}: run the benchmark again, it goes on.")


def outcome_of(wheel: WheelFolder, number: int) -> str:
    """What became of a turn, as its record says; `nothing new` where there was none."""
    found = next((folder.turn() for folder in wheel.generations() if folder.number == number), None)
    return found.outcome if found is not None else "nothing new"


def first_release(wheel: WheelFolder) -> Path:
    """A copy of the first generation's, which stays when the wheel has left it behind."""
    kept = wheel.path / "first-release"
    if not kept.exists():
        draft = wheel.path / ".first-release"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(wheel.generation(1).release, draft)
        draft.rename(kept)
    return kept


def release_in_service(wheel: WheelFolder) -> Path:
    champion = wheel.in_service()
    if champion is None:
        raise UserError(f"{wheel.path} has no release in service: see its generations.html.")
    return wheel.release_of(champion)


def write_logs(wheel: WheelFolder, impressions: Iterable[Impression], actions: Iterable[Action]) -> None:
    """As a server writes them: appended, on the disk, sealed."""
    kinds: dict[str, Iterable[BaseModel]] = {"impressions": impressions, "actions": actions}
    for kind, records in kinds.items():
        log = AppendLog(wheel.logs / kind, writer="replay", fsync="interval")
        waiting = [log.append(record.model_dump_json().encode()) for record in records]
        for one in waiting:
            one.result()
        log.close()
