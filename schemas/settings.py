"""Settings in YAML: read by name or path, checked strictly, every fault told in one line with its place."""

from __future__ import annotations

import hashlib
import json
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import UserError, nearest

M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """A model that refuses keys it does not know, so that a typing error never passes for a setting."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_yaml(name_or_path: str, *, catalogue: Traversable, what: str) -> tuple[Any, str]:
    """The content of a built-in file by name, or of a file by path, and where it stands, for messages.

    Raises UserError naming the nearest built-in one, or the file and the place in it. `catalogue` is no Path: on a
    Spark cluster our code is read from a zip.
    """
    file: Path | Traversable = Path(name_or_path)
    if Path(name_or_path).suffix not in (".yaml", ".yml"):
        file = catalogue / f"{name_or_path}.yaml"
        if not file.is_file():
            known = sorted(Path(entry.name).stem for entry in catalogue.iterdir() if entry.name.endswith(".yaml"))
            raise UserError(
                f"no built-in {what} {name_or_path!r}{nearest(name_or_path, known) or '.'} "
                f"Known: {', '.join(known)}; a {what} of your own is given as a path ending in .yaml."
            )
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8")), f"{what} {file}"
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise UserError(f"{what} {file} {reason}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {file} is not YAML: {' '.join(str(error).split())}") from None


def parse_model(model: type[M], raw: Any, *, where: str) -> M:
    """Check `raw` against `model`; raise UserError that names the first faults in one line."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        faults = [_fault(model, raw, fault) for fault in error.errors()]
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise UserError(f"{where}: {'; '.join(faults[:3])}{more}") from None


def _fault(model: type[BaseModel], raw: Any, fault: Any) -> str:
    place = ".".join(str(part) for part in _written(raw, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        known = _keys_at(model, fault["loc"][:-1])
        return f"unknown key {place!r}{nearest(str(fault['loc'][-1]), known)}"
    return f"{place or 'the file'}: {fault['msg'].removeprefix('Value error, ')}"


def _written(raw: Any, loc: tuple[Any, ...]) -> list[Any]:
    """The place as it stands in the file: pydantic also names which kind of several it took a mapping for."""
    kept = []
    for part in loc[:-1]:
        if isinstance(raw, dict) and part not in raw:
            continue
        kept.append(part)
        raw = raw[part] if isinstance(raw, dict | list | tuple) else raw
    return [*kept, *loc[-1:]]


def _keys_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The keys that are known at this place, found by following field names and kinds through the types."""
    current = [model]
    for part in loc:
        inner = [
            one for of in current if part in of.model_fields for one in _models_in(of.model_fields[part].annotation)
        ]
        kinds = [of for of in current if any(part in get_args(field.annotation) for field in of.model_fields.values())]
        current = inner or kinds or current
    return sorted({key for one in current for key in one.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in getattr(annotation, "__args__", ()) for found in _models_in(argument)]
