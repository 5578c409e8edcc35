"""The segment that a writer appends to. Its lock says that the writer lives; the kernel lets go of it when it dies."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

import xxhash

from schemas.durable import sync_folder, write_all
from serving.segments import AFTER_SYNC, OPEN, RECORD, SEALED, Seal, framed


class NameTaken(Exception):
    """Somebody else holds the file that was just made: its writer takes another name."""


class Uncertain(OSError):
    """The disk failed, and what it had taken could not be taken back: some of the lines may be there."""


class OpenSegment:
    """NAME.open, from its first byte to its seal. Every method raises OSError where the disk does.

    After a failed `append` the segment is as before it; where even that failed, or the disk did not take what it had
    been given, `usable` is False: `abandon` it, and whoever recovers segments finds it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}{OPEN}"
        self.usable = True
        self.bytes = self.records = 0
        self._digest = xxhash.xxh3_128()
        self._synced = True
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            # Between making and locking it, who recovers segments may have taken it for a dead writer's.
            self._lock()
            sync_folder(folder)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, lines: list[bytes], *, sync: bool) -> None:
        """Write the lines with one write and, where asked, wait until they are on the disk: all of them or none."""
        first = framed(lines[0], AFTER_SYNC if self._synced else RECORD)
        content = b"".join([first, *map(framed, lines[1:])])
        try:
            write_all(self._file, content)
            if sync:
                self._sync()
        except OSError as error:
            if not self._cut():
                raise Uncertain(error.errno, error.strerror) from error
            raise
        self._synced = sync
        self._digest.update(content)
        self.bytes += len(content)
        self.records += len(lines)

    def sync(self) -> None:
        if not self._synced:
            self._sync()
            self._synced = True

    def seal(self) -> Path:
        """Write the last line and give the segment the name under which it is read; then it is closed."""
        seal = Seal(records=self.records, size_bytes=self.bytes, xxh3_128=self._digest.hexdigest())
        try:
            # Before the last line: it says that all before it is on the disk.
            self.sync()
            write_all(self._file, seal.line())
            self._sync()
        except OSError:
            self._cut()
            raise
        sealed = self.path.with_suffix(SEALED)
        self.path.rename(sealed)
        sync_folder(sealed.parent)
        os.close(self._file)
        return sealed

    def abandon(self) -> None:
        """Close it as it is: the lock is free, so it is taken for a dead writer's and recovered."""
        with suppress(OSError):  # Linux lets go of the file all the same
            os.close(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(self.path).st_ino != os.fstat(self._file).st_ino:
                raise NameTaken(self.path)
        except (BlockingIOError, FileNotFoundError):
            raise NameTaken(self.path) from None

    def _sync(self) -> None:
        try:
            os.fdatasync(self._file)
        except OSError:
            # Linux reports pages that it could not write once, then takes them for written: no second try is worth it.
            self.usable = False
            raise

    def _cut(self) -> bool:
        """Whether nothing is left of what was written last."""
        try:
            os.ftruncate(self._file, self.bytes)
        except OSError:
            self.usable = False
            return False
        return True
