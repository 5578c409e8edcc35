"""Reading files at any URL without Spark (fsspec), so that training and serving find what Spark wrote."""

from __future__ import annotations

import hashlib
from pathlib import Path

import fsspec
from fsspec.spec import AbstractFileSystem

_CHUNK_BYTES = 1 << 22


def join(url: str, *parts: str) -> str:
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(path_or_url: str) -> str:
    """The same place as an absolute path or URL, so that manifests and logs mean it from any folder."""
    return path_or_url if "://" in path_or_url else str(Path(path_or_url).expanduser().absolute())


def fsspec_url(url: str) -> str:
    """A path or URL as fsspec writes it: Hadoop's s3a:// and s3n:// are its s3://."""
    for hadoop, ours in (("s3a://", "s3://"), ("s3n://", "s3://"), ("file:/", "file:///")):
        if url.startswith(hadoop) and not url.startswith(ours):
            return ours + url.removeprefix(hadoop).lstrip("/")
    return url


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system that holds `url` and the path in it."""
    return fsspec.core.url_to_fs(fsspec_url(url))


def sha256_of(fs: AbstractFileSystem, path: str) -> str:
    digest = hashlib.sha256()
    with fs.open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
