"""Requests logged by hand against the batch features of ten ratings: equal where they are, named where they are not."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from schemas.drift import SKEW, SKEW_PAGE, FeatureSkew, SkewReport
from schemas.errors import UserError
from schemas.features import PastFeature
from schemas.feedback import FeedbackRules
from schemas.manifest import Parent
from schemas.release import RELEASE, Release
from schemas.served import IMPRESSION_COLUMNS
from schemas.snapshot import Snapshot
from spark_jobs.jobs.skew import SkewConfig, skew
from spark_jobs.skewing.served import PER_USER, sample_requests
from spark_jobs.transforms.past import past_of, with_past

pytestmark = pytest.mark.slow

# Of train, as tests/spark/test_prepare.py works them out: ages 30, 20, 40; prices 10, 20, 30, 20, 20.
AGE_STD, PRICE_STD = math.sqrt(200 / 3), math.sqrt(200 / 5)
ITEMS = {
    "a": {"item_idx": 3, "item_genres_idx": [3, 4], "item_year_idx": 3},
    "b": {"item_idx": 5, "item_genres_idx": [3, 0], "item_year_idx": 4},
    "d": {"item_idx": 2, "item_genres_idx": [2, 0], "item_year_idx": 2},  # only after train: unseen, as its values are
}
Features = dict[str, Any]


def request(user: str, time_ms: int, context: Features, **features: Any) -> Features:
    return {"user_id": user, "time_ms": time_ms, "context": context, "features": features}


REQUESTS = {
    "after all": request(
        "u1", 20_000, {"device": "tv", "price": 30}, user_idx=3, history=[5, 4, 2], user_age=0.0,
        event_device_idx=3, event_price=10 / PRICE_STD,
    ),
    "in between": request(
        "u1", 6500, {"device": "car"}, user_idx=3, history=[3, 5, 4], user_age=0.0, event_device_idx=2, event_price=0.0,
    ),
    # Its event of the same millisecond may have come of the request itself.
    "at an event": request(
        "u1", 10_000, {}, user_idx=3, history=[3, 5, 4], user_age=0.0, event_device_idx=1, event_price=0.0,
    ),
    "of a user whom train lacks": request(
        "u4", 20_000, {"device": "phone"}, user_idx=2, history=[0, 0, 3], user_age=60 / AGE_STD,
        event_device_idx=4, event_price=0.0,
    ),
    "of a stranger": request(
        "u9", 20_000, {"device": None}, user_idx=2, history=[0, 0, 0], user_age=0.0,
        event_device_idx=1, event_price=0.0,
    ),
}  # fmt: skip


def land(folder: Path, requests: dict[str, Features]) -> Path:
    """Each request answered by generation 0001 with the items a, b and d; and one of another generation."""
    rows = [impression(name, "0001", **made) for name, made in requests.items()]
    rows.append(impression("other", "0002", "u1", 20_000, {}, {"user_idx": 99}))
    path = folder / "impressions" / "day=1970-01-01" / "part.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=IMPRESSION_COLUMNS), path)
    return folder


def impression(
    name: str,
    generation: str,
    user_id: str,
    time_ms: int,
    context: Features,
    features: Features,
    items: dict[str, Features] = ITEMS,
) -> Features:
    shown = [
        {"item_id": item, "position": place, "score": 0.5, "propensity": 0.5, "explored": False}
        | {"features": json.dumps(of)}
        for place, (item, of) in enumerate(items.items())
    ]
    known = {"request_id": name, "time_ms": time_ms, "generation": generation, "user_id": user_id, "policy": "greedy"}
    logged = {"context": json.dumps(context), "features": json.dumps(features), "items": shown}
    return {**known, **logged, "num_candidates": 4, "fallback": None}


@pytest.fixture(scope="module")
def release(film_snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    manifest = film_snapshot.manifest
    made = Release(
        id="0001",
        created_at="2024-01-01T00:00:00+00:00",
        code_version="test",
        contract=manifest.contract,
        transform=film_snapshot.transform,
        snapshot=Parent(url=film_snapshot.url, id=manifest.id, digest=manifest.digest()),
        last_event_time_ms=10_000,
        bundles={},
        files={},
    )
    (folder / RELEASE).write_text(made.model_dump_json(), encoding="utf-8")
    return folder


Skew = Callable[..., SkewReport]


@pytest.fixture
def run_skew(spark: SparkSession, film_events: Path, release: Path, tmp_path: Path) -> Skew:
    def run(requests: dict[str, Features], **settings: Any) -> SkewReport:
        landed, out = land(tmp_path / "landed", requests), tmp_path / "out"
        given = {"landed": landed, "release": release, "events": film_events, "out": out}
        skew(spark, SkewConfig(**{name: str(path) for name, path in given.items()}, **settings))
        return SkewReport.model_validate_json((out / SKEW).read_text(encoding="utf-8"))

    return run


def by_name(report: SkewReport) -> dict[str, FeatureSkew]:
    return {feature.feature: feature for feature in report.features}


def test_features_that_equal_the_batchs_are_no_skew(run_skew: Skew) -> None:
    report = run_skew(REQUESTS | {"that showed nothing": REQUESTS["after all"] | {"items": {}}})
    assert (report.requests, report.generation, report.skewed) == (6, "0001", ())
    compared = {name: (feature.compared, feature.different) for name, feature in by_name(report).items()}
    of_request = {name: (6, 0) for name in ("user_idx", "history", "user_age", "event_device_idx", "event_price")}
    assert compared == of_request | {name: (15, 0) for name in ("item_idx", "item_genres_idx", "item_year_idx")}


def test_what_events_copy_from_the_items_row_is_no_skew(run_skew: Skew, release: Path) -> None:
    made = Release.model_validate_json((release / RELEASE).read_text(encoding="utf-8"))
    rules = FeedbackRules.model_validate(
        {"event": "impression", "labels": {"stars": {"action": "rate", "take": "value"}}, "window_hours": 1}
        | {"from_item": {"price": "year"}}
    )
    (release / RELEASE).write_text(made.model_copy(update={"feedback": rules}).model_dump_json(), encoding="utf-8")
    prices = {"a": (1990 - 20) / PRICE_STD, "b": (1991 - 20) / PRICE_STD, "d": (2001 - 20) / PRICE_STD}
    items = {name: of | {"event_price": prices[name]} for name, of in ITEMS.items()}
    known = REQUESTS["in between"]
    own = {name: value for name, value in known["features"].items() if name != "event_price"}
    try:
        right = run_skew({"r": known | {"features": own, "items": items}})
    finally:
        (release / RELEASE).write_text(made.model_dump_json(), encoding="utf-8")
    assert right.skewed == ()
    assert {f.feature: f.compared for f in right.features}["event_price"] == 3


def test_changed_and_missing_features_are_named_with_examples(run_skew: Skew, tmp_path: Path) -> None:
    changed = {
        name: made | {"features": made["features"] | {"user_age": made["features"]["user_age"] + 1 / AGE_STD}}
        for name, made in REQUESTS.items()
    }
    last = changed["after all"]
    changed["after all"] = last | {"features": last["features"] | {"history": [3, 5, 4]}}
    stranger = dict(changed["of a stranger"]["features"])
    del stranger["event_price"]
    changed["of a stranger"] = changed["of a stranger"] | {"features": stranger}
    lacking = {name: {key: value for key, value in of.items() if key != "item_idx"} for name, of in ITEMS.items()}
    changed["in between"] = changed["in between"] | {"items": lacking}
    report = run_skew(changed)
    assert report.skewed == ("user_age", "event_price", "history", "item_idx")
    found = by_name(report)
    assert (found["user_age"].compared, found["user_age"].different) == (5, 5)
    assert found["user_age"].largest == pytest.approx(1 / AGE_STD)
    assert {column.column for column in report.distributions} == {*report.skewed}
    (missing,) = found["event_price"].examples
    assert (missing.request_id, missing.served, missing.batch) == ("of a stranger", "missing", "0")
    assert (found["item_idx"].compared, found["item_idx"].different) == (15, 3)
    (example,) = found["history"].examples
    assert (example.request_id, example.user_id, example.served, example.batch) == (
        "after all",
        "u1",
        "[3, 5, 4]",
        "[5, 4, 2]",
    )
    assert all(f.different == 0 for name, f in found.items() if name not in report.skewed)
    page = (tmp_path / "out" / SKEW_PAGE).read_text(encoding="utf-8")
    assert "4 of 8 features of 5 requests are skewed, user_age the most" in page
    assert not re.search(r"""(src|href)=["']|url\(|@import""", page)


