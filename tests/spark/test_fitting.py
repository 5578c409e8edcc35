"""Fitting features: moments and vocabularies of the rows given, and how rows are encoded by them."""

from __future__ import annotations

import math

import pytest
from pyspark.sql import SparkSession

from schemas.contract import Table
from schemas.feature_set import WantedNumber, WantedVocabulary
from schemas.features import NUM_RESERVED, IndexFeature, IndicesFeature, NumberFeature, Vocabulary
from schemas.settings import parse_model
from spark_jobs.transforms.encoding import with_features
from spark_jobs.transforms.fitting import FittedVocabulary, VocabularyLimits, fit_features, vocabulary_requests
from spark_jobs.transforms.vocabulary import build_vocabularies

pytestmark = pytest.mark.slow

COLUMNS = {
    "age": {"type": "int32", "role": "numeric", "nullable": True},
    "same": {"type": "float64", "role": "numeric"},
    "void": {"type": "float32", "role": "numeric", "nullable": True},
    "sex": {"type": "string", "role": "categorical", "nullable": True},
    "tags": {"type": "list<string>", "role": "categorical", "nullable": True},
    "note": {"type": "string", "role": "none"},
}
SCHEMA = "key string, age int, same double, void float, sex string, tags array<string>, note string"
TRAIN = [
    ("1", 10, 0.5, None, "m", ["x", "y"], "n"),
    ("2", 20, 0.5, None, "f", ["x"], "n"),
    ("3", 30, 0.5, None, "f", None, "n"),
    ("4", None, 0.5, None, None, ["x", "z", "y"], "n"),
]
LATER = [("5", 40, 1.5, 2.0, "d", ["y", "new", "x", "z"], "n")]


def _vocabularies(table: Table) -> list[WantedVocabulary]:
    return [WantedVocabulary(kind="vocabulary", source=f"users.{c.name}") for c in table.with_role("categorical")]


def _numbers(table: Table) -> list[WantedNumber]:
    return [WantedNumber(kind="number", source=f"users.{c.name}") for c in table.with_role("numeric")]


def test_features_are_fitted_on_the_rows_given_and_applied_to_others(spark: SparkSession) -> None:
    columns = [{"name": "key", "type": "string", "meaning": "x"}]
    columns += [{"name": name, "meaning": "x", **spec} for name, spec in COLUMNS.items()]  # type: ignore[dict-item]
    table = parse_model(Table, {"source": {"path": "x"}, "key": ["key"], "columns": columns}, where="test")
    wanted = [*_vocabularies(table), *_numbers(table)]
    names = {f"users.{name}": name for name in COLUMNS}
    limits = VocabularyLimits(min_count=1, max_values=10)
    train = spark.createDataFrame(TRAIN, SCHEMA)
    built = build_vocabularies(vocabulary_requests(train, wanted, names, limits)).by_name
    vocabularies = {
        name: FittedVocabulary(one.entries, Vocabulary(name=name, size=one.num_values + NUM_RESERVED))
        for name, one in built.items()
    }
    fitted = fit_features(train, wanted, names, vocabularies)
    std = math.sqrt(200 / 3)
    index, indices, *numbers = fitted.features
    assert index == IndexFeature(name="user_sex_idx", source="sex", owner="users", vocabulary="user_sex")
    assert indices == IndicesFeature(
        name="user_tags_idx", source="tags", owner="users", vocabulary="user_tags", length=3
    )
    assert [(one.name, one.source, one.mean, one.std) for one in numbers if isinstance(one, NumberFeature)] == [
        ("user_age", "age", 20, pytest.approx(std)),
        ("user_same", "same", 0.5, 1),
        ("user_void", "void", 0, 1),
    ]
    assert {name: one.vocabulary.size for name, one in fitted.vocabularies.items()} == {"user_sex": 5, "user_tags": 6}

    rows = with_features(spark.createDataFrame([*TRAIN, *LATER], SCHEMA), fitted, key="key").orderBy("key").collect()
    encoded = [[row[feature.name] for feature in fitted.features] for row in rows]
    assert encoded == [
        [4, [3, 4, 0], pytest.approx(-10 / std), 0, 0],
        [3, [3, 0, 0], 0, 0, 0],
        [3, [1, 0, 0], pytest.approx(10 / std), 0, 0],
        [1, [3, 5, 4], 0, 0, 0],
        [2, [4, 2, 3], pytest.approx(20 / std), 1, 2],
    ]
