"""A segment of a log: records as lines that can be read with `less`, each with what tells that it is whole.

A line is `<crc32 as 8 hex digits><mark><JSON>\\n`; the checksum is of mark and JSON. Marks:

' '  a record
'+'  a record that was written when all before it had reached the disk
'='  the last line of a sealed segment: format, records, and the xxh3_128 of every byte before it

A segment is named NAME.open while it is written to, under a lock of its writer (flock), and NAME.log once sealed.
NAME.torn is what was cut off its end when its writer had died.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from schemas.errors import UserError

OPEN, SEALED, TORN = ".open", ".log", ".torn"
RECORD, AFTER_SYNC, FOOTER = b" ", b"+", b"="
PREFIX_BYTES = 9
_READ_BYTES = 1 << 22
# Small enough that what is parsed stays in the processor's cache: blocks of 4 MiB take twice the time.
_BLOCK_BYTES = 1 << 20
_FORMAT = 1


class SegmentFault(UserError):
    """A segment is not what its writer wrote, or not what this release reads; the text names file and place."""


@dataclass(frozen=True, kw_only=True)
class Seal:
    """What the last line of a sealed segment says of the lines before it."""

    records: int
    size_bytes: int
    xxh3_128: str
    format: int = _FORMAT

    def line(self) -> bytes:
        return framed(json.dumps(asdict(self)).encode(), FOOTER)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a walk over a segment's lines found. `records` lie before the first fault, in the first `whole_bytes`."""

    records: int
    whole_bytes: int
    fault_at: int | None
    """Offset of the first line that is not whole."""
    lost: bool
    """Whether that line is no torn tail, so that records that were acknowledged may be gone."""
    seal: Seal | None


def framed(line: bytes, mark: bytes = RECORD) -> bytes:
    return b"%08x%b%b\n" % (zlib.crc32(line, zlib.crc32(mark)), mark, line)


def whole(line: bytes) -> bool:
    """Whether a line, with its end, is as it was written."""
    return (
        len(line) > PREFIX_BYTES
        and line.endswith(b"\n")
        and line[8:9] in (RECORD, AFTER_SYNC, FOOTER)
        and line[:8] == b"%08x" % zlib.crc32(memoryview(line)[8:-1])
    )


def scan(path: Path) -> Scan:
    """Walk over all lines. A line that is not whole is a torn tail where it has no end and nothing follows it.

    A writer that is killed leaves what it wrote up to some byte, and no line holds a line end. A line that has its end
    and is not whole has been changed since, or the power went before it was on the disk: whether it was acknowledged
    cannot be told from the file.
    """
    records, whole_bytes, at, fault_at, lost, seal = 0, 0, 0, None, False, None
    with path.open("rb") as file:
        for line in file:
            if not whole(line):
                fault_at = at if fault_at is None else fault_at
                lost = lost or line.endswith(b"\n")
            elif fault_at is not None:
                lost = True
            elif seal is not None:
                fault_at, lost = at, True
            elif line[8:9] == FOOTER:
                seal = _seal(path, line)
            else:
                records, whole_bytes = records + 1, at + len(line)
            at += len(line)
    return Scan(records=records, whole_bytes=whole_bytes, fault_at=fault_at, lost=lost, seal=seal)


def seal_of(path: Path) -> Seal:
    """What a sealed segment says of itself, not yet held against its lines. Raises SegmentFault."""
    size, last = path.stat().st_size, _last_line(path)
    if not whole(last) or last[8:9] != FOOTER:
        raise _damage(path)
    seal = _seal(path, last)
    if size - len(last) != seal.size_bytes:
        raise _damage(path)
    return seal


def checked(path: Path) -> Seal:
    """The seal of a sealed segment all of whose bytes are right; SegmentFault names the first place that is not."""
    seal, digest = seal_of(path), xxhash.xxh3_128()
    left = seal.size_bytes
    with path.open("rb") as file:
        while left:
            block = file.read(min(left, _READ_BYTES))
            digest.update(block)
            left -= len(block)
    if digest.hexdigest() != seal.xxh3_128:
        raise _damage(path)
    return seal


def blocks(path: Path, seal: Seal, *, block_bytes: int = _BLOCK_BYTES) -> Iterator[bytes]:
    """The records of a segment that was `checked`, as runs of whole lines of about `block_bytes`."""
    left = seal.size_bytes
    with path.open("rb") as file:
        while left:
            block = file.read(min(left, block_bytes))
            if len(block) < left and not block.endswith(b"\n"):
                block += file.readline()
            left -= len(block)
            yield block


def _seal(path: Path, line: bytes) -> Seal:
    said = json.loads(line[PREFIX_BYTES:])
    if said.get("format") != _FORMAT:
        raise SegmentFault(f"segment {path} is of format {said.get('format')}, written by another release of Headrace.")
    return Seal(**said)


def _last_line(path: Path) -> bytes:
    """The last line, where it is no longer than a seal may be."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 4096))
        end = file.read()
    return end[end.rfind(b"\n", 0, -1) + 1 :]


def _damage(path: Path) -> SegmentFault:
    found = scan(path)
    if found.fault_at is not None:
        place = f"the line at byte {found.fault_at:,} is not what was written ({found.records:,} whole ones before it)"
    elif found.seal is None:
        place = f"its last line is missing, after {found.records:,} whole ones"
    else:
        place = f"it holds {found.records:,} records where {found.seal.records:,} were written"
    return SegmentFault(
        f"segment {path} is damaged: {place}. Nothing of it was landed: put back a copy of the file, or move it out of "
        "the folder to go on without it."
    )
