"""API keys: who may ask. Files hold hashes and names; a key itself is shown once, when it is made.

Keys are 256 random bits, so a plain SHA-256 of one is as good as a slow hash: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import stat
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from schemas.errors import UserError
from schemas.settings import Strict

_LOG = logging.getLogger("headrace.keys")
_MARK = "headrace_"
_LOCAL = "local.key"
_LOOK_AGAIN_S = 1.0
_MOST = 1000

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]


class Key(Strict):
    """`name` is what logs and metrics say of it."""

    name: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    made_at: str
    requests_per_s: Annotated[float, Field(gt=0)] | None = None
    """In place of the server's limit."""


class KeysFile(Strict):
    """Who is struck from it is refused within a second."""

    keys: Annotated[tuple[Key, ...], Field(max_length=_MOST)] = ()


class Keys:
    """The keys of a file, read again when it changes; or those given."""

    def __init__(self, keys: tuple[Key, ...] = (), *, file: Path | None = None) -> None:
        self._file, self._looked = file, -_LOOK_AGAIN_S
        self._state: tuple[int, int, int] | None = None
        self._keys = tuple((bytes.fromhex(key.sha256), key) for key in keys)
        if file is not None:
            self._read(file)

    def whose(self, presented: bytes) -> Key | None:
        """The key that this is, compared with every hash there is, so that time tells nothing."""
        now = time.monotonic()
        if self._file is not None and now - self._looked >= _LOOK_AGAIN_S:
            self._looked = now
            self._follow(self._file)
        digest, found = hashlib.sha256(presented).digest(), None
        for known, key in self._keys:
            if hmac.compare_digest(digest, known):
                found = key
        return found

    def _follow(self, file: Path) -> None:
        """A file that cannot be read leaves the keys as they are: an editor's half-written file locks nobody out."""
        try:
            if _state(file) != self._state:
                self._read(file)
        except (OSError, UserError) as error:
            _LOG.warning("keys stay as they are: %s", error)

    def _read(self, file: Path) -> None:
        state = _state(file) if file.exists() else None
        self._keys = tuple((bytes.fromhex(key.sha256), key) for key in read_keys(file).keys)
        self._state = state


def read_keys(file: Path) -> KeysFile:
    """UserError where it is missing, others may write to it, or it holds something else."""
    try:
        if file.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UserError(f"{file}: others may write to it, and so let themselves in: chmod 600 {file}")
        return KeysFile.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{file}: no such keys file; headrace serve --make-key NAME --keys {file} makes it") from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{file}: {place}: {first['msg']}") from None


def make_key(name: str, file: Path, *, requests_per_s: float | None = None) -> str:
    """Add a key to the file, which is made with mode 600 where there is none; give the key, kept nowhere else."""
    known = read_keys(file).keys if file.exists() else ()
    if any(key.name == name for key in known):
        raise UserError(f"{file}: there is a key named {name}; strike it from the file first, or choose another name.")
    secret = _new_secret()
    try:
        key = Key(name=name, sha256=_digest(secret), made_at=_now(), requests_per_s=requests_per_s)
    except ValidationError:
        raise UserError(f"key name {name!r}: small letters, digits, '.', '_' and '-', at most 64 of them.") from None
    _write_private(file, KeysFile(keys=(*known, key)).model_dump_json(indent=1, exclude_none=True) + "\n")
    return secret


def keys_for(host: str, file: Path | None, *, logs: Path) -> tuple[Keys, Path | None]:
    """The keys that a server at `host` asks for, and the file of the local key where it made one.

    Without a keys file only this machine may ask, by a key in the folder of logs that its owner alone can read.
    """
    if file is not None:
        keys = Keys(file=file)
        if not read_keys(file).keys:
            raise UserError(f"{file} holds no key: headrace serve --make-key NAME --keys {file} makes one.")
        return keys, None
    if not is_loopback(host):
        raise UserError(
            f"--host {host} lets other machines ask: give --keys FILE (headrace serve --make-key NAME --keys FILE "
            "makes one), or leave the server at 127.0.0.1."
        )
    local = logs / _LOCAL
    secret = _local_secret(local)
    return Keys((Key(name="local", sha256=_digest(secret), made_at=_now()),)), local


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _local_secret(file: Path) -> str:
    """The key of the file; the first of several servers that start at once makes it, and its folder of logs."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not file.exists():
        draft = file.with_name(f"{file.name}.{os.getpid()}.draft")
        _write_private(draft, _new_secret() + "\n")
        try:
            os.link(draft, file)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    state = file.lstat()
    if not stat.S_ISREG(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o077:
        raise UserError(f"{file} is not a file that only its owner can read: remove it, and a new key is made.")
    secret = file.read_text(encoding="ascii", errors="replace").strip()
    if len(secret) < len(_MARK) + 32:
        raise UserError(f"{file} holds no key: remove it, and a new one is made.")
    return secret


def _write_private(file: Path, text: str) -> None:
    """In one step, for the owner's eyes from the first byte on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(draft, file)


def _state(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _new_secret() -> str:
    return _MARK + secrets.token_urlsafe(32)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
