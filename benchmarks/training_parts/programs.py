"""Running a program that prints lines of JSON, alone or on ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines import launch
from schemas.errors import UserError


def json_lines(command: Sequence[str], log: Path) -> list[dict[str, Any]]:
    """The lines of JSON that a program prints; its whole output goes to `log`. UserError where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=launch.environment(), cwd=launch.ROOT
        )
        errors.write(done.stdout)
    if done.returncode != 0:
        raise UserError(f"{' '.join(command[:6])} ... ended with code {done.returncode}: what it said is in {log}.")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def one_line(command: Sequence[str], log: Path) -> dict[str, Any]:
    """The one line of JSON of a program. UserError where it fails or prints another number of them."""
    found = json_lines(command, log)
    if len(found) != 1:
        raise UserError(f"{' '.join(command[:6])} ... printed {len(found)} lines of JSON, not one: see {log}.")
    return found[0]


def on_ranks(module: str, arguments: Sequence[str], ranks: int) -> list[str]:
    """The command of one of our modules on ranks; horovodrun's marks are taken off by pipelines.launch."""
    call = (
        f"from pipelines import launch; raise SystemExit(launch.on_ranks({module!r}, {[*arguments]!r}, ranks={ranks}))"
    )
    return [sys.executable, "-c", call]
