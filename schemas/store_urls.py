"""Addresses of stores: a file of SQLite, PostgreSQL, a tracking server; without a password, for they are shown."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from schemas.errors import UserError
from schemas.storage import absolute

_SQLITE, _POSTGRES = "sqlite:///", "postgresql+psycopg2"
_FORMS = {
    "sqlite": "sqlite:///FILE",
    "postgresql": "postgresql+psycopg2://USER@HOST:PORT/DATABASE",
    "http": "http://HOST:PORT",
    "https": "https://HOST",
}


def store_url(url: str, *, option: str, kinds: tuple[str, ...] = ("sqlite", "postgresql")) -> str:
    """The address with a file's path made absolute and PostgreSQL's driver named.

    Raises UserError for one that holds a password, without repeating it: addresses are stored and printed.
    """
    forms = ", ".join(_FORMS[kind] for kind in kinds)
    try:
        parts = urlsplit(url)
        secret = parts.password or {"password", "passfile"} & set(parse_qs(parts.query))
        _ = parts.port
    except ValueError:
        raise UserError(f"{option}: this is no address; it takes {forms}.") from None
    if secret:
        raise UserError(
            f"{option}: the address holds a password, which would be stored and shown: leave it out, and set "
            "PGPASSWORD or write ~/.pgpass (for http MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)."
        )
    kind = parts.scheme.partition("+")[0]
    if kind not in kinds:
        raise UserError(f"{option}: {parts.scheme or url!r} is no store that is known; it takes {forms}.")
    if kind == "sqlite":
        if not url.startswith(_SQLITE) or url in (_SQLITE, f"{_SQLITE}:memory:"):
            raise UserError(f"{option}: a store of SQLite is a file: write {_FORMS['sqlite']}.")
        return _SQLITE + absolute(url.removeprefix(_SQLITE))
    return parts._replace(scheme=_POSTGRES).geturl() if kind == "postgresql" else url


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite store; None for others."""
    return Path(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else None
