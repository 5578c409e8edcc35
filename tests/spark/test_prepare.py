"""Prepare, end to end: splits, features and histories of ten ratings by hand, and what every snapshot promises."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from schemas.errors import UserError
from schemas.features import IndexFeature, IndicesFeature, NumberFeature
from schemas.snapshot import Snapshot, open_snapshot
from spark_jobs.jobs.prepare import grain_of_train
from spark_jobs.transforms.splits import parse_split
from tests.spark.logs import run_ingest, run_prepare, write_click_log, write_contract, write_lines

pytestmark = pytest.mark.slow

# Train counts: users u1 3, u2 2, u3 1; items a 3, c 2, b 1; devices tv 3, phone 2.
USERS = {3: "u1", 4: "u2", 5: "u3", 2: "unseen"}
ITEMS = {"a": 3, "c": 4, "b": 5}
PRICE_STD = math.sqrt((100 + 0 + 100 + 0 + 0) / 5)  # 10, 20, 30, 20, 20 around 20
AGE_STD = math.sqrt((0 + 100 + 100) / 3)  # 30, 20, 40 around 30


def _rows(snapshot: Snapshot, split: str) -> list[dict[str, Any]]:
    return sorted(snapshot.read(split).to_pylist(), key=lambda row: row["event_time_ms"])


def _column(snapshot: Snapshot, name: str) -> list[Any]:
    """A column over train, valid and test, in the order of time."""
    return [row[name] for split in ("train", "valid", "test") for row in _rows(snapshot, split)]


def test_the_splits_add_up_to_the_accepted_events(film_snapshot: Snapshot) -> None:
    splits = film_snapshot.manifest.ledger.splits
    assert splits is not None
    assert (splits.accepted, splits.train, splits.valid, splits.test) == (10, 6, 2, 2)
    times = {
        split: [row["event_time_ms"] for row in _rows(film_snapshot, split)] for split in ("train", "valid", "test")
    }
    assert times == {
        "train": [1000, 2000, 3000, 4000, 5000, 6000],
        "valid": [7000, 8000],
        "test": [9000, 10000],
    }
    film_snapshot.verify()


def test_vocabularies_hold_what_train_holds_by_falling_count(film_snapshot: Snapshot) -> None:
    def entries(name: str) -> dict[str, tuple[int, int]]:
        return {row["value"]: (row["idx"], row["count"]) for row in film_snapshot.read(f"vocab/{name}").to_pylist()}

    assert entries("user") == {"u1": (3, 3), "u2": (4, 2), "u3": (5, 1)}
    assert entries("item") == {"a": (3, 3), "c": (4, 2), "b": (5, 1)}
    assert entries("event_device") == {"tv": (3, 3), "phone": (4, 2)}
    assert entries("item_genres") == {"drama": (3, 2), "war": (4, 1)}
    assert entries("item_year") == {"1990": (3, 2), "1991": (4, 1)}


def test_what_only_valid_and_test_hold_is_unseen_and_what_is_null_says_so(film_snapshot: Snapshot) -> None:
    assert _column(film_snapshot, "user_idx") == [3, 3, 4, 4, 5, 3, 4, 5, 2, 3]
    assert _column(film_snapshot, "item_idx") == [3, 5, 3, 4, 3, 4, 5, 2, 3, 2]
    assert _column(film_snapshot, "event_device_idx") == [3, 3, 4, 1, 3, 4, 3, 2, 3, 2]


def test_moments_are_those_of_train_whatever_valid_and_test_hold(film_snapshot: Snapshot) -> None:
    features = {feature.name: feature for feature in film_snapshot.transform.features}
    price, age = features["event_price"], features["user_age"]
    assert isinstance(price, NumberFeature)
    assert isinstance(age, NumberFeature)
    assert (price.mean, price.std) == pytest.approx((20, PRICE_STD))
    assert (age.mean, age.std) == pytest.approx((30, AGE_STD))
    assert _column(film_snapshot, "event_price") == pytest.approx(
        [(price - 20) / PRICE_STD for price in (10, 20, 30, 20, 20, 20, 1000, 20, 20, 5000)]  # the null is the mean
    )
    assert _column(film_snapshot, "user_age") == pytest.approx(
        [(age - 30) / AGE_STD for age in (30, 30, 20, 20, 40, 30, 20, 40, 90, 30)]
    )


def test_labels_and_histories_are_those_of_the_event(film_snapshot: Snapshot) -> None:
    assert _column(film_snapshot, "label") == [5, 4, 3, 2, 1, 5, 4, 4, 3, 5]
    assert _column(film_snapshot, "history") == [
        [0, 0, 0],
        [0, 0, 3],
        [0, 0, 0],
        [0, 0, 3],
        [0, 0, 0],
        [0, 3, 5],
        [0, 3, 4],
        [0, 0, 3],
        [0, 0, 0],
        [3, 5, 4],
    ]


def test_held_out_rows_carry_what_their_query_leaves_out_and_negatives_from_the_rest(film_snapshot: Snapshot) -> None:
    held_out = [*_rows(film_snapshot, "valid"), *_rows(film_snapshot, "test")]
    assert [row["seen"] for row in held_out] == [[3, 4], [3], [], [3, 5, 4]]
    assert [row["query_id"] for row in held_out] == [row["row_id"] for row in held_out]
    allowed: list[set[int]] = [set(), {4, 5}, {4, 5}, set()]
    for row, fresh in zip(held_out, allowed, strict=True):
        assert set(row["negatives"]) <= fresh
        assert len(row["negatives"]) == len(set(row["negatives"]))
    assert "seen" not in film_snapshot.read("train").column_names


def test_items_and_users_are_rows_to_recommend_and_to_recommend_to(film_snapshot: Snapshot) -> None:
    assert film_snapshot.read("items").to_pylist() == [
        {"item_idx": 3, "item_id": "a", "title": "Alpha", "count": 3, "item_genres_idx": [3, 4], "item_year_idx": 3},
        {"item_idx": 4, "item_id": "c", "title": "Gamma", "count": 2, "item_genres_idx": [1, 0], "item_year_idx": 3},
        {"item_idx": 5, "item_id": "b", "title": "Beta", "count": 1, "item_genres_idx": [3, 0], "item_year_idx": 4},
    ]
    users = {row["user_id"]: row for row in film_snapshot.read("users").to_pylist()}
    assert {name: (row["user_idx"], row["seen"], row["history"]) for name, row in users.items()} == {
        "u1": (3, [3, 5, 4, 2], [5, 4, 2]),
        "u2": (4, [3, 4, 5], [3, 4, 5]),
        "u3": (5, [3, 2], [0, 3, 2]),
        "u4": (2, [3], [0, 0, 3]),
        "u5": (2, [], [0, 0, 0]),
    }


def test_the_transform_names_every_column_of_the_splits_with_its_table_and_size(film_snapshot: Snapshot) -> None:
    transform = film_snapshot.transform
    assert [(feature.name, feature.kind, feature.owner) for feature in transform.features] == [
        ("user_idx", "index", "users"),
        ("item_idx", "index", "items"),
        ("history", "history", "events"),
        ("user_age", "number", "users"),
        ("item_genres_idx", "indices", "items"),
        ("item_year_idx", "index", "items"),
        ("event_device_idx", "index", "events"),
        ("event_price", "number", "events"),
    ]
    sizes = {
        feature.name: transform.size(feature)
        for feature in transform.features
        if isinstance(feature, (IndexFeature, IndicesFeature))
    }
    assert sizes == {"user_idx": 6, "item_idx": 6, "item_genres_idx": 5, "item_year_idx": 5, "event_device_idx": 5}
    assert next(f.length for f in transform.features if isinstance(f, IndicesFeature)) == 2


def test_columns_are_required_lz4_and_without_dictionary(film_snapshot: Snapshot) -> None:
    types = {
        "row_id": pa.int64(),
        "user_idx": pa.int32(),
        "item_idx": pa.int32(),
        "event_time_ms": pa.int64(),
        "label": pa.float32(),
        "user_age": pa.float32(),
        "event_device_idx": pa.int32(),
        "event_price": pa.float32(),
    }
    for split in ("train", "valid", "test"):
        for file in film_snapshot.files(split):
            parquet = pq.ParquetFile(Path(film_snapshot.url) / file.path)
            assert {name: parquet.schema_arrow.field(name).type for name in types} == types
            for field in parquet.schema_arrow:
                assert not field.nullable, field
                if pa.types.is_list(field.type):
                    assert field.type.value_type == (pa.int32())
                    assert not field.type.value_field.nullable, field
            group = parquet.metadata.row_group(0)
            for index in range(group.num_columns):
                assert group.column(index).compression == "LZ4"
                assert not any("DICTIONARY" in encoding for encoding in group.column(index).encodings)


def test_the_same_events_prepared_again_give_the_same_files(
    spark: SparkSession, film_events: Path, film_snapshot: Snapshot, tmp_path: Path
) -> None:
    spark.conf.set("spark.sql.shuffle.partitions", "3")  # the cluster's size must not show in the files
    try:
        run_prepare(spark, film_events, tmp_path / "again")
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", "2")
    again = open_snapshot(str(tmp_path / "again"))
    assert again.manifest.transform == film_snapshot.manifest.transform
    assert again.manifest.row_id_sums == film_snapshot.manifest.row_id_sums
    for split in ("train", "valid", "test"):
        assert [file.sha256 for file in again.files(split)] == [file.sha256 for file in film_snapshot.files(split)]
    for part in film_snapshot.manifest.parts:
        key = film_snapshot.read(part).column_names[0]
        ours, others = (one.read(part).sort_by(key).to_pylist() for one in (film_snapshot, again))
        assert ours == others


@pytest.fixture(scope="module")
def random_split(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Six users, who each took ten of twelve items, split at random; histories of four."""
    folder = tmp_path_factory.mktemp("ratio")
    lines = [f"u{user},i{(user * 5 + n) % 12},{n}".encode() for user in range(6) for n in range(10)]
    contract = write_click_log(folder, [b"user,item,time", *lines])
    run_ingest(spark, contract, folder / "raw", folder / "events")
    changes = {"history_length": 4, "rows_per_row_group": 5, "num_files": 2}
    run_prepare(spark, folder / "events", folder / "out", split="ratio:0.6,0.2,0.2", **changes)
    return open_snapshot(str(folder / "out"))


