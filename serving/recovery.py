"""What becomes of open segments: those of dead writers are sealed by others, those of living ones on request."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

import xxhash

from schemas.durable import sync_folder, write_all, write_whole
from schemas.errors import UserError
from serving.append_log import SEAL_REQUEST
from serving.segments import OPEN, SEALED, TORN, Scan, Seal, SegmentFault, scan

_BLOCK_BYTES = 1 << 22
_ASKS_EVERY_S = 0.05


def open_segments(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{OPEN}"))


def seal_living(folder: Path, *, patience_s: float = 30.0) -> None:
    """Ask the writers of a log to seal, and wait until they have: then all they have acknowledged so far is sealed.

    Segments of dead writers are left as they are. UserError names a segment whose writer does not answer.
    """
    # Empty, so that it can also be made on a full disk: a file of its own each time is what writers look at.
    try:
        write_whole(folder / SEAL_REQUEST, b"")
    except OSError as error:
        raise UserError(f"the writers of {folder} cannot be asked to seal: {error}") from None
    asked, until = open_segments(folder), time.monotonic() + patience_s
    while asked := [path for path in asked if _is_written(path)]:
        if time.monotonic() > until:
            raise UserError(
                f"segment {asked[0]}: its writer lives but has not sealed it within {patience_s:.0f} s of being "
                "asked: is it stopped, or its disk full? The same command goes on from what is done."
            )
        time.sleep(_ASKS_EVERY_S)


def recover(folder: Path) -> list[SegmentFault]:
    """Seal the open segments whose writers are dead; give what it found damaged, or could not seal, and left.

    Every whole record is kept. A torn tail was never acknowledged; it is cut off and kept beside. Killed at any moment,
    it does the rest when it is called again.
    """
    damaged: list[SegmentFault] = []
    for path in open_segments(folder):
        try:
            file = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Sealed by its writer, or by another, before the lock was ours.
            if os.stat(path).st_ino == os.fstat(file).st_ino:
                _recover(path, file)
        except (BlockingIOError, FileNotFoundError):
            continue
        except SegmentFault as error:
            damaged.append(error)
        except OSError as error:  # on a full disk what is sealed can land all the same, and go
            damaged.append(
                SegmentFault(f"segment {path} cannot be sealed: {error}. The same command goes on from what is done.")
            )
        finally:
            os.close(file)
    return damaged


def _recover(path: Path, file: int) -> None:
    found = scan(path)
    if found.lost:
        raise SegmentFault(
            f"segment {path} is damaged: the line at byte {found.fault_at:,} is not what was written "
            f"({found.records:,} whole ones before it), and no crash of the server tears a line so. Nothing of it was "
            "landed: put back a copy of the file, cut it there to go on with the lines before it "
            f"(truncate -s {found.fault_at} FILE), or move it out of the folder to go on without it."
        )
    if found.records == 0:
        path.rename(path.with_suffix(TORN)) if os.fstat(file).st_size else path.unlink()
        sync_folder(path.parent)
        return
    if found.fault_at is not None:
        torn = path.with_suffix(TORN)
        write_whole(torn, path.read_bytes()[found.fault_at :])
        torn.chmod(0o600)
    os.ftruncate(file, found.whole_bytes)
    os.fsync(file)
    write_all(file, (found.seal or _seal(path, found)).line())
    os.fsync(file)
    sealed = path.with_suffix(SEALED)
    path.rename(sealed)
    sync_folder(sealed.parent)


def _seal(path: Path, found: Scan) -> Seal:
    digest = xxhash.xxh3_128()
    with path.open("rb") as content:
        while block := content.read(_BLOCK_BYTES):
            digest.update(block)
    return Seal(records=found.records, size_bytes=found.whole_bytes, xxh3_128=digest.hexdigest())


def _is_written(path: Path) -> bool:
    """Whether a living writer holds the segment."""
    with suppress(FileNotFoundError):
        file = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
    return False
