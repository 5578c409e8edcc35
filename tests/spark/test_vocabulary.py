"""Vocabularies: who gets which number, and who gets none."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from pyspark.sql import DataFrame, SparkSession

from spark_jobs.transforms import vocabulary
from spark_jobs.transforms.vocabulary import (
    BuiltVocabulary,
    VocabularyRequest,
    build_vocabularies,
    with_index,
    with_indices,
)

pytestmark = pytest.mark.slow


def _values(spark: SparkSession, values: list[str | None]) -> DataFrame:
    return spark.createDataFrame([(value,) for value in values], "value string")


def _built(values: DataFrame, *, min_count: int, max_values: int) -> BuiltVocabulary:
    """Built beside another one, which must not show."""
    other = VocabularyRequest(values.selectExpr("concat('z', value) as value"), 1, 2)
    built = build_vocabularies({"other": other, "v": VocabularyRequest(values, min_count, max_values)})
    return built.by_name["v"]


def _entries(entries: DataFrame) -> list[tuple[str, int, int]]:
    return [(row["value"], row["idx"], row["count"]) for row in entries.orderBy("idx").collect()]


@pytest.mark.parametrize(
    ("min_count", "max_values", "entries", "dropped"),
    [
        (1, 10, [("b", 3, 3), ("a", 4, 2), ("c", 5, 2), ("d", 6, 1)], 0),
        (2, 10, [("b", 3, 3), ("a", 4, 2), ("c", 5, 2)], 1),
        (1, 2, [("b", 3, 3), ("a", 4, 2)], 2),
        (9, 10, [], 4),
    ],
)
def test_values_are_numbered_from_3_by_falling_count_and_then_by_value(
    spark: SparkSession, min_count: int, max_values: int, entries: list[tuple[str, int, int]], dropped: int
) -> None:
    values = _values(spark, ["c", "b", "a", None, "b", "d", "a", None, "c", "b"])
    built = _built(values, min_count=min_count, max_values=max_values)
    assert _entries(built.entries) == entries
    assert (built.num_values, built.num_dropped) == (len(entries), dropped)


def test_without_values_a_vocabulary_is_empty(spark: SparkSession) -> None:
    built = _built(_values(spark, [None, None]), min_count=1, max_values=10)
    assert (_entries(built.entries), built.num_values, built.num_dropped) == ([], 0, 0)


@pytest.fixture
def several_partitions(spark: SparkSession) -> Iterator[None]:
    """Small data in as many partitions as a shuffle has."""
    settings = {"spark.sql.adaptive.coalescePartitions.enabled": "false", "spark.sql.shuffle.partitions": "5"}
    before = [(key, spark.conf.get(key) or "") for key in settings]
    for key, value in settings.items():
        spark.conf.set(key, value)
    yield
    for key, value in before:
        spark.conf.set(key, value)


@pytest.mark.usefixtures("several_partitions")
def test_the_numbers_of_a_large_vocabulary_run_on_over_several_partitions(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "SORTED_AT_ONCE", 10)
    values = random.Random(1).choices([f"v{n}" for n in range(300)], k=1000)
    counts = sorted(Counter(values).items(), key=lambda entry: (-entry[1], entry[0]))
    frequent = [(value, 3 + place, count) for place, (value, count) in enumerate(counts) if count >= 2]
    built = _built(_values(spark, list(values)), min_count=2, max_values=1000)
    assert built.entries.rdd.getNumPartitions() > 2
    assert _entries(built.entries) == frequent
    assert built.num_dropped == len(counts) - len(frequent)


def test_null_is_1_and_a_value_outside_the_vocabulary_2(spark: SparkSession) -> None:
    entries = spark.createDataFrame([("7", 3), ("8", 4)], "value string, idx int")
    rows = spark.createDataFrame([(1, 8), (2, None), (3, 9), (4, 7), (5, 8)], "key int, year int")
    indexed = with_index(rows, source="year", vocabulary=entries, name="year_idx")
    assert indexed.columns == ["key", "year", "year_idx"]
    assert {row["key"]: row["year_idx"] for row in indexed.collect()} == {1: 4, 2: 1, 3: 2, 4: 3, 5: 4}


@pytest.mark.parametrize("broadcast", [0, 2, 5, 100])
def test_a_vocabulary_too_large_to_send_gives_the_same_indices_by_its_head_and_its_tail(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, broadcast: int
) -> None:
    monkeypatch.setattr(vocabulary, "BROADCAST_VALUES", broadcast)
    entries = spark.createDataFrame([(str(n), 3 + n) for n in range(6)], "value string, idx int")
    values: list[int | None] = [0] * 20 + [1, 4, 5, None, None, 6, -1]
    rows = spark.createDataFrame(list(enumerate(values)), "key int, item int")
    indexed = with_index(rows, source="item", vocabulary=entries, name="item_idx", num_values=6)
    assert indexed.columns == ["key", "item", "item_idx"]
    expected = [1 if value is None else 3 + value if 0 <= value < 6 else 2 for value in values]
    assert [row["item_idx"] for row in indexed.orderBy("key").collect()] == expected


def test_a_list_keeps_its_order_is_padded_on_the_right_and_cut_at_its_length(spark: SparkSession) -> None:
    entries = spark.createDataFrame([("a", 3), ("b", 4)], "value string, idx int")
    lists = {1: ["b", "a"], 2: [], 3: None, 4: ["a", "x", "b", "a"], 5: ["x"], 6: ["a", "a", "a"]}
    rows = spark.createDataFrame(list(lists.items()), "key int, tags array<string>")
    indexed = with_indices(rows, source="tags", vocabulary=entries, name="tags_idx", length=3, key="key")
    assert indexed.columns == ["key", "tags", "tags_idx"]
    assert {row["key"]: row["tags_idx"] for row in indexed.collect()} == {
        1: [4, 3, 0],
        2: [0, 0, 0],
        3: [1, 0, 0],
        4: [3, 2, 4],
        5: [2, 0, 0],
        6: [3, 3, 3],
    }
