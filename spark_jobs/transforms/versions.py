"""Joining events with tables whose rows change over time: each event sees the version that held at its moment."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

VALID_FROM = "valid_from_ms"


def with_version_at(events: DataFrame, versions: DataFrame, *, key: str) -> DataFrame:
    """Add the columns of the version of `key` that held at each event's time, nulls where none did yet.

    In: events with `key` and event_time_ms; versions one row per `key` and valid_from_ms. Out: the same events.
    A version holds from its first moment on, until the next one's.
    """
    of_key = Window.partitionBy(key).orderBy(VALID_FROM)
    spans = versions.withColumn("_until", F.lead(VALID_FROM).over(of_key)).withColumnRenamed(key, "_key")
    at = F.col("event_time_ms")
    # An equality and a range: rows meet by key, and as many as a key has versions are compared.
    holds = (at >= F.col(VALID_FROM)) & (F.col("_until").isNull() | (at < F.col("_until")))
    return events.join(spans, (F.col(key) == F.col("_key")) & holds, how="left").drop("_key", "_until", VALID_FROM)


def with_entity_columns(rows: DataFrame, entities: DataFrame, *, key: str) -> DataFrame:
    """Add what is known of each row's user or item (`key`): the version at the event's time, where rows are versions.

    In and out: one row per event.
    """
    if VALID_FROM in entities.columns:
        return with_version_at(rows, entities, key=key)
    return rows.join(entities, on=key, how="left")


def latest(versions: DataFrame, *, key: str) -> DataFrame:
    """The last version of each key: what serving starts from. In: one row per key and valid_from_ms; out: per key."""
    columns = [name for name in versions.columns if name not in (key, VALID_FROM)]
    last = F.max_by(F.struct(*columns), VALID_FROM) if columns else F.max(VALID_FROM)
    grouped = versions.groupBy(key).agg(last.alias("_last"))
    return grouped.select(key, *(F.col(f"_last.{name}").alias(name) for name in columns))