def test_under_a_random_split_a_history_holds_other_train_items_only(random_split: Snapshot) -> None:
    assert random_split.manifest.query_grain == "user"
    train = _rows(random_split, "train")
    taken = {user: [row["item_idx"] for row in train if row["user_idx"] == user] for user in range(3, 9)}
    assert [len(items) for items in taken.values()] == [6] * 6
    for split in ("train", "valid", "test"):
        for row in _rows(random_split, split):
            others = [item for item in taken[row["user_idx"]] if item != row["item_idx"]]
            assert row["history"] == others[-4:]


def test_train_may_hold_all_other_items_of_its_users_while_held_out_rows_hold_what_came_before(
    spark: SparkSession, tmp_path: Path
) -> None:
    # Three users, of whom each takes six items, one after the other.
    lines = [f"u{n % 3},i{n // 3},{n}".encode() for n in range(18)]
    contract = write_click_log(tmp_path, [b"user,item,time", *lines])
    run_ingest(spark, contract, tmp_path / "raw", tmp_path / "events")
    changes = {"history_length": 2, "split": "time:0.66,0.17,0.17", "train_histories": "others"}
    run_prepare(spark, tmp_path / "events", tmp_path / "out", **changes)
    snapshot = open_snapshot(str(tmp_path / "out"))
    assert snapshot.manifest.query_grain == "event"
    train, valid, test = (_rows(snapshot, split) for split in ("train", "valid", "test"))
    taken = {user: [row["item_idx"] for row in train if row["user_idx"] == user] for user in range(3, 6)}
    assert [len(items) for items in taken.values()] == [4] * 3
    for row in train:
        assert row["history"] == [item for item in taken[row["user_idx"]] if item != row["item_idx"]][-2:]
    for row in valid:
        assert row["seen"] == taken[row["user_idx"]]
        assert row["history"] == row["seen"][-2:]
    assert [row["seen"][:4] for row in test] == [taken[row["user_idx"]] for row in test]


