"""What a user did before: histories, what a ranking leaves out, and negatives."""

from __future__ import annotations

from collections import Counter

import pytest
from pyspark.sql import DataFrame, SparkSession

from schemas.features import GAP_BUCKETS, NUM_RESERVED
from spark_jobs.transforms.histories import blocks_by_popularity, items_per_user, with_history, with_negatives

pytestmark = pytest.mark.slow

# (row_id, user_id, event_time_ms, item_idx), not in the order of time
ROWS = [(3, "u", 30, 8), (1, "u", 10, 5), (2, "u", 20, 6), (4, "v", 15, 5), (5, "u", 40, 5), (6, "v", 16, 9)]


def _events(spark: SparkSession, rows: list[tuple[int, str, int, int]]) -> DataFrame:
    full = [(row_id, user, time, idx, f"item {idx}") for row_id, user, time, idx in rows]
    return spark.createDataFrame(
        full, "row_id bigint, user_id string, event_time_ms bigint, item_idx int, item_id string"
    )


def _by_row(frame: DataFrame, name: str) -> dict[int, list[int]]:
    return {row["row_id"]: row[name] for row in frame.collect()}


def test_history_holds_only_earlier_items_and_is_left_padded(spark: SparkSession) -> None:
    events = with_history(_events(spark, ROWS), length=2)
    assert events.columns == ["row_id", "user_id", "event_time_ms", "item_idx", "item_id", "history"]
    assert _by_row(events, "history") == {1: [0, 0], 2: [0, 5], 3: [5, 6], 5: [6, 8], 4: [0, 0], 6: [0, 5]}


def test_seen_holds_the_last_earlier_items_without_padding(spark: SparkSession) -> None:
    events = with_history(_events(spark, ROWS), length=1, seen_length=2)
    assert _by_row(events, "seen") == {1: [], 2: [5], 3: [5, 6], 5: [6, 8], 4: [], 6: [5]}


def test_events_at_one_moment_have_one_order_whatever_the_order_of_the_rows(spark: SparkSession) -> None:
    rows = [(n, "u", 10, 3 + n) for n in range(6)] + [(9, "u", 5, 20), (10, "u", 15, 21)]
    one = _by_row(with_history(_events(spark, rows), length=8), "history")
    last = [item for item in one[10] if item]
    assert last[0] == 20
    assert sorted(last[1:]) == [3, 4, 5, 6, 7, 8]
    for n in range(6):
        earlier = last[: last.index(3 + n)]
        assert one[n] == [0] * (8 - len(earlier)) + earlier
    events = _events(spark, rows[::-1])
    assert _by_row(with_history(events, length=8), "history") == one
    latest = items_per_user(events, length=8, name="seen").collect()[0]["seen"]
    assert latest == [*last, 21]


def test_items_per_user_are_the_last_ones_oldest_first(spark: SparkSession) -> None:
    users = items_per_user(_events(spark, ROWS), length=3, name="recent")
    assert {row["user_id"]: row["recent"] for row in users.collect()} == {"u": [6, 8, 5], "v": [5, 9]}
    with_times = items_per_user(_events(spark, ROWS), length=3, name="recent", times="at")
    assert {row["user_id"]: (row["recent"], row["at"]) for row in with_times.collect()} == {
        "u": ([6, 8, 5], [20, 30, 40]),
        "v": ([5, 9], [15, 16]),
    }


def test_gaps_say_how_long_before_the_event_each_item_of_the_history_was(spark: SparkSession) -> None:
    rows = [(1, "u", 0, 5), (2, "u", 1_000, 6), (3, "u", 8_000, 7), (4, "u", 3_608_999, 8), (5, "u", 2**52, 9)]
    events = with_history(_events(spark, rows), length=3, with_gaps=True)
    # 3 + floor(log2(1 + seconds)): 1 s is 4, 7 s and 8 s are 6, an hour is 14, ten thousand years the last bucket.
    assert _by_row(events, "history_gaps") == {
        1: [0, 0, 0],
        2: [0, 0, 4],
        3: [0, 6, 6],
        4: [14, 14, 14],
        5: [GAP_BUCKETS - 1] * 3,
    }
    assert _by_row(events, "history")[4] == [5, 6, 7]


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_negatives_by_popularity_come_as_often_as_count_to_the_alpha(spark: SparkSession, alpha: float) -> None:
    counts = [1600, 400, 100, 100, 25, 25, 4, 4, 1, 1]  # by falling count, as vocabularies are
    ends = blocks_by_popularity({count: counts.count(count) for count in counts}, alpha)
    rows = spark.range(4_000).selectExpr("id AS row_id", "0 AS item_idx", "array(0) AS seen")
    # One draw a row is kept, and nothing is left out: the share of each item is that of one draw.
    drawn = with_negatives(rows, count=1, num_items=len(counts), seed=1, ends=ends)
    found = Counter(row["negatives"][0] - NUM_RESERVED for row in drawn.collect())
    for item, count in enumerate(counts):
        share = count**alpha / sum(other**alpha for other in counts)
        assert abs(found[item] / 4_000 - share) < 5 * (share / 4_000) ** 0.5 + 0.002, item


def test_negatives_are_distinct_unseen_others_of_the_vocabulary_and_the_same_every_time(spark: SparkSession) -> None:
    rows = [(n, 3 + n % 10, list(range(3, 3 + n % 8))) for n in range(40)]
    held_out = spark.createDataFrame(rows, "row_id bigint, item_idx int, seen array<int>")
    one = _by_row(with_negatives(held_out, count=3, num_items=50, seed=7), "negatives")
    for row_id, own, seen in rows:
        negatives = one[row_id]
        assert len(negatives) == len(set(negatives)) == 3
        assert set(negatives) <= set(range(3, 53)) - {own, *seen}
    drawn = {item for negatives in one.values() for item in negatives}
    assert len(drawn) > 30, "120 draws from 50 items"
    shuffled = held_out.orderBy("item_idx").repartition(3)
    assert _by_row(with_negatives(shuffled, count=3, num_items=50, seed=7), "negatives") == one
    assert _by_row(with_negatives(held_out, count=3, num_items=50, seed=8), "negatives") != one


def test_a_row_runs_short_of_negatives_where_its_user_has_seen_most_items_and_none_may_be_asked_for(
    spark: SparkSession,
) -> None:
    held_out = spark.createDataFrame([(1, 3, [4, 5]), (2, 3, [4])], "row_id bigint, item_idx int, seen array<int>")
    assert _by_row(with_negatives(held_out, count=20, num_items=3, seed=0), "negatives") == {1: [], 2: [5]}
    assert _by_row(with_negatives(held_out, count=0, num_items=3, seed=0), "negatives") == {1: [], 2: []}
