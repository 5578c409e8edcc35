"""Splits: which event is train, valid or test, with cut times by hand and against a brute force."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from spark_jobs.transforms.splits import SplitPolicy, parse_split, times_at_shares, with_split

SCHEMA = "row_id bigint, user_id string, event_time_ms bigint"


def _events(spark: SparkSession, rows: list[tuple[int, str, int]]) -> DataFrame:
    return spark.createDataFrame(rows, SCHEMA)


def _at(spark: SparkSession, times: list[int]) -> DataFrame:
    """One event at each time; row ids in order."""
    return _events(spark, [(n, "u", time) for n, time in enumerate(times)])


def _by_split(split: DataFrame) -> dict[str, list[int]]:
    rows = split.select("row_id", "split").collect()
    return {part: sorted(row["row_id"] for row in rows if row["split"] == part) for part in ("train", "valid", "test")}


def test_a_split_is_read_from_its_text() -> None:
    assert parse_split("time:0.8,0.1,0.1") == SplitPolicy(kind="time", shares=(0.8, 0.1, 0.1))
    assert parse_split("ratio: 0.5, 0.25, 0.25") == SplitPolicy(kind="ratio", shares=(0.5, 0.25, 0.25))
    assert parse_split("leave_last_out") == SplitPolicy(kind="leave_last_out")
    assert parse_split("time:1970-01-02,1970-01-03T00:00:00+01:00") == SplitPolicy(
        kind="time", cuts_ms=(86_400_000, 2 * 86_400_000 - 3_600_000)
    )


def test_a_random_split_asks_about_users_and_the_others_about_events() -> None:
    assert parse_split("ratio:0.8,0.1,0.1").query_grain == "user"
    assert parse_split("time:0.8,0.1,0.1").query_grain == "event"
    assert parse_split("leave_last_out").query_grain == "event"


@pytest.mark.slow
def test_events_at_one_moment_stay_together_and_train_has_at_least_its_share(spark: SparkSession) -> None:
    events = _at(spark, [1, 2, 3, 4, 5, 5, 5, 8, 9, 10])
    assert times_at_shares(events, (0.6, 0.2, 0.2)) == (6, 9)
    assert _by_split(with_split(events, parse_split("time:0.6,0.2,0.2"), seed=0)) == {
        "train": [0, 1, 2, 3, 4, 5, 6],
        "valid": [7],
        "test": [8, 9],
    }


@pytest.mark.slow
def test_an_event_at_the_first_moment_of_a_part_belongs_to_it(spark: SparkSession) -> None:
    day = 86_400_000
    events = _at(spark, [day - 1, day, 2 * day - 1, 2 * day])
    assert _by_split(with_split(events, parse_split("time:1970-01-02,1970-01-03"), seed=0)) == {
        "train": [0],
        "valid": [1, 2],
        "test": [3],
    }


@pytest.mark.slow
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    times=st.one_of(
        st.lists(st.integers(0, 30), min_size=1, max_size=60),
        st.lists(st.integers(-(2**41), 2**41), min_size=1, max_size=300),
    ),
    shares=st.sampled_from([("0.8", "0.1", "0.1"), ("0.6", "0.2", "0.2"), ("0.7", "0.1", "0.2")]),
)
@example(times=list(range(0, 10**9, 10**6)), shares=("0.8", "0.1", "0.1"))
@example(times=[5], shares=("0.8", "0.1", "0.1"))
def test_cut_times_are_those_of_a_sorted_array(
    spark: SparkSession, times: list[int], shares: tuple[str, str, str]
) -> None:
    ordered = np.sort(times)

    def first_moment_after(share: Fraction) -> int:
        wanted = -(-share * len(times) // 1)
        return int(ordered[int(wanted) - 1]) + 1

    train, valid, _ = map(Fraction, shares)
    given = (float(shares[0]), float(shares[1]), float(shares[2]))
    found = times_at_shares(_at(spark, times), given)
    by_day = Counter(time // 86_400_000 for time in times)
    assert times_at_shares(_at(spark, times), given, by_day) == found
    assert found == (first_moment_after(train), first_moment_after(train + valid))


@pytest.mark.slow
def test_a_users_last_event_is_test_the_one_before_valid_and_short_users_are_train(spark: SparkSession) -> None:
    rows = [(n, "five", 10 * n) for n in range(5)] + [(10, "two", 1), (11, "two", 2), (20, "one", 5)]
    rows += [(32, "three", 1), (31, "three", 7), (30, "three", 7)]  # the tie goes by row_id
    assert _by_split(with_split(_events(spark, rows), parse_split("leave_last_out"), seed=0)) == {
        "train": [0, 1, 2, 10, 11, 20, 32],
        "valid": [3, 31],
        "test": [4, 30],
    }


@pytest.mark.slow
def test_a_random_split_counts_per_user_and_depends_on_the_seed_only(spark: SparkSession) -> None:
    sizes = {"one": 1, "two": 2, "three": 3, "nine": 9, "ten": 10, "thirty": 30}
    rows = [(1000 * place + n, user, n) for place, (user, size) in enumerate(sizes.items()) for n in range(size)]
    owner = {row_id: user for row_id, user, _ in rows}
    policy = parse_split("ratio:0.8,0.1,0.1")
    one = _by_split(with_split(_events(spark, rows), policy, seed=1))
    assert sorted(row_id for part in one.values() for row_id in part) == sorted(owner)
    counts = {
        user: tuple(sum(owner[row_id] == user for row_id in one[part]) for part in ("train", "valid", "test"))
        for user in sizes
    }
    assert counts == {
        "one": (1, 0, 0),
        "two": (2, 0, 0),
        "three": (1, 1, 1),
        "nine": (7, 1, 1),
        "ten": (8, 1, 1),
        "thirty": (24, 3, 3),
    }
    assert _by_split(with_split(_events(spark, rows[::-1]).repartition(5), policy, seed=1)) == one
    assert _by_split(with_split(_events(spark, rows), policy, seed=2)) != one
