"""Row filters: exactly the rows that a look at every row would let through, and nothing read that cannot hold one."""

from __future__ import annotations

import datetime
import math
import operator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from schemas.errors import SnapshotDamaged, UserError
from training.feed import Feed
from training.reader import open_folder
from training.row_groups import ParquetRows

Row = dict[str, Any]

NUM_ROWS = 60  # days 1 to 3, of each 10 rows of "eu" and 10 of "us" in row groups of 4 + 4 + 2
LABELS = ["apple", "né", "", None, "pear"]


def row(row_id: int) -> Row:
    """Scores rise with row_id, so that statistics tell row groups apart; every seventh is null, and all of 20 to 29."""
    return {
        "row_id": row_id,
        "day": 1 + row_id // 20,
        "region": "us" if row_id // 10 % 2 else "eu",
        "score": None if row_id % 7 == 3 or 20 <= row_id < 30 else row_id // 3,
        "label": LABELS[row_id % 5],
        "price": row_id / 4,
        "kind": "ab"[row_id % 2],
        "paid": row_id % 3 == 0,
        "at": datetime.datetime(2024, 1, 1) + datetime.timedelta(hours=row_id),
    }


ROWS = [row(row_id) for row_id in range(NUM_ROWS)]
HIVE = ("day", "region")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("rows")
    for first in range(0, NUM_ROWS, 10):
        rows = ROWS[first : first + 10]
        folder = root / f"day={rows[0]['day']}" / f"region={rows[0]['region']}"
        folder.mkdir(parents=True)
        table = pa.Table.from_pylist([{name: row[name] for name in row if name not in HIVE} for row in rows])
        table = table.set_column(table.column_names.index("score"), "score", table["score"].cast(pa.int32()))
        table = table.set_column(table.column_names.index("kind"), "kind", table["kind"].dictionary_encode())
        pq.write_table(table, folder / "part.parquet", row_group_size=4)
    return str(root)


def given_by(rows: ParquetRows, world_size: int = 1, **options: Any) -> list[int]:
    """The row ids that all ranks get, sorted."""
    feeds = [
        Feed(rows, batch_size_per_rank=3, rank=rank, world_size=world_size, workers=0, **options)
        for rank in range(world_size)
    ]
    return sorted(row_id for feed in feeds for batch in feed for row_id in batch["row_id"].tolist())


COMPARISONS = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def holds(row: Row, name: str, comparison: str, wanted: Any) -> bool:
    """A null compares with nothing, and it is in no list, so that `not in` lets it through."""
    value = row[name]
    if comparison == "in":
        return value is not None and value in wanted
    if comparison == "not in":
        return value is None or value not in wanted
    return value is not None and COMPARISONS[comparison](value, wanted)


def let_through(filters: list) -> list[int]:
    """By a look at every row."""
    conjunctions = [filters] if isinstance(filters[0][0], str) else filters
    return [row["row_id"] for row in ROWS if any(all(holds(row, *one) for one in every) for every in conjunctions)]


