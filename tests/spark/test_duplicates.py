"""The first row of a key stays, and its repetitions are told apart."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from schemas.contract import Table
from schemas.settings import parse_model
from spark_jobs.transforms.duplicates import with_repetition

pytestmark = pytest.mark.slow

_COLUMNS = [
    {"name": "key", "type": "string", "meaning": "x"},
    {"name": "time", "type": "timestamp_ms", "role": "event_time", "meaning": "x"},
]
TABLE = parse_model(Table, {"source": {"path": "x"}, "key": ["key"], "columns": _COLUMNS}, where="test")
SCHEMA = "line string, file string, key string, time bigint, broken array<struct<rule: string, reason: string>>"


def _repetitions(spark: SparkSession, rows: list[tuple[str, str | None, int | None, bool]]) -> dict[str, int]:
    """By line, from (line, key, time, sound)."""
    full = [(line, "f", key, time, [] if sound else [("range:key", "x")]) for line, key, time, sound in rows]
    frame = with_repetition(spark.createDataFrame(full, SCHEMA), TABLE)
    return {row["line"]: row["repetition"] for row in frame.select("line", F.col("repetition")).collect()}


def test_the_earliest_row_of_a_key_is_the_first_and_broken_rows_repeat_nothing(spark: SparkSession) -> None:
    rows = [
        ("k late", "k", 5, True),
        ("k early", "k", 3, True),
        ("k latest", "k", 7, True),
        ("k broken before all", "k", 1, False),
        ("k broken again", "k", 1, False),
        ("other", "o", 9, True),
        ("no key", None, None, False),
        ("no key either", None, None, False),
    ]
    assert _repetitions(spark, rows) == {
        "k early": 1,
        "k late": 2,
        "k latest": 3,
        "k broken before all": 1,
        "k broken again": 1,
        "other": 1,
        "no key": 1,
        "no key either": 1,
    }


def test_ties_in_time_are_settled_by_the_line_and_not_by_its_place(spark: SparkSession) -> None:
    rows: list[tuple[str, str | None, int | None, bool]] = [(f"line {n}", "k", 3, True) for n in range(6)]
    one = _repetitions(spark, rows)
    assert sorted(one.values()) == [1, 2, 3, 4, 5, 6]
    assert _repetitions(spark, rows[::-1]) == one