def test_what_train_may_hold_goes_by_the_split() -> None:
    by_time, at_random = parse_split("time:0.8,0.1,0.1"), parse_split("ratio:0.8,0.1,0.1")
    assert [grain_of_train(None, policy) for policy in (by_time, at_random)] == ["event", "user"]
    assert [grain_of_train("others", policy) for policy in (by_time, at_random)] == ["user", "user"]
    assert grain_of_train("before", by_time) == "event"
    with pytest.raises(UserError, match="in no order of time"):
        grain_of_train("before", at_random)


def test_under_a_random_split_a_query_is_a_user_and_leaves_out_what_came_before_the_split(
    random_split: Snapshot,
) -> None:
    by_split = {split: _rows(random_split, split) for split in ("train", "valid", "test")}
    items = {
        split: {user: {row["item_idx"] for row in rows if row["user_idx"] == user} for user in range(3, 9)}
        for split, rows in by_split.items()
    }
    for split in ("valid", "test"):
        queries = {row["user_idx"]: row["query_id"] for row in by_split[split]}
        assert len(set(queries.values())) == 6
        for row in by_split[split]:
            user = row["user_idx"]
            known = items["train"][user] | (items["valid"][user] if split == "test" else set())
            assert set(row["seen"]) == known
            assert row["query_id"] == queries[user]
            assert not set(row["negatives"]) & (known | {row["item_idx"]})


