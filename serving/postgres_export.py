"""What landed in PostgreSQL, as the folder of days that the feedback job reads."""

from __future__ import annotations

from functools import partial

from psycopg2.extensions import connection as Connection

from schemas.landed import Landed
from serving.parquet_days import ParquetDays
from serving.postgres_tables import PostgresTables


def export(source: PostgresTables, sink: ParquetDays) -> list[Landed]:
    """Bring what is not in the folder yet there, segment by segment, under the same names; give what was brought."""
    exported = []
    for entry in source.segments():
        if sink.landed(entry.kind, entry.segment) is None:
            exported.append(source.patiently(partial(_export_segment, source, sink, entry)))
            print(exported[-1], flush=True)
    return exported


def _export_segment(source: PostgresTables, sink: ParquetDays, entry: Landed, connection: Connection) -> Landed:
    return sink.land(
        entry.kind,
        entry.segment,
        records=entry.records,
        xxh3_128=entry.xxh3_128,
        known=entry.known,
        read=lambda: source.rows(connection, entry),
    )
