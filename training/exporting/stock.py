"""What an export holds and what wrote it."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from schemas.storage import filesystem, sha256_of

_LIBRARIES = ("torch", "onnx", "onnxruntime", "onnxscript", "safetensors", "numpy")


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 by file, each of them on the disk for good."""
    fs, found = filesystem(str(folder))[0], {}
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        found[path.relative_to(folder).as_posix()] = sha256_of(fs, str(path))
    return found


def versions() -> dict[str, str]:
    """Of the libraries that write and run the files, those that are there."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
