"""Where logs land as rows of PostgreSQL: a table a kind whose key is the record's id, and one of landed segments."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import orjson
import psycopg2
import pyarrow as pa
from psycopg2.extensions import connection as Connection
from pyarrow import csv

from schemas.errors import UserError
from schemas.landed import Landed
from schemas.served import COLUMNS, KINDS, Kind
from schemas.version import now_utc
from serving.log_rows import DAY_MS, day_name
from serving.segments import SegmentFault

T = TypeVar("T")
Read = Callable[[], Iterator[pa.Table]]

KEYS: dict[Kind, str] = {"impressions": "request_id", "actions": "action_id"}
_TYPES = {pa.string(): "text", pa.int64(): "bigint", pa.int32(): "integer", pa.float64(): "double precision"}
_JSON = ("context", "features", "items")
_LONGEST_WAIT_S = 30.0
# What waiting does not mend, in the words of libpq, which has no codes for it.
_FINAL = ("authentication failed", "no password supplied", "no pg_hba.conf entry", "does not exist")
_ROWS_AT_ONCE = 2000


class PostgresTables:
    """The database at `url`; while the server is away, each call waits for it, `patience_s` at most."""

    def __init__(self, url: str, *, patience_s: float = 600.0) -> None:
        self._url, self._patience_s = url, patience_s
        self._connection: Connection | None = None

    def landed(self, kind: Kind, segment: str) -> Landed | None:
        return self.patiently(lambda connection: _landed(connection, kind, segment))

    def segments(self) -> list[Landed]:
        """All that has landed, oldest first by name."""
        return self.patiently(_segments)

    def land(self, kind: Kind, segment: str, *, records: int, xxh3_128: str, read: Read) -> Landed:
        """Rows, and the entry that says so, in one transaction; a record whose id is there already changes nothing."""

        def transaction(connection: Connection) -> Landed:
            # The answer to a commit may be lost with the server: what it did is looked up before it is done again.
            if (before := _landed(connection, kind, segment)) is not None:
                return before
            with connection, connection.cursor() as cursor:
                cursor.execute(f"CREATE TEMPORARY TABLE staged ({_columns(kind)}) ON COMMIT DROP")
                try:
                    for table in read():
                        cursor.copy_expert("COPY staged FROM STDIN WITH (FORMAT csv)", _as_csv(table))
                except psycopg2.DataError as error:
                    said = " ".join(str(error).split())
                    raise SegmentFault(f"{kind} {segment}: PostgreSQL does not take a record: {said}") from None
                cursor.execute(
                    f"WITH landed AS (INSERT INTO {kind} SELECT *, %s FROM staged ON CONFLICT DO NOTHING "
                    f"RETURNING time_ms) SELECT time_ms / {DAY_MS}, count(*) FROM landed GROUP BY 1 ORDER BY 1",
                    (segment,),
                )
                rows = {day_name(day): count for day, count in cursor.fetchall()}
                cursor.execute("SELECT count(*) FROM staged")
                known = cursor.fetchone()[0] - sum(rows.values())
                entry = Landed(
                    kind=kind,
                    segment=segment,
                    records=records,
                    xxh3_128=xxh3_128,
                    rows=rows,
                    known=known,
                    landed_at=now_utc(),
                )
                entry.check()
                cursor.execute(
                    "INSERT INTO landed_segments (kind, segment, entry) VALUES (%s, %s, %s)",
                    (kind, segment, entry.model_dump_json()),
                )
            return entry

        return self.patiently(transaction)

    def rows(self, connection: Connection, entry: Landed) -> Iterator[pa.Table]:
        """The rows that a segment brought, in the columns of schemas/served.py."""
        schema = COLUMNS[entry.kind]
        names = ", ".join(f"{name}::text" if name in _JSON else name for name in schema.names)
        with connection, connection.cursor("rows") as cursor:
            cursor.execute(f"SELECT {names} FROM {entry.kind} WHERE segment = %s", (entry.segment,))
            while some := cursor.fetchmany(_ROWS_AT_ONCE):
                values = dict(zip(schema.names, map(list, zip(*some, strict=True)), strict=True))
                if "items" in values:
                    values["items"] = [orjson.loads(text) for text in values["items"]]
                yield pa.Table.from_pydict(values, schema=schema)

    def patiently(self, work: Callable[[Connection], T]) -> T:
        """Do the work on a connection, again with growing waits while the server is away or gives way."""
        wait_s, until = 0.5, time.monotonic() + self._patience_s
        while True:
            try:
                return work(self._connected())
            except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
                self.close()
                said = " ".join(str(error).split())
                if any(words in said for words in _FINAL) or time.monotonic() + wait_s > until:
                    raise UserError(f"PostgreSQL: {said}. Nothing is lost: the same command goes on.") from None
                print(f"PostgreSQL: {said}; trying again in {wait_s:g} s", file=sys.stderr, flush=True)
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            except psycopg2.Error as error:
                raise UserError(f"PostgreSQL: {' '.join(str(error).split())}") from None

    def close(self) -> None:
        if self._connection is not None:
            with suppress(psycopg2.Error):
                self._connection.close()
            self._connection = None

    def _connected(self) -> Connection:
        if self._connection is None:
            address = self._url.replace("postgresql+psycopg2://", "postgresql://", 1)
            self._connection = psycopg2.connect(
                address, connect_timeout=10, keepalives_idle=30, application_name="headrace land"
            )
            with self._connection as connection, connection.cursor() as cursor:
                cursor.execute(_tables())
        return self._connection


def _tables() -> str:
    """Makes what is missing; one program at a time, for two that make a table at once would disturb each other."""
    statements = ["SELECT pg_advisory_xact_lock(hashtext('headrace land'))"]
    for kind in KINDS:
        key = f"PRIMARY KEY ({KEYS[kind]})"
        statements += [
            f"CREATE TABLE IF NOT EXISTS {kind} ({_columns(kind)}, segment text NOT NULL, {key})",
            f"CREATE INDEX IF NOT EXISTS {kind}_segment ON {kind} (segment)",
        ]
    statements += [
        "CREATE TABLE IF NOT EXISTS landed_segments "
        "(kind text, segment text, entry json NOT NULL, PRIMARY KEY (kind, segment))"
    ]
    return "; ".join(statements)


def _columns(kind: Kind) -> str:
    """`json`, not `jsonb`: the text stays as it was written."""
    return ", ".join(
        f"{field.name} {'json' if field.name in _JSON else _TYPES[field.type]}{'' if field.nullable else ' NOT NULL'}"
        for field in COLUMNS[kind]
    )


def _as_csv(table: pa.Table) -> io.BytesIO:
    if "items" in table.column_names:
        place = table.schema.get_field_index("items")
        texts = pa.array([orjson.dumps(items) for items in table.column("items").to_pylist()], pa.string())
        table = table.set_column(place, "items", texts)
    text = io.BytesIO()
    csv.write_csv(table, text, csv.WriteOptions(include_header=False))
    text.seek(0)
    return text


def _landed(connection: Connection, kind: Kind, segment: str) -> Landed | None:
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT entry FROM landed_segments WHERE kind = %s AND segment = %s", (kind, segment))
        found: tuple[Any, ...] | None = cursor.fetchone()
    return None if found is None else Landed.model_validate(found[0])


def _segments(connection: Connection) -> list[Landed]:
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT entry FROM landed_segments ORDER BY kind DESC, segment")
        return [Landed.model_validate(entry) for (entry,) in cursor.fetchall()]
