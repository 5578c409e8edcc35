"""A bounded folder of row groups that came from afar, shared by the ranks of a host and kept between runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

_FINISHED, _UNFINISHED = ".arrow", ".unfinished"
_UNFINISHED_IS_DEBRIS_AFTER_S = 3600.0


def default_folder() -> Path:
    """Below the user's own cache folder, so that two users of a host do not meet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace" / "row_groups"


@dataclass(frozen=True)
class RowGroupCache:
    """Tables as Arrow files, at most `max_bytes` of them; those used longest ago are evicted first.

    A file appears whole or not at all, so processes may share the folder, and a crash leaves nothing that is taken for
    a row group. A file that cannot be read is thrown away and fetched again.
    """

    folder: Path
    max_bytes: int

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def get(self, key: tuple[object, ...], fetch: Callable[[], pa.Table]) -> pa.Table:
        """The table of this key: from the folder, or fetched and kept. `key` must change when the content does."""
        name = hashlib.sha256(repr(key).encode()).hexdigest()
        path = self.folder / f"{name}{_FINISHED}"
        with contextlib.suppress(OSError, pa.ArrowException):
            table = _read(path)
            os.utime(path)  # used now
            return table
        table = fetch()
        if table.nbytes <= self.max_bytes:
            self._keep(path, table)
        return table

    def _keep(self, path: Path, table: pa.Table) -> None:
        unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_UNFINISHED}")
        try:
            with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            self._make_room(unfinished.stat().st_size)
            os.replace(unfinished, path)
        except OSError:  # a full disk slows the feed and does not stop it
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        """Evict what was used longest ago, and what a process that was killed left unfinished; nobody else's files."""
        found = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):  # another process evicts too
                stat = entry.stat()
                if entry.name.endswith(_FINISHED):
                    found.append((stat.st_mtime, stat.st_size, entry.path))
                elif entry.name.endswith(_UNFINISHED) and time.time() - stat.st_mtime > _UNFINISHED_IS_DEBRIS_AFTER_S:
                    os.unlink(entry.path)
        held = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if held + wanted <= self.max_bytes:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # a reader that has it open goes on reading it
            held -= size


def _read(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()
