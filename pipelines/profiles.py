"""Profiles: files of Spark's settings for a kind of cluster, by name or by path."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

from schemas.errors import UserError, nearest
from schemas.storage import absolute

FOLDER = Path(__file__).parent.parent / "profiles"


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.conf"))


def find(name_or_file: str) -> Path:
    """The file of a profile: a name in `profiles/`, or a path, which has a / or an ending; UserError for neither."""
    if "/" not in name_or_file and "." not in name_or_file:
        if name_or_file in names():
            return FOLDER / f"{name_or_file}.conf"
        raise UserError(
            f"there is no profile {name_or_file!r}{nearest(name_or_file, names())}; "
            f"there are {', '.join(names())}, and files (with a / or an ending in their name)."
        )
    path = Path(absolute(name_or_file))
    if not path.is_file():
        raise UserError(f"profile {name_or_file}: there is no such file{nearest(path.stem, names())}.")
    return path


def settings(path: Path) -> dict[str, str]:
    """What a profile sets, read as spark-submit reads it: a key, white space or = or :, a value; # begins a comment."""
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text[0] in "#!":
            continue
        key, value = _parted(text)
        if not key.startswith("spark."):
            raise UserError(f"{path}:{number}: {key!r} is no setting of Spark's: they begin with 'spark.'.")
        if not value:
            raise UserError(f"{path}:{number}: {key} has no value.")
        found[key] = value
    return found


def make_event_folder(settings: dict[str, str]) -> None:
    """Make the folder of the event log, where it is one on this machine: Spark stops where it is missing."""
    where = urlparse(settings.get("spark.eventLog.dir", ""))
    if settings.get("spark.eventLog.enabled") == "true" and where.scheme in ("", "file") and where.path:
        Path(where.path).mkdir(parents=True, exist_ok=True)


def _parted(text: str) -> tuple[str, str]:
    end = next((i for i, sign in enumerate(text) if sign in "=: \t"), len(text))
    return text[:end], text[end:].lstrip().removeprefix("=").removeprefix(":").strip()