def test_row_groups_and_files_are_as_many_as_asked_for(random_split: Snapshot) -> None:
    files = random_split.files("train")
    assert len(files) == 2
    for file in files:
        assert all(rows == 5 for rows in file.row_groups[:-1])
        assert 0 < file.row_groups[-1] <= 5
    assert sum(file.rows for file in files) == 36


def test_labels_after_the_first_have_columns_of_their_own_and_null_is_no_number(
    spark: SparkSession, tmp_path: Path
) -> None:
    lines = [f"u{n % 3},i{n % 2},{n},{n % 2},{'' if n % 5 == 0 else n % 3 % 2}".encode() for n in range(10)]
    write_lines(tmp_path / "raw" / "clicks.csv", [b"user,item,time,click,like", *lines])
    label = {"type": "int32", "role": "label", "one_of": ["0", "1"]}
    columns = [
        {"name": "user", "type": "string", "role": "user", "meaning": "who"},
        {"name": "item", "type": "string", "role": "item", "meaning": "what"},
        {"name": "time", "type": "timestamp_ms", "role": "event_time", "meaning": "when"},
        {"name": "click", "meaning": "clicked", **label},
        {"name": "like", "meaning": "liked, where asked", "nullable": True, **label},
    ]
    events = {"source": {"path": "clicks.csv", "delimiter": ","}, "key": ["time"], "columns": columns}
    contract = write_contract(tmp_path, {"name": "clicks", "meaning": "clicks", "events": events})
    run_ingest(spark, contract, tmp_path / "raw", tmp_path / "events")
    run_prepare(spark, tmp_path / "events", tmp_path / "snapshot")
    snapshot = open_snapshot(str(tmp_path / "snapshot"))
    assert _column(snapshot, "label") == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    liked = [None if math.isnan(value) else value for value in _column(snapshot, "label_like")]
    assert liked == [None, 1, 0, 0, 1, None, 0, 1, 0, 0]
    assert snapshot.manifest.statistics["train"]["mean_label_like"] == pytest.approx(2 / 4)
