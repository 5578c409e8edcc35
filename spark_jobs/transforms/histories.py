"""What a user did before: the model's input sequence, the items to leave out of a ranking, and sampled negatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from schemas.features import GAP_BUCKETS, NUM_RESERVED

_BLOCKS = 4096  # of items, for draws by popularity

# Ties in time go by a hash of the item: going by item_idx would tell the model that the next item is a rarer one.
_BY_TIME = ("event_time_ms", "_tie")


def with_history(
    events: DataFrame, *, length: int, seen_length: int | None = None, with_gaps: bool = False
) -> DataFrame:
    """Attach each user's last `length` items before every event, oldest first, left-padded with 0, as `history`.

    In and out: one row per event. Ties in event_time_ms go by a hash of the item id, so reruns agree.
    `seen_length` adds `seen`, the last so many items without padding: what a ranking leaves out. `with_gaps` adds
    `history_gaps`, how long before the event each item of the history was (see GapsFeature).
    """
    of_user = Window.partitionBy("user_id").orderBy(*_BY_TIME)

    def before(column: str, count: int) -> Column:
        return F.collect_list(column).over(of_user.rowsBetween(-count, -1))

    added = {"history": left_padded(before("item_idx", length), length)}
    if with_gaps:
        # Among events of one time the order is by a hash, so the gap, like the time, is the same for all.
        gaps = F.transform(before("event_time_ms", length), lambda at: _gap(F.col("event_time_ms") - at))
        added["history_gaps"] = left_padded(gaps, length)
    if seen_length is not None:
        added["seen"] = before("item_idx", seen_length)
    return _with_tie(events).withColumns(added).drop("_tie")


def items_per_user(events: DataFrame, *, length: int, name: str, times: str | None = None) -> DataFrame:
    """One row per user: `user_id` and, as `name`, the last `length` items of `events`, oldest first.

    `times` names a column for the times of these events.
    """
    # Bounded per user by a window before they are gathered: one user may hold a large part of the log.
    latest = Window.partitionBy("user_id").orderBy(F.desc("event_time_ms"), F.desc("_tie"))
    recent = _with_tie(events).withColumn("_age", F.row_number().over(latest)).where(F.col("_age") <= length)
    made = {name: "item_idx"} | ({times: "event_time_ms"} if times is not None else {})
    entry = F.struct(F.negative("_age").alias("_order"), *made.values())
    ordered = recent.groupBy("user_id").agg(F.sort_array(F.collect_list(entry)).alias("_ordered"))
    return ordered.select("user_id", *(F.col("_ordered")[column].alias(own) for own, column in made.items()))


def left_padded(items: Column, length: int) -> Column:
    """The last `length` items, with 0 in front where there are fewer."""
    return F.slice(F.concat(F.array_repeat(F.lit(0), length), items), -length, length)


def with_negatives(
    rows: DataFrame,
    *,
    count: int,
    num_items: int,
    seed: int,
    leave_out: str = "seen",
    ends: Sequence[int] | None = None,
) -> DataFrame:
    """Attach up to `count` items of the vocabulary, not among `leave_out` and not the row's own, as `negatives`.

    In and out: one row per event, with row_id, item_idx and the list `leave_out`. Items are drawn evenly, or with
    `ends` (see `blocks_by_popularity`) by popularity. Draws are a hash of the row and the seed; three times as many
    are drawn as wanted, so a row runs short only where the user has seen most items.
    """

    def draw(i: Column) -> Column:
        return F.xxhash64("row_id", i, F.lit(seed))

    def even(i: Column) -> Column:
        return (F.pmod(draw(i), F.lit(num_items)) + NUM_RESERVED).cast("int")

    def by_popularity(i: Column) -> Column:
        assert ends is not None
        block = F.pmod(draw(i), F.lit(len(ends) - 1)).cast("int") + 1
        edges = F.lit(list(ends))
        first, last = F.element_at(edges, block), F.element_at(edges, block + 1)
        width = F.greatest(last - first, F.lit(1))
        inside = F.pmod(F.shiftrightunsigned(draw(i), 20), width.cast("bigint"))
        return (first + inside + NUM_RESERVED).cast("int")

    drawn = F.transform(F.sequence(F.lit(1), F.lit(3 * count)), even if ends is None else by_popularity)
    fresh = F.array_except(drawn, F.concat(F.col(leave_out), F.array("item_idx")))
    return rows.withColumn("negatives", F.slice(fresh, 1, count))


def blocks_by_popularity(items_by_count: Mapping[int, int], alpha: float) -> list[int]:
    """Where the blocks of items end that a draw by count^alpha chooses among evenly: rising places, 0 first.

    `items_by_count` says how many items were seen how often. Items stand by falling count, so those of one block are
    about equally popular, and one that alone is worth several blocks fills them; the error of an item's share is
    below 1 / `_BLOCKS`.
    """
    counts = np.array(sorted(items_by_count, reverse=True), dtype=np.float64)
    items = np.array([items_by_count[int(count)] for count in counts], dtype=np.float64)
    mass = np.concatenate([[0.0], np.cumsum(items * counts**alpha)])
    places = np.concatenate([[0.0], np.cumsum(items)])
    inner = np.floor(np.interp(np.arange(1, _BLOCKS) / _BLOCKS * mass[-1], mass, places) + 1e-9)
    return [0, *(int(place) for place in inner), int(places[-1])]


def _gap(gap_ms: Column) -> Column:
    """3 + floor(log2(1 + seconds)), within GAP_BUCKETS."""
    doubled = F.floor(F.log2(1 + F.floor(gap_ms / 1000))).cast("int") + NUM_RESERVED
    return F.least(doubled, F.lit(GAP_BUCKETS - 1))


def _with_tie(events: DataFrame) -> DataFrame:
    return events.withColumn("_tie", F.xxhash64("item_id", "row_id"))
