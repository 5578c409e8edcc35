"""The day of an event: by it the store is laid out, and by it alone files that come late meet rows that stand."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, timedelta

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.contract import Table
from schemas.event_store import NO_DAY
from spark_jobs.transforms.rules import any_broken, column_rules, raw_types

DAY = "day"
DAY_MS = 86_400_000
_EPOCH = date(1970, 1, 1)


def with_day(typed: DataFrame, table: Table) -> DataFrame:
    """Add `day`, days since 1970 of the event time (UTC); null where that breaks a rule, and in other tables.

    It is worked out from the time's own field alone, so that a reading of few columns and one of all agree.
    """
    times = table.with_role("event_time")
    if not times:
        return typed.withColumn(DAY, F.lit(None).cast("int"))
    time, types = times[0], raw_types(typed)
    sound = ~any_broken(column_rules(time, types[time.name]))
    return typed.withColumn(DAY, F.when(sound, F.floor(F.col(time.name) / F.lit(DAY_MS)).cast("int")))


def in_days(days: Collection[str] | None) -> SparkColumn:
    """Whether a row is of one of these days; None stands for all."""
    if days is None:
        return F.lit(True)
    numbered = [number_of(day) for day in days if day != NO_DAY]
    of_none = F.col(DAY).isNull() if NO_DAY in days else F.lit(False)
    return F.coalesce(F.col(DAY).isin(*numbered), F.lit(False)) | of_none if numbered else of_none


def name_of(day: int | None) -> str:
    return NO_DAY if day is None else (_EPOCH + timedelta(days=day)).isoformat()


def number_of(day: str) -> int:
    return (date.fromisoformat(day) - _EPOCH).days
