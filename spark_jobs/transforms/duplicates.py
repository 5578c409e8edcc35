"""Telling the first row of a key from its repetitions, without shuffling the rows that have none."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from schemas.contract import Table

KEY_HASH = "key_hash"


def with_key_hash(typed: DataFrame, table: Table) -> DataFrame:
    """Add a hash of the key; null where a part of the key is."""
    whole = F.lit(True)
    for name in table.key:
        whole = whole & F.col(name).isNotNull()
    return typed.withColumn(KEY_HASH, F.when(whole, F.xxhash64(*table.key)))


def repeated_keys(hashed: DataFrame) -> DataFrame:
    """Hashes that more than one row has: those of all repeated keys, and now and then one more by collision.

    In: one row a line, sound or not. Out: one row a hash, `key_hash`. Only hashes are shuffled.
    """
    counted = hashed.where(F.col(KEY_HASH).isNotNull()).groupBy(KEY_HASH).count()
    return counted.where(F.col("count") > 1).select(KEY_HASH)


def with_repetition(sound: DataFrame, table: Table) -> DataFrame:
    """Add `repetition`: 1 for the first row of each key, 2 and on for the rows that repeat it.

    In and out: one sound row per line. First is the earliest event, ties settled by the line itself and then by its
    file, so that reruns and other orders of the files agree.
    """
    times = [F.col(column.name) for column in table.with_role("event_time")]
    first = Window.partitionBy(*table.key).orderBy(*times, F.xxhash64("line"), "file")
    return sound.withColumn("repetition", F.row_number().over(first))