def test_of_one_user_twenty_requests_are_replayed_and_each_once(spark: SparkSession) -> None:
    requests = [(f"{user}-{number}", user) for user, size in (("many", 30), ("few", 2)) for number in range(size)]
    logged = spark.createDataFrame(requests + requests, "request_id string, user_id string").selectExpr(
        "*", "'0001' AS generation", "CAST(NULL AS string) AS fallback", """'{"a":1}' AS features"""
    )
    chosen = sample_requests(logged, "0001", 100)
    assert {row["user_id"]: row["count"] for row in chosen.groupBy("user_id").count().collect()} == {
        "many": PER_USER,
        "few": 2,
    }


def test_a_generation_that_the_log_lacks_is_told_with_those_it_has(run_skew: Skew) -> None:
    with pytest.raises(UserError, match=r"generation '0001'; the log has '0002'"):
        run_skew({})


def test_the_past_of_rows_that_are_no_events_counts_events_alone(spark: SparkSession) -> None:
    feature = PastFeature(name="plays", owner="events", what="count", by=("item_id",), tile_ms=1000)
    schema = "row_id long, item_id string, event_time_ms long, split string"
    events = spark.createDataFrame([(1, "a", 0, "train"), (2, "a", 100, "train"), (3, "a", 2100, "train")], schema)
    asked = spark.createDataFrame([(4, "a", 900, ""), (5, "a", 1500, ""), (6, "a", 9000, ""), (7, "b", 1, "")], schema)
    found = with_past(asked, feature, past_of(events, feature, asked=asked), name="plays").collect()
    assert {row["row_id"]: row["plays"] for row in found} == {
        4: 0.0,
        5: pytest.approx(math.log(3)),
        6: pytest.approx(math.log(4)),
        7: 0.0,
    }
