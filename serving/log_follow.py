"""Reading logs while they are written to: each record once, also of segments that are sealed meanwhile."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from serving.segments import FOOTER, OPEN, PREFIX_BYTES, SEALED, whole
from serving.telling import complain

Record = dict[str, Any]


class LogReader:
    """Remembers how far it has read each segment of a log; `records` gives what is new since it was last called.

    What is not whole yet is left for the next time; in a sealed segment it never will be, and is passed over. Of a
    sealed segment that was read to its end the name alone is looked at again.
    """

    def __init__(self, folder: Path, *, after_ms: int) -> None:
        self._folder, self._after_ms = folder, after_ms
        self._read: dict[str, int] = {}
        """Bytes by the segment's name, which it keeps when it is sealed."""
        self._finished: set[str] = set()

    def records(self) -> Iterator[Record]:
        """Records later than the time, of all writers; segments sealed before it are not read."""
        found = {path.stem for path in self._folder.glob("*") if path.suffix in (OPEN, SEALED)}
        self._finished &= found
        self._read = {name: at for name, at in self._read.items() if name in found}
        for name in sorted(found - self._finished):
            yield from self._new(name)

    def _new(self, name: str) -> Iterator[Record]:
        for suffix in (OPEN, SEALED):  # it may be sealed, or landed and taken away, at any moment
            try:
                file = (self._folder / f"{name}{suffix}").open("rb")
            except FileNotFoundError:
                continue
            with file:
                yield from self._rest(name, file, is_sealed=suffix == SEALED)
            return

    def _rest(self, name: str, file: BinaryIO, *, is_sealed: bool) -> Iterator[Record]:
        at = file.seek(self._read.get(name, 0))
        if not (is_sealed and os.fstat(file.fileno()).st_mtime * 1000 < self._after_ms):
            for line in file:
                if not line.endswith(b"\n") and not is_sealed:
                    return
                at += len(line)
                self._read[name] = at
                if whole(line) and line[8:9] != FOOTER and (record := self._record(name, line)) is not None:
                    yield record
        if is_sealed:
            self._finished.add(name)
            self._read.pop(name, None)

    def _record(self, name: str, line: bytes) -> Record | None:
        """None where it is too old, or nothing that a server writes."""
        try:
            record: Record = json.loads(line[PREFIX_BYTES:])
            return record if record["time_ms"] > self._after_ms else None
        except (ValueError, KeyError, TypeError) as error:
            complain(f"serve: a line of {self._folder / name} is passed over: {type(error).__name__}: {error}")
            return None


Readers = Mapping[LogReader, Callable[[Record], None]]


def tell_new(readers: Readers) -> int:
    """Tell what each reader finds new, in their order; give the number of records."""
    count = 0
    for reader, tell in readers.items():
        for record in reader.records():
            tell(record)
            count += 1
    return count


class LogFollower:
    """A thread that tells what servers write into the same logs, so that all of them know a user alike.

    `problem` says why it cannot, while that is so; it goes on trying.
    """

    def __init__(self, readers: Readers, *, every_s: float = 0.25) -> None:
        self._readers, self._every_s = readers, every_s
        self.problem: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follow logs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, *, patience_s: float | None = None) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(patience_s)

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                tell_new(self._readers)
                self.problem = None
            except Exception as error:  # whatever the disk or a record did, what comes after it is told
                problem = f"the logs cannot be followed: {type(error).__name__}: {error}"
                if problem != self.problem:
                    complain(f"serve: {problem}")
                self.problem = problem
