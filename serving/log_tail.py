"""The last of what a server's logs say of one user, read from their ends: bounded, however long they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.served import Kind
from serving.segments import FOOTER, OPEN, PREFIX_BYTES, SEALED, whole

_BLOCK_BYTES = 1 << 18
MOST_BYTES = 4 << 20
"""That one look reads at most."""


def last_of_user(logs: Path, kind: Kind, user_id: str, *, most: int, most_bytes: int = MOST_BYTES) -> list[Any]:
    """The user's latest records, the newest first, as far as the last `most_bytes` of all segments hold them."""
    named = json.dumps(user_id, ensure_ascii=False).encode("utf-8", errors="replace")
    escaped = json.dumps(user_id).encode()
    found: list[Any] = []
    for segment in _newest_first(logs / kind):
        for line, size in _lines_from_the_end(segment, most_bytes):
            most_bytes -= size
            if (named in line or escaped in line) and whole(line) and line[8:9] != FOOTER:
                record = json.loads(line[PREFIX_BYTES:])
                if record.get("user_id") == user_id:
                    found.append(record)
        if most_bytes <= 0 or len(found) >= most:
            break
    return sorted(found, key=lambda record: -record["time_ms"])[:most]


def _newest_first(folder: Path) -> list[Path]:
    """Open segments of all writers before sealed ones; what is landed and removed meanwhile is no error."""
    dated = []
    for path in folder.glob("*"):
        if path.suffix in (OPEN, SEALED):
            try:
                dated.append((path.suffix == OPEN, path.stat().st_mtime_ns, path))
            except FileNotFoundError:
                continue
    return [path for *_, path in sorted(dated, reverse=True)]


def _lines_from_the_end(path: Path, most_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Each line with its end, the last first, and its size; stops at `most_bytes`."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        at, begun = file.seek(0, 2), b""
        while at > 0 and most_bytes > 0:
            step = min(at, _BLOCK_BYTES, most_bytes)
            at -= step
            most_bytes -= step
            file.seek(at)
            lines = (file.read(step) + begun).splitlines(keepends=True)
            # The first line may have begun in the block before.
            begun = lines[0]
            for line in reversed(lines[1:]):
                yield line, len(line)
        if at == 0 and begun:
            yield begun, len(begun)
