"""What a user did before: the model's input sequence, the items to leave out of a ranking, and sampled negatives."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from schemas.features import NUM_RESERVED

# Ties in time go by a hash of the item: going by item_idx would tell the model that the next item is a rarer one.
_BY_TIME = ("event_time_ms", "_tie")


def with_history(events: DataFrame, *, length: int) -> DataFrame:
    """Attach each user's last `length` items before every event, oldest first, left-padded with 0, as `history`.

    In and out: one row per event. Ties in event_time_ms go by a hash of the item id, so reruns agree.
    """
    return _with_tie(events).withColumn("history", left_padded(_items_before(length), length)).drop("_tie")


def with_seen(events: DataFrame, *, length: int) -> DataFrame:
    """Attach each user's last `length` items before every event, as `seen`: what a ranking leaves out.

    In and out: one row per event; the order of `with_history`.
    """
    return _with_tie(events).withColumn("seen", _items_before(length)).drop("_tie")


def items_per_user(events: DataFrame, *, length: int, name: str) -> DataFrame:
    """One row per user: `user_id` and, as `name`, the last `length` items of `events`, oldest first."""
    # Bounded per user by a window before they are gathered: one user may hold a large part of the log.
    latest = Window.partitionBy("user_id").orderBy(F.desc("event_time_ms"), F.desc("_tie"))
    recent = _with_tie(events).withColumn("_age", F.row_number().over(latest)).where(F.col("_age") <= length)
    ordered = F.sort_array(F.collect_list(F.struct(F.negative("_age").alias("_order"), "item_idx")))
    return recent.groupBy("user_id").agg(F.transform(ordered, lambda entry: entry["item_idx"]).alias(name))


def left_padded(items: Column, length: int) -> Column:
    """The last `length` items, with 0 in front where there are fewer."""
    return F.slice(F.concat(F.array_repeat(F.lit(0), length), items), -length, length)


def with_negatives(rows: DataFrame, *, count: int, num_items: int, seed: int) -> DataFrame:
    """Attach up to `count` items drawn evenly from the vocabulary, not seen and not the row's own, as `negatives`.

    In and out: one row per event, with row_id, item_idx and seen. Draws are a hash of the row and the seed; three
    times as many are drawn as wanted, so a row runs short only where the user has seen most items.
    """
    draw = F.transform(
        F.sequence(F.lit(1), F.lit(3 * count)),
        lambda i: (F.pmod(F.xxhash64("row_id", i, F.lit(seed)), F.lit(num_items)) + NUM_RESERVED).cast("int"),
    )
    fresh = F.array_except(draw, F.concat("seen", F.array("item_idx")))
    return rows.withColumn("negatives", F.slice(fresh, 1, count))


def _with_tie(events: DataFrame) -> DataFrame:
    return events.withColumn("_tie", F.xxhash64("item_id", "row_id"))


def _items_before(length: int) -> Column:
    before = Window.partitionBy("user_id").orderBy(*_BY_TIME).rowsBetween(-length, -1)
    return F.collect_list("item_idx").over(before)
