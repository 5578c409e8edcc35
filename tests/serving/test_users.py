"""The table of users: sorted within bounded memory, found by id, told apart where their hashes are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import serving.user_sorting
import serving.users
from schemas.features import NUM_RESERVED, IndexFeature, NumberFeature
from schemas.snapshot import open_snapshot
from serving.user_sorting import latest_rows, user_key, write_users
from serving.users import Users
from tests.serving.releases import make_served_snapshot
from tests.snapshots import NUM_USERS

FEATURES = (
    IndexFeature(name="user_idx", source="user_id", owner="users", vocabulary="user"),
    NumberFeature(name="user_age", source="age", owner="users"),
)
COLUMNS = ["user_idx", "user_age", "history", "seen"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_served_snapshot(tmp_path_factory.mktemp("users") / "s", rows=40)


@pytest.mark.parametrize("part_bytes", [1 << 30, 400])
def test_every_user_is_found_whatever_the_memory_to_sort_in(url, tmp_path, part_bytes):
    path = tmp_path / "users.arrow"
    assert write_users(open_snapshot(url), COLUMNS, path, part_bytes=part_bytes) == NUM_USERS
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        assert (reader.num_record_batches > 1) == (part_bytes == 400)
        keys = reader.read_all()["key"].to_pylist()
    assert keys == sorted(keys)
    users = Users(path, FEATURES)
    for i in range(NUM_USERS):
        found = users.find(f"u{i}")
        assert found is not None
        assert found.features == {"user_idx": i + NUM_RESERVED, "user_age": pytest.approx(i / 10)}
        items = [(2 * i + j) % 30 + NUM_RESERVED for j in range(3)]
        assert (found.history.tolist(), found.seen.tolist()) == (items, items)
    assert users.find("u20") is None
    assert users.find("") is None
    assert not list(tmp_path.glob(".*"))


def test_users_with_one_hash_are_told_apart(url, tmp_path, monkeypatch):
    def few(user_id: str) -> int:
        return 3 + len(user_id) if user_id != "u5" else 1

    for module in (serving.user_sorting, serving.users):
        monkeypatch.setattr(module, "user_key", few)
    path = tmp_path / "users.arrow"
    write_users(open_snapshot(url), COLUMNS, path)
    users = Users(path, FEATURES)
    found = [users.find(f"u{i}") for i in range(NUM_USERS)]
    assert [one.features["user_idx"] for one in found if one] == list(range(NUM_RESERVED, NUM_RESERVED + NUM_USERS))
    assert users.find("u77") is None


def test_the_key_is_sparks_xxhash64():
    # The value that the documentation of pyspark.sql.functions.xxhash64 shows.
    assert np.uint64(user_key("ABC")).astype(np.int64) == 4105715581806190027


def test_of_versions_the_newest_counts():
    table = pa.table({"id": ["a", "b", "a"], "at": [5, 1, 2], "x": [1, 2, 3]})
    rows = latest_rows(table, "id", "at").to_pylist()
    assert sorted((row["id"], row["x"]) for row in rows) == [("a", 1), ("b", 2)]


def test_an_empty_table_of_users_knows_nobody(url, tmp_path: Path):
    snapshot = open_snapshot(url)
    path = tmp_path / "users.arrow"
    write_users(snapshot, COLUMNS, path)
    with pa.memory_map(str(path)) as source:
        schema = pa.ipc.open_file(source).schema
    with pa.ipc.new_file(str(tmp_path / "none.arrow"), schema):
        pass
    assert Users(tmp_path / "none.arrow", FEATURES).find("u1") is None
