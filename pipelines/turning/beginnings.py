"""A wheel to begin with: a commented wheel.yaml for a built-in contract, to be changed by hand."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

from schemas.durable import write_text
from schemas.errors import UserError, nearest
from schemas.storage import absolute
from schemas.wheel import WHEEL

_WHEELS = files("schemas") / "wheels"
_RAW = re.compile(r"^raw: .*$", re.MULTILINE)


def known_wheels() -> list[str]:
    return sorted(Path(entry.name).stem for entry in _WHEELS.iterdir() if entry.name.endswith(".yaml"))


def begin_wheel(folder: Path, name: str, *, raw: str | None = None) -> str:
    """Write `folder`/wheel.yaml; say what comes next. UserError where there is one already."""
    if name not in known_wheels():
        raise UserError(
            f"no wheel {name!r} to begin with{nearest(name, known_wheels()) or '.'} Known: {', '.join(known_wheels())}."
        )
    path = folder / WHEEL
    if path.exists():
        raise UserError(f"{path} is there already: change it, or give another --wheel.")
    text = _WHEELS.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    if raw is not None:
        text = _RAW.sub(lambda _: f"raw: {json.dumps(absolute(raw))}", text, count=1)
    write_text(path, text)
    return f"turn: wrote {path}. Look through it, then: headrace turn --wheel {folder}"
