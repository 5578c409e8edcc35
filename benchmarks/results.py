"""What a benchmark has measured, a line a run, in a file that a later call goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Results:
    """Runs by their key: what was asked for. What stands is not measured again."""

    def __init__(self, path: Path, *, redo: Sequence[str] = ()) -> None:
        """`redo`: tools whose earlier runs are forgotten."""
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        read: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.runs = [run for run in read if run.get("tool") not in redo]
        if len(self.runs) < len(read):
            path.write_text("".join(json.dumps(run) + "\n" for run in self.runs), encoding="utf-8")

    def find(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        return next((run for run in self.runs if all(run.get(name) == key[name] for name in key)), None)

    def add(self, key: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
        run = {**found, **key}
        self.runs.append(run)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")
        return run
