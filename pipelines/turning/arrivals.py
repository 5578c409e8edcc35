"""How much has landed since a turn took in what had: counted from the files' footers, without reading a row."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq

from pipelines import launch
from pipelines.turning.engine import HEADRACE
from pipelines.turning.wheel_folder import WheelFolder
from schemas.errors import UserError
from schemas.feedback import FeedbackRules
from schemas.generations import Turn

_ITEM = "items.list.element.item_id"


def new_events(wheel: WheelFolder, rules: FeedbackRules, since_s: float) -> tuple[int, frozenset[str]]:
    """Since then: items shown, or actions, that may become events, and the names of all files that have landed.

    A landed file never changes, so the time at which it was written tells the new ones. Nobody has looked yet for what
    is whose event, for bots and for windows that are open: the number is an upper bound.
    """
    kind = "impressions" if rules.event == "impression" else "actions"
    files = sorted((wheel.landed / kind).glob("day=*/*.parquet"))
    fresh = [file for file in files if file.stat().st_mtime >= since_s]
    return sum(_rows(file, kind) for file in fresh), frozenset(str(file) for file in files)


def land(wheel: WheelFolder) -> None:
    """Land what servers have logged; UserError with the program's last words where that fails."""
    if not wheel.logs.exists():
        return
    command = [*HEADRACE, "land", "--logs", str(wheel.logs), "--to", str(wheel.landed)]
    done = subprocess.run(command, env=launch.environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"headrace land failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")


def taken_in_at(turn: Turn | None) -> float:
    """When the turn had landed what was logged until then; seconds since 1970."""
    step = turn.step("land") if turn is not None else None
    if step is None:
        return 0.0
    return datetime.fromisoformat(step.started_at).replace(tzinfo=UTC).timestamp() + (step.seconds or 0.0)


def _rows(file: Path, kind: str) -> int:
    footer = pq.read_metadata(file)
    if kind == "actions":
        return int(footer.num_rows)
    leaf = [footer.schema.column(place).path for place in range(footer.num_columns)].index(_ITEM)
    return sum(footer.row_group(group).column(leaf).num_values for group in range(footer.num_row_groups))
