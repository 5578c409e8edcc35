"""JDBC: options of a partitioned read, and the password, which comes from the environment or ~/.pgpass only."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from schemas.contract import Jdbc, Source
from schemas.errors import UserError

_POSTGRES = re.compile(r"^jdbc:postgresql://(?P<host>[^:/?]+)(?::(?P<port>\d+))?/(?P<database>[^?]*)")


def jdbc_options(source: Source) -> dict[str, str]:
    """What Spark's reader needs. The dictionary holds the password: it goes to Spark and nowhere else."""
    jdbc = source.jdbc
    assert jdbc is not None
    options = {"url": jdbc.url, "dbtable": source.path, "fetchsize": str(jdbc.fetch_rows)}
    if jdbc.driver is not None:
        options["driver"] = jdbc.driver
    if jdbc.user is not None:
        options["user"] = jdbc.user
    password = _password(jdbc)
    if password is not None:
        options["password"] = password
    if jdbc.partition_column is not None:
        options |= {
            "partitionColumn": jdbc.partition_column,
            "lowerBound": str(jdbc.lower),
            "upperBound": str(jdbc.upper),
            "numPartitions": str(jdbc.partitions),
        }
    return options


def redacted(url: str) -> str:
    """The URL without its options, among which a password may be."""
    return url.split("?", 1)[0].split(";", 1)[0]


def _password(jdbc: Jdbc) -> str | None:
    given = os.environ.get(jdbc.password_env)
    if given is not None:
        return given
    place = _POSTGRES.match(jdbc.url)
    if place is None or jdbc.user is None:
        return None
    port = place["port"] or "5432"
    return password_in(pgpass_file(), (place["host"], port, place["database"], jdbc.user))


def pgpass_file() -> Path:
    return Path(os.environ.get("PGPASSFILE", Path.home() / ".pgpass"))


def password_in(file: Path, wanted: tuple[str, str, str, str]) -> str | None:
    """The password of the first line of a .pgpass file that is for this host, port, database and user.

    UserError where others may read the file, as psql refuses it too.
    """
    if not file.is_file():
        return None
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"{file} can be read by others: chmod 0600 {file}.")
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        fields = [re.sub(r"\\(.)", r"\1", field) for field in re.findall(r"((?:\\.|[^:\\])*)(?::|$)", line)][:5]
        if len(fields) == 5 and all(field in ("*", want) for field, want in zip(fields, wanted, strict=False)):
            return fields[4]
    return None