FILTERS = [
    [("score", "=", 5)],
    [("score", "!=", 5)],
    [("score", "<", 5)],
    [("score", ">=", 17)],
    [("score", "in", [0, 5, 19, 100])],
    [("score", "not in", [0, 5, 19])],
    [("score", ">", 4), ("score", "<=", 8)],
    [("score", ">", 2.5)],
    [[("score", "<", 3)], [("score", ">", 15), ("score", "!=", 18)]],
    [("day", "=", 2)],
    [("day", "!=", 2), ("region", "=", "eu")],
    [("day", "in", {1, 3})],
    [("day", "not in", (1, 3)), ("score", "<", 1000)],
    [("region", "=", "us")],
    [("region", ">", "eu")],
    [[("region", "=", "eu"), ("score", "<", 2)], [("day", ">", 2), ("row_id", ">=", 58)]],
    [[("day", "=", 1)], [("score", "=", 10)]],
    [("label", "=", "né")],
    [("label", "!=", "apple")],
    [("label", "<", "b"), ("day", "<", 3)],
    [("label", "in", ["", "pear"])],
    [("label", "not in", ["", "pear"])],
    [("kind", "=", "a"), ("row_id", "<", 30)],
    [("kind", "in", ["b"])],
    [("paid", "=", True)],
    [("price", ">", 3.25), ("price", "<", 9)],
    [("at", ">=", datetime.datetime(2024, 1, 3))],
    [("row_id", ">=", 0)],
    [("row_id", "in", [0, 59])],
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("world_size", [1, 2])
def test_each_row_that_a_filter_lets_through_comes_once(url, filters, world_size):
    rows = open_folder(url, columns=["row_id"], filters=filters)
    expected = let_through(filters)
    assert rows.num_rows == len(expected)
    assert given_by(rows, world_size) == expected


condition = st.one_of(
    st.tuples(st.just("day"), st.sampled_from(list(COMPARISONS)), st.integers(0, 4)),
    st.tuples(st.just("day"), st.sampled_from(["in", "not in"]), st.lists(st.integers(0, 4), min_size=1)),
    st.tuples(st.just("region"), st.sampled_from(list(COMPARISONS)), st.sampled_from(["eu", "fr", "us"])),
    st.tuples(st.just("score"), st.sampled_from(list(COMPARISONS)), st.integers(-1, 20)),
    st.tuples(st.just("score"), st.sampled_from(["in", "not in"]), st.lists(st.integers(-1, 20), min_size=1)),
    st.tuples(st.just("label"), st.sampled_from(list(COMPARISONS)), st.sampled_from(["", "apple", "b", "né", "z"])),
    st.tuples(
        st.just("label"),
        st.sampled_from(["in", "not in"]),
        st.lists(st.sampled_from(["", "pear", "x"]), min_size=1),
    ),
    st.tuples(st.just("price"), st.sampled_from(list(COMPARISONS)), st.integers(-4, 64).map(lambda n: n / 4)),
)


@given(filters=st.lists(st.lists(condition, min_size=1, max_size=3), min_size=1, max_size=3))
@example(filters=[[("score", "=", 0), ("day", "=", 1)], [("score", "not in", [1])]])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_filter_gives_what_a_look_at_every_row_gives(url, filters):
    expected = let_through(filters)
    rows = open_folder(url, columns=["row_id", "day"], filters=filters)
    assert rows.num_rows == len(expected)
    if expected:
        assert given_by(rows, world_size=2) == expected


def test_columns_that_only_the_filter_needs_do_not_come(url):
    rows = open_folder(url, columns=["price", "row_id"], filters=[("score", "=", 5), ("day", "=", 1)])
    batches = list(Feed(rows, batch_size_per_rank=8))
    assert [list(batch.columns) for batch in batches] == [["price", "row_id"]]
    assert sorted(batches[0]["row_id"].tolist()) == [15, 16]
    assert sorted(batches[0]["price"].tolist()) == [3.75, 4.0]


def test_columns_of_the_rows_let_through_belong_to_them(url):
    rows = open_folder(url, columns=["row_id", "day", "region", "price", "kind"], filters=[("score", ">=", 3)])
    seen = 0
    for batch in Feed(rows, batch_size_per_rank=5):
        columns = {name: batch[name].tolist() for name in ("row_id", "day", "price")}
        columns |= {name: batch.ragged(name).texts() for name in ("region", "kind")}
        for values in zip(*columns.values(), strict=True):
            found = dict(zip(columns, values, strict=True))
            assert found == {name: ROWS[found["row_id"]][name] for name in columns}
            seen += 1
    assert seen == len(let_through([("score", ">=", 3)]))


def test_a_condition_is_asked_of_what_is_stored_and_not_of_what_stands_in_for_nulls(url):
    rows = open_folder(url, columns=["row_id", "score"], filters=[("score", "<", 2)], fill={"score": 0})
    assert given_by(rows) == [0, 1, 2, 4, 5]
    rows = open_folder(url, columns=["row_id", "score"], filters=[("row_id", "<", 5)], fill={"score": -1})
    batches = list(Feed(rows, batch_size_per_rank=8))
    scores = dict(zip(batches[0]["row_id"].tolist(), batches[0]["score"].tolist(), strict=True))
    assert scores == {0: 0, 1: 0, 2: 0, 3: -1, 4: 1}


NAN = math.nan
FLOATS = [5.0, 5.0, NAN, 1.0, 2.0, NAN, NAN, NAN, NAN]  # in row groups of 3: with statistics of 5, of 1 to 2, without


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([("x", "=", 5.0)], [0, 1]),
        ([("x", "!=", 5.0)], [2, 3, 4, 5, 6, 7, 8]),
        ([("x", "in", [5.0])], [0, 1]),
        ([("x", "not in", [5.0])], [2, 3, 4, 5, 6, 7, 8]),
        ([("x", "<", 5.0)], [3, 4]),
        ([("x", ">=", 2.0)], [0, 1, 4]),
        ([[("x", "<", 0.0)], [("row_id", "=", 2)]], [2]),
        ([[("x", "!=", 5.0), ("row_id", "<", 4)], [("x", "=", 5.0)]], [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_not_a_number_equals_nothing_and_statistics_that_leave_it_out_lose_no_row(tmp_path, filters, expected):
    pq.write_table(pa.table({"row_id": range(9), "x": FLOATS}), tmp_path / "part.parquet", row_group_size=3)
    rows = open_folder(str(tmp_path), columns=["row_id"], filters=filters)
    assert rows.num_rows == len(expected)
    assert given_by(rows) == expected


# What is read.


def with_unreadable_row_groups(path: Path, unreadable: set[int]) -> None:
    """Overwrite the pages of these row groups, so that whoever reads one fails."""
    content, footer = bytearray(path.read_bytes()), pq.read_metadata(path)
    for index in unreadable:
        for number in range(footer.num_columns):
            leaf = footer.row_group(index).column(number)
            start = leaf.dictionary_page_offset or leaf.data_page_offset
            content[start : start + leaf.total_compressed_size] = b"\xff" * leaf.total_compressed_size
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("selected", [["row_id"], ["row_id", "x"]])
def test_row_groups_that_statistics_rule_out_are_not_read(tmp_path, monkeypatch, selected):
    table = pa.table({"row_id": range(40), "x": [i // 10 for i in range(40)], "even": [i % 2 for i in range(40)]})
    path = tmp_path / "part.parquet"
    pq.write_table(table, path, row_group_size=10)
    with_unreadable_row_groups(path, {0, 3})
    read = []
    from_file = ParquetRows._from_file

    def noted(rows: ParquetRows, row_group: Any, *rest: Any, **options: Any) -> pa.Table:
        read.append(row_group.index)
        return from_file(rows, row_group, *rest, **options)

    monkeypatch.setattr(ParquetRows, "_from_file", noted)
    filters = [[("x", "=", 1), ("even", "=", 0)], [("x", "=", 2), ("row_id", ">", 27)]]
    rows = open_folder(str(tmp_path), columns=selected, filters=filters)
    assert [row_group.index for row_group in rows.row_groups] == [1, 2]
    assert given_by(rows) == [10, 12, 14, 16, 18, 28, 29]
    assert set(read) == {1, 2}

    with pytest.raises(SnapshotDamaged, match=r"part.parquet, row group [03]"):  # so reading them would have shown
        given_by(open_folder(str(tmp_path), columns=selected))


def test_files_of_hive_folders_that_are_ruled_out_are_not_read(tmp_path):
    for day in (1, 2):
        (tmp_path / f"day={day}").mkdir()
        pq.write_table(pa.table({"row_id": range(10 * day, 10 * day + 3)}), tmp_path / f"day={day}" / "part.parquet")
    with_unreadable_row_groups(tmp_path / "day=1" / "part.parquet", {0})
    assert given_by(open_folder(str(tmp_path), filters=[("day", ">", 1)])) == [20, 21, 22]


def test_row_groups_without_a_row_to_let_through_are_not_in_the_plan(url):
    rows = open_folder(url, columns=["row_id"], filters=[("row_id", "in", [1, 2, 5, 55])])
    assert [(row_group.num_rows, row_group.index) for row_group in rows.row_groups] == [(2, 0), (1, 1), (1, 1)]


# The plan.


def test_the_plan_counts_the_rows_let_through_and_no_others(url):
    rows = open_folder(url, columns=["row_id"], filters=[("score", "<", 10), ("day", "=", 1)])
    assert let_through([("score", "<", 10), ("day", "=", 1)]) == [i for i in range(20) if i not in (3, 10, 17)]
    assert len(Feed(rows, batch_size_per_rank=4)) == 5  # 17 rows
    assert len(Feed(rows, batch_size_per_rank=4, drop_last=True)) == 4
    ranks = [Feed(rows, batch_size_per_rank=4, rank=rank, world_size=2) for rank in range(2)]
    assert [len(feed) for feed in ranks] == [3, 3]
    assert [[batch.num_rows for batch in feed][:2] for feed in ranks] == [[4, 4], [4, 4]]
    assert sum(next(iter(feed)).global_rows for feed in ranks) == 16


@pytest.mark.parametrize("world_size_after", [1, 2, 3])
def test_a_filtered_epoch_that_was_stopped_goes_on_with_the_rows_left(url, world_size_after):
    filters = [[("score", ">", 3)], [("label", "=", "né")]]
    rows = open_folder(url, columns=["row_id"], filters=filters)
    first = Feed(rows, batch_size_per_rank=5, seed=3)
    batches = iter(first)
    before = [row_id for _ in range(3) for row_id in next(batches)["row_id"].tolist()]
    state = first.state_dict()
    after = []
    for rank in range(world_size_after):
        again = open_folder(url, columns=["row_id"], filters=filters)
        feed = Feed(again, batch_size_per_rank=4, rank=rank, world_size=world_size_after, seed=3)
        feed.load_state_dict(state)
        after += [row_id for batch in feed for row_id in batch["row_id"].tolist()]
    assert len(before) == 15
    assert sorted(before + after) == let_through(filters)


def test_another_filters_state_is_refused(url):
    feeds = [
        Feed(open_folder(url, filters=[("day", "=", 1), ("row_id", "<", n)]), batch_size_per_rank=5) for n in (9, 12)
    ]
    with pytest.raises(UserError, match="cannot be resumed here"):
        feeds[1].load_state_dict(feeds[0].state_dict())


def test_a_filter_that_leaves_little_of_large_row_groups_needs_little_memory(tmp_path):
    # 3 row groups of 8 MB, of which one row each is left: a batch of 1,000 rows is no 8 GB.
    table = pa.table({"row_id": range(300_000), **{f"x{i}": pa.repeat(0.5, 300_000) for i in range(9)}})
    pq.write_table(table, tmp_path / "part.parquet", row_group_size=100_000)
    wanted = [5, 100_005, 200_005]
    rows = open_folder(str(tmp_path), filters=[("row_id", "in", wanted)])
    feed = Feed(rows, batch_size_per_rank=1_000, memory_bytes=64 << 20)
    assert [sorted(batch["row_id"].tolist()) for batch in feed] == [wanted]


# Filters that make no sense.


@pytest.mark.parametrize(
    "filters",
    [
        [("score", ">", 1_000)],
        [("day", "=", 7)],
        [("label", "=", "no such label")],
        [("score", "=", 1), ("score", "=", 2)],
        [("score", "in", [])],
    ],
    ids=str,
)
def test_a_filter_that_lets_nothing_through_is_a_clear_error(url, filters):
    with pytest.raises(UserError, match=r"no rows.*the filter lets none through"):
        Feed(open_folder(url, columns=["row_id"], filters=filters), batch_size_per_rank=4)


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ([("scor", "=", 1)], "'scor'; did you mean 'score'"),
        ([("score", "~", 1)], "~"),
        ([("score", "=", "five")], "score"),
        ([("day", "=", "2")], "day"),
        ([("label", "<", 3)], "label"),
        ([[]], "filter"),
        ([[("day", "=", 1)], []], "filter"),
    ],
    ids=str,
)
def test_a_filter_that_cannot_be_asked_is_refused_by_what_is_wrong_in_it(url, filters, said):
    with pytest.raises(UserError, match=said):
        open_folder(url, columns=["row_id"], filters=filters)
