"""Telling the first row of a key from its repetitions."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from schemas.contract import Table


def with_repetition(checked: DataFrame, table: Table) -> DataFrame:
    """Add `repetition`: 1 for the first sound row of each key, 2 and on for the rows that repeat it.

    In and out: one row per line, with the columns of `with_checked_columns`. First is the earliest event, ties
    settled by the line itself, so that reruns and other orders of the files agree. Rows that break a rule have
    no key; each stands alone, spread by its text, for a window over all null keys would be one huge partition.
    """
    sound = F.size("broken") == 0
    alone = F.when(~sound, F.xxhash64("line", F.monotonically_increasing_id()))
    key = [F.when(sound, F.col(name)) for name in table.key]
    times = [F.col(column.name) for column in table.with_role("event_time")]
    first = Window.partitionBy(alone, *key).orderBy(*times, F.xxhash64("line"), "file")
    return checked.withColumn("repetition", F.row_number().over(first))
