"""What a release takes of the tables behind a snapshot: columns that come from the item, and that crosses borrow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from schemas.errors import UserError
from schemas.features import FIELD_SEPARATOR, NUM_RESERVED, HashFeature, NumberFeature, hashed
from schemas.ledger import Ledger
from schemas.manifest import MANIFEST, Manifest, Parent
from schemas.snapshot import open_snapshot
from serving.features import Features
from serving.items import Items, read_items
from serving.pack import main, write_tables
from serving.user_sorting import write_users
from serving.users import Users
from tests.serving.releases import make_served_snapshot
from tests.snapshots import NUM_ITEMS, write_parquet

FROM_ITEM = {"duration": "release_year"}
LENGTH = NumberFeature(name="duration", source="duration", owner="events", mean=1900, std=10)
CROSS = HashFeature(name="cross", sources=("tab", "items__title", "users__age"), owner="events", buckets=1000)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A snapshot with the features above, and the events that it names as its parent."""
    root = tmp_path_factory.mktemp("packing")
    url = make_served_snapshot(root / "s", rows=40)
    manifest = Manifest.model_validate_json((root / "s" / MANIFEST).read_text(encoding="utf-8"))
    # i3 is unknown to its table; of i1 nothing but the id is known.
    items = pa.table(
        {
            "item_id": ["i1", "i0", "i2"],
            "release_year": pa.array([None, "1950", "1990"]),
            "title": pa.array([None, "a", "b c"]),
        }
    )
    users = pa.table({"user_id": ["u1", "u0"], "age": pa.array([31, 30], pa.int32())})
    store = root / "events"
    parts = {
        name: (write_parquet(store / name / "part.parquet", table, [table.num_rows], store),)
        for name, table in (("items", items), ("users", users))
    }
    events = manifest.model_copy(
        update={"kind": "events", "parts": parts, "transform": None, "ledger": Ledger(tables=manifest.ledger.tables)}
    )
    (store / MANIFEST).write_text(events.model_dump_json(), encoding="utf-8")
    assert manifest.transform is not None
    transform = manifest.transform.model_copy(update={"features": (*manifest.transform.features, LENGTH, CROSS)})
    parent = Parent(url=str(store), id="events", digest=events.digest())
    changed = manifest.model_copy(update={"transform": transform, "parents": (parent,)})
    (root / "s" / MANIFEST).write_text(changed.model_dump_json(), encoding="utf-8")
    return url


@pytest.fixture(scope="module")
def packed(url: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Items]:
    draft = tmp_path_factory.mktemp("draft")
    write_tables(open_snapshot(url), draft, FROM_ITEM)
    return draft, read_items(draft / "items.arrow", open_snapshot(url).transform.features)


def test_a_column_that_comes_from_the_item_is_encoded_for_every_item(packed):
    _, items = packed
    assert len(items) == NUM_ITEMS
    assert items.features["duration"][:4] == pytest.approx([5.0, 0.0, 9.0, 0.0])


def test_what_a_cross_borrows_of_user_and_item_stands_in_it(url, packed):
    draft, items = packed
    transform = open_snapshot(url).transform
    users = Users(draft / "users.arrow", transform.of("users"))
    known, unknown = users.find("u1"), users.find("u9")
    assert known is not None
    assert unknown is not None
    assert (known.raw, unknown.raw) == ({"users__age": 31}, {"users__age": None})
    features = Features(transform, FROM_ITEM, draft, items)
    found = features.of_items({"tab": 2, **known.raw}, 0, np.array([2, 3]))["cross"]
    expected = [hashed(FIELD_SEPARATOR.join(("2", text, "31")), 1000) for text in ("b c", "\x00")]
    assert found.tolist() == expected


def test_an_items_column_that_is_not_there_is_named(url, tmp_path):
    with pytest.raises(UserError, match=r"items.release_yaer, which is no column; did you mean 'release_year'"):
        write_tables(open_snapshot(url), tmp_path, {"duration": "release_yaer"})


def test_events_that_are_gone_are_named(url, tmp_path):
    snapshot = open_snapshot(url)
    gone = snapshot.manifest.model_copy(update={"parents": (Parent(url="/gone", id="e", digest="d"),)})
    with pytest.raises(UserError, match="/gone does not give it"):
        write_tables(type(snapshot)(url=snapshot.url, manifest=gone), tmp_path, FROM_ITEM)


def test_users_keep_the_times_of_their_histories_where_the_snapshot_has_them(url, tmp_path):
    snapshot = open_snapshot(url)
    table = snapshot.read("users")
    times = pa.array([[0, 5, 6, 7]] * table.num_rows, pa.list_(pa.int64()))
    file = write_parquet(
        tmp_path / "users.parquet", table.append_column("history_times_ms", times), [table.num_rows], tmp_path
    )
    parts = {**snapshot.manifest.parts, "users": (file,)}
    timed = type(snapshot)(url=str(tmp_path), manifest=snapshot.manifest.model_copy(update={"parts": parts}))
    write_users(timed, ["history", "seen", "history_times_ms"], tmp_path / "users.arrow")
    found = Users(tmp_path / "users.arrow", ()).find("u4")
    assert found is not None
    assert found.times_ms is not None
    assert found.times_ms.tolist() == [5, 6, 7]
    assert found.history.tolist() == [8 + NUM_RESERVED, 9 + NUM_RESERVED, 10 + NUM_RESERVED]


def test_mistakes_of_the_command_are_one_line_and_exit_code_2(tmp_path, capsys):
    code = main(["--retriever", str(tmp_path), "--id", "1", "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert (code, len(error.splitlines())) == (2, 1)
    assert "is no bundle" in error
