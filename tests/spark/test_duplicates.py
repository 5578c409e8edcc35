"""The first row of a key stays, and its repetitions are told apart."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from schemas.contract import Table
from schemas.settings import parse_model
from spark_jobs.transforms.duplicates import KEY_HASH, repeated_keys, with_key_hash, with_repetition

pytestmark = pytest.mark.slow

_COLUMNS = [
    {"name": "key", "type": "string", "meaning": "x"},
    {"name": "time", "type": "timestamp_ms", "role": "event_time", "meaning": "x"},
]
TABLE = parse_model(Table, {"source": {"path": "x"}, "key": ["key"], "columns": _COLUMNS}, where="test")
SCHEMA = "line string, file string, key string, time bigint"


def _repetitions(spark: SparkSession, rows: list[tuple[str, str, int]]) -> dict[str, int]:
    """By line, from (line, key, time)."""
    full = [(line, "f", key, time) for line, key, time in rows]
    frame = with_repetition(spark.createDataFrame(full, SCHEMA), TABLE)
    return {row["line"]: row["repetition"] for row in frame.select("line", F.col("repetition")).collect()}


def test_the_earliest_row_of_a_key_is_the_first(spark: SparkSession) -> None:
    rows = [("k late", "k", 5), ("k early", "k", 3), ("k latest", "k", 7), ("other", "o", 9)]
    assert _repetitions(spark, rows) == {"k early": 1, "k late": 2, "k latest": 3, "other": 1}


def test_ties_in_time_are_settled_by_the_line_and_not_by_its_place(spark: SparkSession) -> None:
    rows = [(f"line {n}", "k", 3) for n in range(6)]
    one = _repetitions(spark, rows)
    assert sorted(one.values()) == [1, 2, 3, 4, 5, 6]
    assert _repetitions(spark, rows[::-1]) == one


def test_only_hashes_of_keys_that_come_again_are_looked_at_again(spark: SparkSession) -> None:
    rows = [("1", "f", "a", 1), ("2", "f", "b", 1), ("3", "g", "a", 9), ("4", "g", None, 1), ("5", "g", None, 1)]
    hashed = with_key_hash(spark.createDataFrame(rows, SCHEMA), TABLE)
    expected = {row[KEY_HASH] for row in hashed.where("key = 'a'").collect()}
    assert {row[KEY_HASH] for row in repeated_keys(hashed).collect()} == expected
