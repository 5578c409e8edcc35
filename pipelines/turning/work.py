"""What a step is to do: commands of `headrace`, what they read and write, and what names both."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.turning.files import sha256_of
from schemas.settings import digest_of

NOT_UNDER_WAY = 99
"""Exit code of a single step where no turn is under way: what Airflow takes for a task to skip."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Commands, one after the other; the first that fails ends the step."""

    commands: tuple[tuple[str, ...], ...]
    files: Mapping[Path, str] = field(default_factory=dict)
    """Written before the commands run."""
    reads: tuple[Path, ...] = ()
    """Small files whose content, and folders whose listing, tells whether the step would do the same again."""
    writes: tuple[Path, ...] = ()
    """Removed before the step is done again with other inputs; with the same ones its programs go on from them."""
    might_write: tuple[Path, ...] = ()
    """Removed as `writes` are: with other inputs the step would have left these, too."""
    afresh: bool = False
    """Removed with the same inputs, too: the program refuses a folder that is there."""
    lasting: tuple[Path, ...] = ()
    """What a step leaves in the wheel: with these there, and the last turn's inputs, it stands."""
    may_refuse: bool = False
    may_lack: bool = False
    """Exit code 2, nothing to report on, does not end the turn: the gate says what a missing report means."""

    def inputs(self) -> str:
        """Names what the step makes."""
        return digest_of(
            {
                "commands": self.commands,
                "files": {str(path): text for path, text in self.files.items()},
                "reads": {str(path): _state(path) for path in self.reads},
            }
        )

    def stands(self) -> bool:
        return all(path.exists() for path in self.writes)

    def clear(self) -> None:
        _remove((*self.writes, *self.might_write))


@dataclass(frozen=True)
class Needless:
    """There is nothing to do, and why."""

    reason: str
    writes: tuple[Path, ...] = ()
    """What the step leaves where there is a need: of another champion or other settings, it is removed."""

    def clear(self) -> bool:
        """Whether anything was there."""
        return _remove(self.writes)


def _remove(paths: tuple[Path, ...]) -> bool:
    there = [path for path in paths if path.exists()]
    for path in there:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return bool(there)


def _state(path: Path) -> Any:
    """Content of a file; names, sizes and times of what lies in a folder; None of what is not there."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        found = ((file, file.stat()) for file in files)
        return [[str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns] for file, stat in found]
    return sha256_of(path)
