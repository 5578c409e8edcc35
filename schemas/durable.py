"""Files that are whole whenever they are read, and there after a power loss: what fsync takes on Linux, for files and
for the names of files."""

from __future__ import annotations

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: a new or renamed file is not found after a power loss without it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, each with its name on the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def write_all(file: int, content: bytes) -> None:
    """Write all of it, however little the kernel takes at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file in one step; who reads it sees the old or the new one."""
    # One name, so that kills leave no pile of drafts.
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def write_text(path: Path, content: str) -> None:
    """The same of text; folders above it are made."""
    make_folder(path.parent)
    write_whole(path, content.encode())


def append_line(path: Path, line: str) -> None:
    """Add a line to a journal; on the disk when this returns. A line that a kill cut short is ended first."""
    make_folder(path.parent)
    is_new = not path.exists()
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)
