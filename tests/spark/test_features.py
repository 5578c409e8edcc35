"""Every kind of feature: what Spark writes is what the definition says in Python, and what the rules say by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.features import (
    BucketFeature,
    CyclicFeature,
    EncodedFeature,
    HashFeature,
    NumberFeature,
    PastFeature,
    TokensFeature,
)
from spark_jobs.transforms.feature_columns import feature_column
from spark_jobs.transforms.past import past_of, state_of, with_past
from spark_jobs.transforms.quantiles import quantile_edges
from spark_jobs.transforms.versions import latest, with_version_at

pytestmark = pytest.mark.slow

DAY = 86_400_000
FEATURES: list[EncodedFeature] = [
    NumberFeature(name="plain", source="x", owner="events"),
    NumberFeature(name="scaled", source="x", owner="events", low=-5, high=100, log1p=True, mean=1.5, std=2.5),
    BucketFeature(name="bucket", source="x", owner="events", edges=(-1.0, 0.0, 2.5, 1e6)),
    HashFeature(name="hash_text", sources=("text",), owner="events", buckets=17),
    HashFeature(name="hash_number", sources=("n",), owner="events", buckets=1000),
    HashFeature(name="cross", sources=("text", "n", "flag"), owner="events", buckets=1_000_003),
    TokensFeature(name="tokens", source="text", owner="events", buckets=97, length=4),
    TokensFeature(name="tags_tokens", source="tags", owner="events", buckets=97, length=2),
    CyclicFeature(name="day_sin", source="at", owner="events", period_ms=DAY, phase="sin"),
    CyclicFeature(name="day_cos", source="at", owner="events", period_ms=DAY, phase="cos"),
]
ROWS = st.fixed_dictionaries(
    {
        "x": st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32) | st.sampled_from([-1.0, 0.0, 2.5]),
        "n": st.none() | st.integers(-(2**63), 2**63 - 1),
        "text": st.none()
        | st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Lu", "Lt")), max_size=20),
        "flag": st.none() | st.booleans(),
        "tags": st.none() | st.lists(st.text("abc", max_size=3), max_size=4),
        "at": st.none() | st.integers(0, 2_000_000_000_000),
    }
)
NAMES = ("x", "n", "text", "flag", "tags", "at")
SCHEMA = "x double, n bigint, text string, flag boolean, tags array<string>, at bigint"


@settings(max_examples=4, deadline=None)
@given(rows=st.lists(ROWS, min_size=20, max_size=60))
def test_spark_writes_what_encode_says(spark: SparkSession, rows: list[dict[str, Any]]) -> None:
    frame = spark.createDataFrame([tuple(row[name] for name in NAMES) for row in rows], SCHEMA)
    columns = [feature_column(f, is_list=f.name == "tags_tokens").alias(f.name) for f in FEATURES]  # type: ignore[arg-type]
    for row, written in zip(rows, frame.select(*columns).collect(), strict=True):
        for feature in FEATURES:
            wanted = feature.encode(row, {})
            found = written[feature.name]
            assert found == (pytest.approx(wanted, rel=1e-6, abs=1e-6) if feature.dtype == "float32" else wanted), (
                feature,
                row,
            )


def _encode(feature: EncodedFeature, **row: Any) -> Any:
    return feature.encode(row, {})


def test_numbers_are_clipped_then_scaled_and_null_is_the_mean() -> None:
    feature = NumberFeature(name="n", source="x", owner="events", low=0, high=7, log1p=True, mean=1.0, std=0.5)
    assert _encode(feature, x=3) == pytest.approx((math.log(4) - 1) / 0.5)
    assert _encode(feature, x=100) == _encode(feature, x=7)
    assert _encode(feature, x=-5) == -2
    assert _encode(feature, x=None) == 0


def test_an_edge_belongs_to_the_bucket_above_it_and_null_is_1() -> None:
    feature = BucketFeature(name="b", source="x", owner="events", edges=(1.0, 5.0))
    assert [_encode(feature, x=x) for x in (None, 0.5, 1, 4.9, 5, 99)] == [1, 3, 4, 4, 5, 5]
    assert feature.size == 6


def test_a_text_becomes_its_words_in_lower_case_padded_and_cut() -> None:
    feature = TokensFeature(name="t", source="text", owner="events", buckets=1 << 20, length=3)
    star, wars, four = _encode(feature, text="star wars 4")
    assert _encode(feature, text="  Star-Wars: (4) again") == [star, wars, four]
    assert _encode(feature, text="wars") == [wars, 0, 0]
    assert _encode(feature, text="") == [0, 0, 0]
    assert _encode(feature, text=None) == [1, 0, 0]
    assert len({star, wars, four}) == 3


def test_a_cross_tells_nulls_and_the_order_of_its_values_apart() -> None:
    cross = HashFeature(name="c", sources=("a", "b"), owner="events", buckets=1 << 30)
    values = [_encode(cross, a=a, b=b) for a, b in ((None, "x"), ("x", None), ("x", "y"), ("y", "x"), ("xy", ""))]
    assert len(set(values)) == 5
    assert _encode(HashFeature(name="h", sources=("a",), owner="events", buckets=9), a=None) == 1


# row, user, day, label, split
EVENTS = [
    (1, "u", 0, 1.0, "train"),
    (2, "u", 0, 0.0, "train"),
    (3, "u", 1, 1.0, "train"),
    (4, "v", 1, 1.0, "train"),
    (5, "u", 3, 0.0, "valid"),
    (6, "u", 9, 1.0, "test"),
    (7, None, 9, 1.0, "test"),
    (8, None, 8, 0.0, "test"),
]


def _events(spark: SparkSession) -> DataFrame:
    rows = [(row, user, day * DAY + row, label, split) for row, user, day, label, split in EVENTS]
    return spark.createDataFrame(rows, "row_id bigint, user string, event_time_ms bigint, label float, split string")


def _past(spark: SparkSession, **settings: Any) -> dict[int, float]:
    feature = PastFeature(name="past", owner="events", by=("user",), tile_ms=DAY, **settings)
    events = _events(spark)
    rows = with_past(events, feature, past_of(events, feature), name="past")
    assert rows.columns == [*events.columns, "past"]
    return {row["row_id"]: row["past"] for row in rows.collect()}


def test_a_count_sees_the_days_before_the_events_own_and_never_itself(spark: SparkSession) -> None:
    whole = {1: 0, 2: 0, 3: 2, 4: 0, 5: 3, 6: 4, 7: 1, 8: 0}
    assert _past(spark, what="count") == {row: pytest.approx(math.log1p(n)) for row, n in whole.items()}
    two_days = {1: 0, 2: 0, 3: 2, 4: 0, 5: 1, 6: 0, 7: 1, 8: 0}
    assert _past(spark, what="count", tiles=2) == {row: pytest.approx(math.log1p(n)) for row, n in two_days.items()}


def test_a_rate_is_the_mean_of_earlier_labels_drawn_to_the_mean_of_train(spark: SparkSession) -> None:
    found = _past(spark, what="rate", prior_rows=2, prior_mean=0.75)
    sums = {1: (0, 0), 2: (0, 0), 3: (2, 1), 4: (0, 0), 5: (3, 2), 6: (4, 2), 7: (1, 0), 8: (0, 0)}
    assert found == {row: pytest.approx((labels + 1.5) / (rows + 2)) for row, (rows, labels) in sums.items()}


def test_out_of_fold_an_event_of_train_is_not_in_its_own_rate_and_held_out_ones_see_all_of_train(
    spark: SparkSession,
) -> None:
    found = _past(spark, what="rate", folds=64, prior_rows=0, prior_mean=0.5)  # so many that each row is a fold
    assert found[5] == found[6] == pytest.approx(2 / 3)
    assert (found[1], found[2], found[3]) == (pytest.approx(0.5), pytest.approx(1.0), pytest.approx(0.5))
    assert found[4] == found[7] == 0, "there is no other event of train"


def test_the_state_that_serving_goes_on_from_holds_the_last_tiles(spark: SparkSession) -> None:
    # Tile 3 is the first of the six before the newest: a request within the newest still sees it.
    newest = {("u", 9): (1, 1.0), ("\x00", 9): (1, 1.0), ("\x00", 8): (1, 0.0)}
    of_tiles = {6: newest | {("u", 3): (1, 0.0)}, 5: newest, None: newest | {("u", 8): (4, 2.0), ("v", 8): (1, 1.0)}}
    for tiles, expected in of_tiles.items():
        feature = PastFeature(name="past", owner="events", by=("user",), what="rate", tile_ms=DAY, tiles=tiles)
        rows = state_of(_events(spark), feature).collect()
        assert {(row["key"], row["tile"]): (row["rows"], row["labels"]) for row in rows} == expected


def test_an_event_sees_the_version_that_held_at_its_time(spark: SparkSession) -> None:
    versions = spark.createDataFrame(
        [("u", 10, "a"), ("u", 20, "b"), ("v", 5, "c")], "user_id string, valid_from_ms bigint, city string"
    )
    times = [("u", 9), ("u", 10), ("u", 19), ("u", 20), ("u", 99), ("v", 99), ("w", 99)]
    events = spark.createDataFrame(
        list(enumerate(times)), "row_id bigint, e struct<user_id:string, event_time_ms:bigint>"
    )
    joined = with_version_at(events.select("row_id", "e.*"), versions, key="user_id")
    assert joined.columns == ["row_id", "user_id", "event_time_ms", "city"]
    cities = [row["city"] for row in joined.orderBy("row_id").collect()]
    assert cities == [None, "a", "a", "b", "b", "c", None]
    assert {row["user_id"]: row["city"] for row in latest(versions, key="user_id").collect()} == {"u": "b", "v": "c"}


def test_quantile_edges_cut_into_even_buckets_and_are_the_same_in_any_order(spark: SparkSession) -> None:
    values = spark.range(10_000).select(F.exp(F.col("id") / 1000.0).alias("x"), (F.col("id") % 3).alias("few"))
    wanted = {"x": (F.col("x"), 10), "few": (F.col("few"), 10), "none": (F.lit(None).cast("double"), 4)}
    edges = quantile_edges(values, wanted)
    assert len(edges["x"]) == 9
    assert [edge / math.exp(share) for share, edge in enumerate(edges["x"], start=1)] == pytest.approx(
        [1.0] * 9, rel=6e-3
    )
    assert (edges["few"], edges["none"]) == ((1.0, 2.0), ())
    assert quantile_edges(values.orderBy(F.desc("x")).repartition(7), wanted) == edges
