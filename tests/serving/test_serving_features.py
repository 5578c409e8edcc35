"""Features of one request, by hand: histories, gaps, tiles of the past, and who decides what."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.contract import read_contract
from schemas.features import (
    FIELD_SEPARATOR,
    GapsFeature,
    HashFeature,
    HistoryFeature,
    IndexFeature,
    NumberFeature,
    PastFeature,
    hashed,
)
from schemas.release import Release
from serving.crosses import Cross
from serving.engine import Asked, Engine, load_engine
from serving.past_state import PastState, key_text, write_state
from serving.sources import decides
from serving.ties import hash_of, tie_of
from tests.serving.releases import LAST_EVENT_MS, TILE_MS

DAY = 86_400_000


def test_a_history_holds_the_last_items_left_padded():
    feature = HistoryFeature(length=3)
    assert feature.of([]) == [0, 0, 0]
    assert feature.of([7, 8]) == [0, 7, 8]
    assert feature.of([5, 6, 7, 8]) == [6, 7, 8]


def test_gaps_by_hand():
    feature, now = GapsFeature(length=5), 10_000_000
    # 1, 2, 4 seconds: 3 + floor(log2(1 + s)) is 4, 4, 5; half a second counts as none; a clock that ran ahead too.
    times = [now - 4000, now - 2000, now - 1000, now - 500, now + 700]
    assert feature.of(times, now) == [5, 4, 4, 3, 3]
    assert feature.of([now - 1000], now) == [0, 0, 0, 0, 4]
    assert feature.of([now - 10**15], now)[-1] == 35


@given(gap_ms=st.integers(0, 10**13))
def test_a_gap_is_the_logarithm_that_spark_takes(gap_ms):
    expected = min(3 + math.floor(math.log2(1 + gap_ms // 1000)), 35)
    assert GapsFeature(length=1).of([0], gap_ms) == [expected]


def state(tmp_path, feature, rows):
    columns = list(zip(*rows, strict=True))
    table = pa.table(dict(zip(("key", "tile", "rows", "labels"), columns, strict=True)))
    write_state(table, tmp_path / "state.arrow")
    return PastState(feature, tmp_path / "state.arrow")


def test_an_event_sees_the_tiles_before_its_own_and_no_older_ones(tmp_path):
    feature = PastFeature(name="n", owner="events", what="count", by=("u",), tile_ms=DAY, tiles=2)
    past = state(tmp_path, feature, [("a", 6, 100, 0.0), ("a", 7, 3, 0.0), ("a", 8, 4, 0.0), ("a", 9, 50, 0.0)])
    assert past.value("a", 9 * DAY) == pytest.approx(math.log1p(3 + 4))
    assert past.value("a", 10 * DAY) == pytest.approx(math.log1p(4 + 50))
    assert past.value("a", 12 * DAY) == 0.0
    assert past.value("b", 9 * DAY) == 0.0


def test_a_rate_is_drawn_to_its_prior_and_all_the_past_is_one_tile_beside_the_newest(tmp_path):
    feature = PastFeature(name="r", owner="events", what="rate", by=("u",), tile_ms=DAY, prior_rows=4, prior_mean=0.25)
    past = state(tmp_path, feature, [("a", 8, 6, 3.0), ("a", 9, 2, 2.0)])
    assert past.value("a", 20 * DAY) == pytest.approx((5 + 1) / (8 + 4))
    assert past.value("a", 9 * DAY) == pytest.approx((3 + 1) / (6 + 4))
    assert past.value("b", 20 * DAY) == pytest.approx(0.25)


def test_out_of_fold_a_request_sees_all_of_train(tmp_path):
    feature = PastFeature(name="r", owner="events", what="rate", by=("u",), tile_ms=DAY, folds=5)
    past = state(tmp_path, feature, [("a", 8, 6, 3.0), ("a", 9, 2, 2.0)])
    assert past.value("a", 2 * DAY) == pytest.approx(5 / 8)


def test_events_of_one_time_are_in_sparks_order():
    # As Spark 4 gives them: xxhash64(u, i, t), and xxhash64(i, xxhash64(u, i, t)), with t a bigint.
    for user, item, time_ms, row, tie in (
        ("u3", "i26", 1795435649920, 606856493530429697, -8092869872119433830),
        ("ü", "x", -1, 1951151390568383361, 794433664205683714),
    ):
        assert hash_of([(user, "string"), (item, "string"), (time_ms, "timestamp_ms")]) == row
        # MovieLens's key, user and item, is joined by the time once events are served.
        assert tie_of(read_contract("ml-100k"))(user, item, time_ms) == tie
    assert hash_of([(7, "int32"), (1795435649920, "int64")]) == -6944038714123721562


def test_many_keys_at_once_are_what_they_are_one_by_one(tmp_path):
    feature = PastFeature(name="n", owner="events", what="count", by=("u",), tile_ms=DAY, tiles=3)
    random = np.random.default_rng(0)
    rows = [
        (f"k{k}", t, int(random.integers(1, 9)), 0.0) for k in range(20) for t in range(10) if random.random() < 0.6
    ]
    past = state(tmp_path, feature, rows)
    keys = [f"k{k}" for k in random.integers(0, 25, 40)]
    for now in (0, 4 * DAY, 11 * DAY):
        assert past.values(keys, now) == pytest.approx([past.value(key, now) for key in keys])


@given(values=st.lists(st.one_of(st.none(), st.text(max_size=5)), min_size=1, max_size=5), tab=st.integers(0, 9))
def test_a_cross_of_many_items_is_what_each_row_encodes_to(values, tab):
    feature = HashFeature(name="h", owner="events", sources=("tab", "items__author", "item_id"), buckets=97)
    ids = [f"i{place}" for place in range(len(values))]
    places = np.arange(len(values))[::-1]
    found = Cross(feature, {"items__author": values, "item_id": ids}).values({"tab": tab}, places)
    rows = [{"tab": tab, "items__author": values[place], "item_id": ids[place]} for place in places]
    assert found.tolist() == [feature.encode(row, {}) for row in rows]


def test_the_key_of_several_columns_is_sparks():
    feature = PastFeature(name="n", owner="events", what="count", by=("u", "tab"), tile_ms=DAY)
    assert key_text(feature, {"u": "7", "tab": 2}) == f"7{FIELD_SEPARATOR}2"
    assert key_text(feature, {"u": "7", "tab": None}) == f"7{FIELD_SEPARATOR}\x00"
    flag = feature.model_copy(update={"by": ("flag",)})
    assert key_text(flag, {"flag": True}) == "true"


def test_who_decides_a_feature():
    def of(*sources: str) -> HashFeature:
        return HashFeature(name="h", owner="events", sources=sources, buckets=9)

    assert decides(of("tab", "users__age"), {}) == "request"
    assert decides(of("item_id"), {}) == "item"
    assert decides(of("items__author", "tab"), {}) == "both"
    duration = NumberFeature(name="d", source="duration_ms", owner="events")
    assert (decides(duration, {}), decides(duration, {"duration_ms": "video_duration"})) == ("request", "item")
    assert decides(HistoryFeature(length=2), {}) == "request"


@pytest.fixture(scope="module")
def engine(released: tuple[object, Release]) -> Engine:
    return load_engine(released[0])


def test_the_features_of_a_request_by_hand(engine):
    now = LAST_EVENT_MS + 1  # the first moment of tile 20
    asked = Asked(user_id="u3", time_ms=now, context={"tab": 1}, since=((now - 500, "i20"), (now - 9, "gone")))
    scored = engine.score([asked], 30)[0]
    assert scored.features == {
        "user_idx": 3 + 3,
        "user_age": pytest.approx(0.3),
        # u3 has seen i6, i7, i8; then i20, and an item that this release does not know.
        "history": [7 + 3, 8 + 3, 20 + 3, 2],
        "tab": 1 + 3,
        "time_day_sin": pytest.approx(math.sin(2 * math.pi * now / DAY)),
        "tab_rate": pytest.approx((6 + 2 * 0.5) / (8 + 2)),
    }
    rank = {engine.items.ids[place]: rank for rank, place in enumerate(scored.places.tolist())}
    seen_by_ranker = engine.of_item(scored, rank["i0"])
    assert seen_by_ranker == {
        "item_idx": 3,
        "year": 3,
        "tab_x_item": hashed(f"1{FIELD_SEPARATOR}i0", 50),
        # The tiles 10 to 19 hold 3 and 1 of its events.
        "item_count": pytest.approx(math.log1p(4)),
    }
    assert engine.of_item(scored, rank["i1"])["item_count"] == 0.0  # its events lie in tile 5


def test_features_of_items_move_on_with_the_tiles(engine):
    later = engine.score([Asked(user_id="u3", time_ms=21 * TILE_MS)], 30)[0]
    rank = later.places.tolist().index(0)
    assert engine.of_item(later, rank)["item_count"] == pytest.approx(math.log1p(1))


def test_a_user_whom_the_release_does_not_know_is_what_nulls_give(engine):
    known = {feature.name for feature in engine.release.transform.of("users")}
    assert known == {"user_idx", "user_age"}
    found = engine.score([Asked(user_id="nobody", time_ms=LAST_EVENT_MS)], 5)[0].features
    assert (found["user_idx"], found["user_age"], found["history"], found["tab"]) == (2, 0.0, [0, 0, 0, 0], 1)


def test_an_index_feature_of_events_looks_up_what_prepare_kept(engine):
    tab = next(f for f in engine.release.transform.features if f.name == "tab")
    assert isinstance(tab, IndexFeature)
    for value, idx in ((0, 3), (2, 5), (9, 2), (None, 1)):
        found = engine.score([Asked(user_id="u1", time_ms=LAST_EVENT_MS, context={"tab": value})], 1)[0]
        assert found.features["tab"] == idx
