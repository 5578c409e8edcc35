"""Small files of a wheel: records as JSON, and what names their content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel

from schemas.durable import write_text


def write_model(path: Path, model: BaseModel) -> None:
    write_text(path, model.model_dump_json(indent=1) + "\n")


def sha256_of(path: Path) -> str | None:
    """Of a small file; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
