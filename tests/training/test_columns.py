"""Every kind of column, from a Parquet file through a shuffled feed to the row that it belongs to."""

from __future__ import annotations

import datetime
import json
import pickle
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from schemas.errors import SnapshotDamaged, UserError
from training.batch import Ragged
from training.feed import Feed
from training.reader import open_folder
from training.row_groups import ParquetRows

# After the reader, which makes petastorm fit to be imported.
from petastorm.codecs import CompressedImageCodec, CompressedNdarrayCodec, NdarrayCodec, ScalarCodec  # isort: skip
from petastorm.etl.dataset_metadata import ROW_GROUPS_PER_FILE_KEY, UNISCHEMA_KEY  # isort: skip
from petastorm.unischema import Unischema, UnischemaField  # isort: skip

NUM_ROWS, FIRST_FILE, ROWS_PER_GROUP = 20, 13, 5
EACH = range(NUM_ROWS)
TEXTS = ["", "a", "né", "日本語", "x" * 50]


def write(folder: Path, table: pa.Table, **options: Any) -> str:
    """Two files, of row groups of 5 + 5 + 3 and of 5 + 2 rows."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {"row_group_size": ROWS_PER_GROUP, **options}
    pq.write_table(table.slice(0, FIRST_FILE), folder / "part-0.parquet", **options)
    pq.write_table(table.slice(FIRST_FILE), folder / "part-1.parquet", **options)
    return str(folder)


def with_row_id(**columns: Any) -> pa.Table:
    return pa.table({"row_id": pa.array(EACH, pa.int64()), **columns})


def rows_of(column: torch.Tensor | Ragged) -> list:
    if isinstance(column, torch.Tensor):
        return column.tolist()
    values, offsets = column.values.tolist(), column.offsets.tolist()
    return [values[offsets[row] : offsets[row + 1]] for row in range(column.num_rows)]


def fed(rows: ParquetRows, **settings: Any) -> dict[str, list]:
    """The columns that a shuffled feed gives, put back into the order of row_id; each row came once."""
    found: dict[str, list] = {name: [] for name in rows.schema.names}
    for batch in Feed(rows, batch_size_per_rank=4, seed=5, **settings):
        for name, column in batch.columns.items():
            found[name] += rows_of(column)
    order = sorted(range(len(found["row_id"])), key=found["row_id"].__getitem__)
    assert order != list(range(len(order))), "they were not shuffled"
    in_order = {name: [values[i] for i in order] for name, values in found.items()}
    assert in_order["row_id"] == list(range(len(order)))
    return in_order


def dtype_of(rows: ParquetRows, name: str) -> torch.dtype:
    column = next(iter(Feed(rows, batch_size_per_rank=4))).columns[name]
    return column.dtype if isinstance(column, torch.Tensor) else column.values.dtype


def in_bytes(texts: list[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


def whole(low: int, high: int) -> list[int]:
    """The numbers of a type, its least and its largest among them."""
    return [low, *range(1, NUM_ROWS - 1), high]


HALVES = [i / 2 - 3 for i in EACH]
YES = [i % 3 == 0 for i in EACH]
SOME_TEXTS = [TEXTS[i % 5] for i in EACH]
PAIRS = [[i, -i] for i in EACH]
UNEQUAL = [list(range(i % 4)) for i in EACH]

NUMBERS = [
    (pa.int8(), torch.int8, whole(-128, 127)),
    (pa.int16(), torch.int16, whole(-(2**15), 2**15 - 1)),
    (pa.int32(), torch.int32, whole(-(2**31), 2**31 - 1)),
    (pa.int64(), torch.int64, whole(-(2**63), 2**63 - 1)),
    (pa.uint8(), torch.uint8, whole(0, 255)),
    (pa.uint16(), torch.uint16, whole(0, 2**16 - 1)),
    (pa.uint32(), torch.uint32, whole(0, 2**32 - 1)),
    (pa.uint64(), torch.uint64, whole(0, 2**64 - 1)),
    (pa.float16(), torch.float16, HALVES),
    (pa.float32(), torch.float32, HALVES),
    (pa.float64(), torch.float64, HALVES),
    (pa.bool_(), torch.bool, YES),
]
TIMES = [
    (pa.timestamp("ms"), torch.int64, whole(-(2**40), 2**40)),
    (pa.timestamp("us"), torch.int64, whole(-(2**50), 2**50)),
    (pa.timestamp("us", tz="Europe/Paris"), torch.int64, whole(-(2**50), 2**50)),
    (pa.timestamp("ns"), torch.int64, whole(-(2**60), 2**60)),
    (pa.date32(), torch.int32, whole(-719_162, 2_932_896)),
    (pa.time32("ms"), torch.int32, whole(0, 86_399_999)),
    (pa.time64("us"), torch.int64, whole(0, 86_399_999_999)),
    (pa.duration("ms"), torch.int64, whole(-(2**40), 2**40)),
]
LISTS = [
    (pa.list_(pa.float32(), 2), torch.float32, PAIRS),
    (pa.list_(pa.int32()), torch.int32, UNEQUAL),
    (pa.list_(pa.int8()), torch.int8, UNEQUAL),
    (pa.list_(pa.float64()), torch.float64, UNEQUAL),
    (pa.large_list(pa.int64()), torch.int64, UNEQUAL),
]
TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.binary(),
    pa.large_binary(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
]


@pytest.mark.parametrize(("kind", "dtype", "values"), [*NUMBERS, *LISTS], ids=str)
def test_a_column_comes_in_the_type_that_is_stored(tmp_path, kind, dtype, values):
    rows = open_folder(write(tmp_path, with_row_id(x=pa.array(values, kind))))
    assert dtype_of(rows, "x") == dtype
    assert fed(rows)["x"] == values


@pytest.mark.parametrize(("kind", "dtype", "values"), TIMES, ids=str)
def test_times_come_as_integers_in_the_unit_that_is_stored(tmp_path, kind, dtype, values):
    stored = pa.array(values, pa.int32() if kind.bit_width == 32 else pa.int64()).cast(kind)
    rows = open_folder(write(tmp_path, with_row_id(x=stored)))
    assert dtype_of(rows, "x") == dtype
    assert fed(rows)["x"] == values


def test_a_day_counts_from_1970_and_a_time_from_its_epoch(tmp_path):
    days = pa.array([datetime.date(1970, 1, 2)] * NUM_ROWS)
    times = pa.array([datetime.datetime(1970, 1, 1, 0, 1)] * NUM_ROWS, pa.timestamp("ms"))
    found = fed(open_folder(write(tmp_path, with_row_id(day=days, time=times))))
    assert found["day"] == [1] * NUM_ROWS
    assert found["time"] == [60_000] * NUM_ROWS


def test_timestamps_as_old_spark_writes_them_come_in_nanoseconds(tmp_path):
    times = pa.array(EACH, pa.int64()).cast(pa.timestamp("ms"))
    url = write(tmp_path, with_row_id(x=times), use_deprecated_int96_timestamps=True)
    assert fed(open_folder(url))["x"] == [i * 1_000_000 for i in EACH]


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_texts_come_as_utf_8(tmp_path, kind):
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    stored = SOME_TEXTS if pa.types.is_string(plain) or pa.types.is_large_string(plain) else map(str.encode, SOME_TEXTS)
    rows = open_folder(write(tmp_path, with_row_id(x=pa.array(stored, plain).cast(kind))))
    assert pa.types.is_dictionary(rows.schema.field("x").type) == pa.types.is_dictionary(kind)
    assert dtype_of(rows, "x") == torch.uint8
    assert fed(rows)["x"] == in_bytes(SOME_TEXTS)


def test_bytes_of_one_length_come_as_bytes(tmp_path):
    stored = pa.array([bytes([i, 255]) for i in EACH], pa.binary(2))
    assert fed(open_folder(write(tmp_path, with_row_id(x=stored))))["x"] == [[i, 255] for i in EACH]


@pytest.mark.parametrize("values", [pa.int8(), pa.int64(), pa.float32()], ids=str)
def test_categories_of_numbers_come_as_their_values(tmp_path, values):
    stored = pa.array([i % 3 * 10 for i in EACH], values).dictionary_encode()
    rows = open_folder(write(tmp_path, with_row_id(x=stored)))
    assert fed(rows)["x"] == [i % 3 * 10 for i in EACH]
    assert dtype_of(rows, "x") == {"int8": torch.int8, "int64": torch.int64, "float": torch.float32}[str(values)]


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.int32()), pa.list_(pa.int32(), 2)], ids=str)
def test_lists_of_a_promised_length_come_as_a_matrix(tmp_path, kind):
    rows = open_folder(write(tmp_path, with_row_id(x=pa.array(PAIRS, kind))), lengths={"x": 2})
    assert next(iter(Feed(rows, batch_size_per_rank=4)))["x"].shape == (4, 2)
    assert fed(rows)["x"] == PAIRS


def test_a_list_that_is_not_of_the_promised_length_is_named(tmp_path):
    lists = [[1, 2]] * 16 + [[1, 2, 3]] + [[1, 2]] * 3
    rows = open_folder(write(tmp_path, with_row_id(x=pa.array(lists))), lengths={"x": 2})
    place = rf"{tmp_path}/part-1.parquet, row group 0, column 'x'"
    with pytest.raises(SnapshotDamaged, match=rf"{place}: row 3 holds a list of 3 values, .* 2 long"):
        fed(rows)


@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (1, 1), (3, 1), (2, 3)])
def test_columns_of_all_kinds_side_by_side_belong_to_the_same_rows(tmp_path, workers, world_size):
    columns = {f"n_{kind}": (pa.array(values, kind), values) for kind, _, values in [*NUMBERS, *LISTS]}
    columns |= {f"t_{kind}": (pa.array(SOME_TEXTS, kind), in_bytes(SOME_TEXTS)) for kind in TEXT_TYPES[:2]}
    columns["row_id"] = (pa.array(EACH, pa.int64()), list(EACH))
    url = write(tmp_path, pa.table({name: stored for name, (stored, _) in columns.items()}))
    seen = 0
    for rank in range(world_size):
        feed = Feed(open_folder(url), batch_size_per_rank=4, rank=rank, world_size=world_size, workers=workers)
        for batch in feed:
            in_rows = {name: rows_of(column) for name, column in batch.columns.items()}
            for name, (_, expected) in columns.items():
                assert in_rows[name] == [expected[row] for row in in_rows["row_id"]], name
            seen += batch.num_rows
    assert seen == NUM_ROWS


def test_files_and_row_groups_without_rows_are_passed_over(tmp_path):
    table = with_row_id(x=pa.array(SOME_TEXTS))
    url = write(tmp_path, table)
    pq.write_table(table.slice(0, 0), tmp_path / "part-00.parquet")
    with pq.ParquetWriter(tmp_path / "part-2.parquet", table.schema) as writer:
        writer.write_table(table.slice(0, 0))
    assert fed(open_folder(url))["x"] == in_bytes(SOME_TEXTS)


# Nulls.

WITH_NULL = [
    (pa.int32(), 7, -1, -1),
    (pa.uint8(), 7, 255, 255),
    (pa.float32(), 0.5, -1.5, -1.5),
    (pa.bool_(), True, False, False),
    (pa.timestamp("ms"), 7, 0, 0),
    (pa.date32(), 7, 0, 0),
    (pa.string(), "né", "", []),
    (pa.large_string(), "né", "?", [63]),
    (pa.binary(), b"\x01", b"\xff", [255]),
    (pa.list_(pa.int32()), [7], [], []),
    (pa.list_(pa.int32()), [7], [1, 2], [1, 2]),
    (pa.dictionary(pa.int32(), pa.string()), "né", "new", [110, 101, 119]),
    (pa.dictionary(pa.int32(), pa.int64()), 7, -1, -1),
]


def array_of(values: list, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    return pa.array(values, kind)


def seen_as(value: Any) -> Any:
    return list(value.encode()) if isinstance(value, str) else list(value) if isinstance(value, bytes) else value


@pytest.mark.parametrize(("kind", "value", "fill", "expected"), WITH_NULL, ids=str)
def test_what_is_to_stand_in_for_nulls_does(tmp_path, kind, value, fill, expected):
    stored = array_of([None if i % 4 == 3 else value for i in EACH], kind)
    found = fed(open_folder(write(tmp_path, with_row_id(x=stored)), fill={"x": fill}))
    assert found["x"] == [expected if i % 4 == 3 else seen_as(value) for i in EACH]


def test_the_type_stays_where_nulls_are_filled(tmp_path):
    stored = pa.array([None if i % 4 else i for i in EACH], pa.int8())
    assert dtype_of(open_folder(write(tmp_path, with_row_id(x=stored)), fill={"x": -1}), "x") == torch.int8


def test_lists_of_a_promised_length_are_filled_with_a_list(tmp_path):
    stored = pa.array([None if i % 4 == 3 else [i, i] for i in EACH], pa.list_(pa.int32()))
    rows = open_folder(write(tmp_path, with_row_id(x=stored)), lengths={"x": 2}, fill={"x": [-1, 0]})
    assert fed(rows)["x"] == [[-1, 0] if i % 4 == 3 else [i, i] for i in EACH]


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, value, *_ in WITH_NULL], ids=str)
def test_a_null_that_nothing_stands_in_for_is_named(tmp_path, kind, value):
    stored = array_of([None if i in (11, 12) else value for i in EACH], kind)
    rows = open_folder(write(tmp_path, with_row_id(x=stored)))
    place = rf"{tmp_path}/part-0.parquet, row group 2, column 'x'"
    with pytest.raises(SnapshotDamaged, match=rf"{place}: 2 nulls, the first in row 1, .*fill"):
        fed(rows)


def test_a_null_in_a_column_that_is_not_read_does_no_harm(tmp_path):
    url = write(tmp_path, with_row_id(x=pa.array([None] * NUM_ROWS, pa.int32())))
    assert fed(open_folder(url, columns=["row_id"])) == {"row_id": list(EACH)}


@pytest.mark.parametrize("lengths", [{}, {"x": 2}])
def test_a_null_within_a_list_is_refused_whatever_the_fill(tmp_path, lengths):
    stored = pa.array([[1, None] if i == 14 else [1, 2] for i in EACH], pa.list_(pa.int32()))
    rows = open_folder(write(tmp_path, with_row_id(x=stored)), fill={"x": [0, 0]}, lengths=lengths)
    with pytest.raises(SnapshotDamaged, match=r"part-1.parquet, row group 0, column 'x': 1 nulls within lists"):
        fed(rows)


@pytest.mark.parametrize(("kind", "fill"), [(pa.int32(), "none"), (pa.uint8(), -1), (pa.list_(pa.int32()), 0)], ids=str)
def test_a_fill_of_another_type_is_refused_when_the_folder_is_opened(tmp_path, kind, fill):
    url = write(tmp_path, with_row_id(x=pa.nulls(NUM_ROWS, kind)))
    with pytest.raises(UserError, match="'x'"):
        open_folder(url, fill={"x": fill})


# Types that no tensor is for.

UNSUPPORTED = [
    (pa.decimal128(10, 2), Decimal("1.50"), "decimal128(10, 2)"),
    (pa.struct([("a", pa.int32())]), {"a": 1}, "struct"),
    (pa.map_(pa.string(), pa.int32()), [("a", 1)], "map"),
    (pa.list_(pa.string()), ["a"], "list<element: string>"),
    (pa.list_(pa.list_(pa.int32())), [[1]], "list<element: list"),
    (pa.list_(pa.string(), 1), ["a"], "fixed_size_list"),
    (pa.null(), None, "null"),
]


@pytest.mark.parametrize(("kind", "value", "said"), UNSUPPORTED, ids=str)
@pytest.mark.parametrize("lengths", [{}, {"x": 1}])
def test_a_type_without_a_tensor_is_refused_by_name_with_advice(tmp_path, kind, value, said, lengths):
    url = write(tmp_path, with_row_id(x=pa.array([value] * NUM_ROWS, kind)))
    with pytest.raises(UserError, match=rf"column 'x' is of type {re.escape(said)}.*leave it out.*or cast it"):
        open_folder(url, lengths=lengths)


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, value, _ in UNSUPPORTED], ids=str)
def test_a_type_without_a_tensor_that_is_not_read_does_no_harm(tmp_path, kind, value):
    url = write(tmp_path, with_row_id(x=pa.array([value] * NUM_ROWS, kind)))
    assert fed(open_folder(url, columns=["row_id"])) == {"row_id": list(EACH)}


# Which columns.


def test_columns_come_in_the_order_asked_for_and_no_others(tmp_path):
    table = with_row_id(a=pa.array(SOME_TEXTS), b=pa.array(HALVES), c=pa.array(UNEQUAL), d=pa.array(EACH))
    rows = open_folder(write(tmp_path, table), columns=["c", "row_id", "a", "b"])
    assert list(next(iter(Feed(rows, batch_size_per_rank=4))).columns) == ["c", "row_id", "a", "b"]


def test_all_columns_come_in_the_order_of_the_file(tmp_path):
    table = with_row_id(a=pa.array(SOME_TEXTS), b=pa.array(HALVES), c=pa.array(UNEQUAL))
    rows = open_folder(write(tmp_path, table))
    assert list(next(iter(Feed(rows, batch_size_per_rank=4))).columns) == ["row_id", "a", "b", "c"]


@pytest.mark.parametrize(
    "asked",
    [
        {"columns": ["row_id", "user_iddx"]},
        {"columns": ["row_id"], "fill": {"user_iddx": 0}},
        {"columns": ["row_id"], "lengths": {"user_iddx": 2}},
        {"columns": ["row_id"], "filters": [("user_iddx", "=", 1)]},
    ],
    ids=lambda asked: next(reversed(asked)),
)
def test_a_column_that_is_not_there_is_refused_with_the_nearest_that_is(tmp_path, asked):
    url = write(tmp_path, with_row_id(user_idx=pa.array(EACH), item_idx=pa.array(EACH)))
    nearest = "there is no column 'user_iddx'; did you mean 'user_idx'.*it has row_id, user_idx, item_idx"
    with pytest.raises(UserError, match=rf"{tmp_path}: {nearest}"):
        open_folder(url, **asked)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (pa.table({"row_id": pa.array([20], pa.int64())}), r"no such column"),
        (with_row_id(x=pa.array(HALVES)).slice(0, 1), r"type is double, in the first file it is int64"),
    ],
    ids=["missing", "of another type"],
)
def test_a_file_with_other_columns_than_the_first_is_named(tmp_path, other, said):
    url = write(tmp_path, with_row_id(x=pa.array(EACH, pa.int64())))
    pq.write_table(other, tmp_path / "part-2.parquet")
    with pytest.raises(SnapshotDamaged, match=rf"{tmp_path}/part-2.parquet, column 'x'.*{said}"):
        open_folder(url)


@pytest.mark.parametrize("lengths", [{}, {"x": 2}])
def test_files_whose_lists_may_hold_nulls_and_files_whose_lists_may_not_are_read_together(tmp_path, lengths):
    for number, nullable in enumerate([True, False]):
        lists = pa.list_(pa.field("element", pa.int32(), nullable=nullable))
        ids = range(10 * number, 10 * number + 10)
        table = pa.table({"row_id": ids, "x": pa.array([[i, -i] for i in ids], lists)})
        pq.write_table(table, tmp_path / f"part-{number}.parquet", row_group_size=4)
    assert fed(open_folder(str(tmp_path), lengths=lengths))["x"] == PAIRS


# Hive folders.


def hive_folder(root: Path) -> str:
    """Days 1, 2 and 10 of two regions, three rows each; row_id = 6 * place of the day + 3 * place of the region + i."""
    row_id = 0
    for day in (1, 2, 10):
        for region in ("eu", "us west"):
            folder = root / f"day={day}" / f"region={region}"
            folder.mkdir(parents=True)
            table = pa.table({"row_id": range(row_id, row_id + 3), "x": [f"{day} {region}"] * 3})
            pq.write_table(table, folder / "part.parquet", row_group_size=2)
            row_id += 3
    return str(root)


DAYS = [1] * 6 + [2] * 6 + [10] * 6
REGIONS = in_bytes((["eu"] * 3 + ["us west"] * 3) * 3)


def test_hive_folders_are_columns_of_whole_numbers_and_of_texts(tmp_path):
    rows = open_folder(hive_folder(tmp_path))
    assert rows.schema.names == ["row_id", "x", "day", "region"]
    assert dtype_of(rows, "day") == torch.int64
    found = fed(rows)
    assert found["day"] == DAYS
    assert found["region"] == REGIONS
    assert found["x"] == in_bytes([f"{day} {region}" for day in (1, 2, 10) for region in ["eu"] * 3 + ["us west"] * 3])


@pytest.mark.parametrize("columns", [["day", "row_id"], ["row_id", "region"], ["region", "row_id", "day"]])
def test_of_hive_folders_only_the_columns_asked_for_come(tmp_path, columns):
    found = fed(open_folder(hive_folder(tmp_path), columns=columns))
    expected = {"row_id": list(range(18)), "day": DAYS, "region": REGIONS}
    assert found == {name: expected[name] for name in columns}


def test_columns_of_hive_folders_come_alone_too(tmp_path):
    batches = list(Feed(open_folder(hive_folder(tmp_path), columns=["day"]), batch_size_per_rank=5))
    assert sorted(day for batch in batches for day in batch["day"].tolist()) == DAYS


def test_days_are_texts_where_one_is_no_number(tmp_path):
    for row_id, day in enumerate(["1", "two", "3", "4", "5", "6"]):
        (tmp_path / f"day={day}").mkdir()
        pq.write_table(pa.table({"row_id": [row_id]}), tmp_path / f"day={day}" / "part.parquet")
    assert fed(open_folder(str(tmp_path)))["day"] == in_bytes(["1", "two", "3", "4", "5", "6"])


def test_a_column_that_folders_and_files_hold_comes_once_as_the_folders_say(tmp_path):
    for row_id, day in enumerate([1, 2, 3, 4, 5, 6]):
        (tmp_path / f"day={day}").mkdir()
        pq.write_table(pa.table({"row_id": [row_id], "day": [day]}), tmp_path / f"day={day}" / "part.parquet")
    assert fed(open_folder(str(tmp_path)))["day"] == [1, 2, 3, 4, 5, 6]


# Names of folders.


@pytest.mark.parametrize("name", ["with space", "100%", "a%20b", "run#3", "what?", "ü", "a;b", "list[0]", "a+b=c"])
def test_a_folder_of_any_name_is_opened(tmp_path, name):
    url = write(tmp_path / name / "train", with_row_id())
    assert fed(open_folder(url)) == {"row_id": list(EACH)}
    assert fed(open_folder(f"{url}/part-0.parquet")) == {"row_id": list(range(FIRST_FILE))}


def test_a_folder_is_found_from_where_one_stands(tmp_path, monkeypatch):
    write(tmp_path / "rows", with_row_id())
    monkeypatch.chdir(tmp_path)
    assert fed(open_folder("rows")) == {"row_id": list(EACH)}
    assert fed(open_folder((tmp_path / "rows").as_uri())) == {"row_id": list(EACH)}


@pytest.mark.parametrize("url", ["/nowhere/at/all", "nosuch://bucket/rows"])
def test_what_cannot_be_opened_is_named(url):
    with pytest.raises(UserError, match=re.escape(url)):
        open_folder(url)


def test_a_folder_without_parquet_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}: there is no Parquet file in it"):
        open_folder(str(tmp_path))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["part.parquet", "day=1/part.parquet"], "intermediate directory"),
        (["eu/part.parquet"], "eu"),
        (["day=1/part.parquet", "region=eu/part.parquet"], "day and by region"),
    ],
    ids=["files at two levels", "a folder without a name and value", "two names at one level"],
)
def test_folders_that_make_no_columns_are_refused_by_what_is_wrong(tmp_path, files, said):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        pq.write_table(with_row_id(), tmp_path / file)
    with pytest.raises(UserError, match=rf"{tmp_path}.*{said}"):
        open_folder(str(tmp_path))


# What petastorm's codecs wrote.


def unischema(**fields: tuple) -> Unischema:
    """By name: numpy type, shape, codec."""
    return Unischema("Rows", [UnischemaField(name, *field, False) for name, field in fields.items()])


def encoded(schema: Unischema, name: str, arrays: list[np.ndarray]) -> pa.Array:
    field = schema.fields[name]
    return pa.array([bytes(field.codec.encode(field, array)) for array in arrays], pa.binary())


def images(height: int = 4, width: int = 3) -> list[np.ndarray]:
    """Colour images whose every pixel is (row, 100, 200), so that swapped channels show."""
    return [np.full((height, width, 3), (row, 100, 200), dtype=np.uint8) for row in EACH]


PNG = (np.uint8, (4, 3, 3), CompressedImageCodec("png"))
PNG_OF_ANY_SIZE = (np.uint8, (None, None, 3), CompressedImageCodec("png"))


def test_images_and_arrays_that_petastorm_encoded_come_as_tensors(tmp_path):
    from pyspark.sql.types import IntegerType

    schema = unischema(
        row_id=(np.int64, (), None),
        image=PNG,
        grey=(np.uint8, (2, 2), CompressedImageCodec("png")),
        matrix=(np.float32, (2, 3), NdarrayCodec()),
        packed=(np.int64, (2,), CompressedNdarrayCodec()),
        scalar=(np.int32, (), ScalarCodec(IntegerType())),
    )
    table = with_row_id(
        image=encoded(schema, "image", images()),
        grey=encoded(schema, "grey", [np.full((2, 2), row, np.uint8) for row in EACH]),
        matrix=encoded(schema, "matrix", [np.array([[row, 1, 2], [3, 4, 5]], np.float32) for row in EACH]),
        packed=encoded(schema, "packed", [np.array([row, -row]) for row in EACH]),
        scalar=pa.array(EACH, pa.int32()),
    )
    rows = open_folder(write(tmp_path, table), unischema=schema)
    types = {name: dtype_of(rows, name) for name in ("image", "grey", "matrix", "packed", "scalar")}
    assert types == {
        "image": torch.uint8,
        "grey": torch.uint8,
        "matrix": torch.float32,
        "packed": torch.int64,
        "scalar": torch.int32,
    }
    found = fed(rows, workers=2)
    assert found["image"] == [[[[row, 100, 200]] * 3] * 4 for row in EACH]
    assert found["grey"] == [[[row, row], [row, row]] for row in EACH]
    assert found["matrix"] == [[[row, 1, 2], [3, 4, 5]] for row in EACH]
    assert found["packed"] == [[row, -row] for row in EACH]
    assert found["scalar"] == list(EACH)


def test_without_a_unischema_they_come_as_bytes(tmp_path):
    schema = unischema(image=PNG)
    stored = encoded(schema, "image", images())
    found = fed(open_folder(write(tmp_path, with_row_id(image=stored))))
    assert found["image"] == [list(value) for value in stored.to_pylist()]


def test_images_of_one_size_come_as_a_tensor_where_the_unischema_leaves_the_size_open(tmp_path):
    schema = unischema(image=PNG_OF_ANY_SIZE)
    rows = open_folder(write(tmp_path, with_row_id(image=encoded(schema, "image", images()))), unischema=schema)
    assert next(iter(Feed(rows, batch_size_per_rank=4)))["image"].shape == (4, 4, 3, 3)
    assert fed(rows)["image"] == [[[[row, 100, 200]] * 3] * 4 for row in EACH]


@pytest.mark.parametrize(
    "sizes",
    [[(4, 3)] * 19 + [(5, 3)], [(4, 3)] * FIRST_FILE + [(5, 3)] * 7, [(4, 3)] * FIRST_FILE + [(3, 4)] * 7],
    ids=["one of another size", "another size in the second file", "turned by a quarter in the second file"],
)
def test_images_of_several_shapes_are_refused(tmp_path, sizes):
    schema = unischema(image=PNG_OF_ANY_SIZE)
    drawn = [np.zeros((*size, 3), np.uint8) for size in sizes]
    with pytest.raises(SnapshotDamaged, match=r"part-1.parquet, row group [01], column 'image'"):
        fed(open_folder(write(tmp_path, with_row_id(image=encoded(schema, "image", drawn))), unischema=schema))


@pytest.mark.parametrize(
    ("promised", "stored"),
    [
        ((np.uint8, (5, 3, 3), CompressedImageCodec("png")), PNG),
        ((np.uint8, (3, 4, 3), CompressedImageCodec("png")), PNG),  # as many bytes
    ],
    ids=["larger", "turned by a quarter"],
)
def test_images_of_another_shape_than_the_unischema_says_are_refused(tmp_path, promised, stored):
    url = write(tmp_path, with_row_id(image=encoded(unischema(image=stored), "image", images())))
    with pytest.raises(SnapshotDamaged, match=r"part-[01].parquet, row group \d, column 'image'.*\(4, 3, 3\)"):
        fed(open_folder(url, unischema=unischema(image=promised)))


@pytest.mark.parametrize(
    "promised",
    [(np.int32, (2,), NdarrayCodec()), (np.float64, (1,), NdarrayCodec()), (np.float64, (2,), NdarrayCodec())],
    ids=["another type", "as many bytes", "another width"],
)
def test_arrays_of_another_type_than_the_unischema_says_are_refused(tmp_path, promised):
    stored = encoded(unischema(x=(np.float32, (2,), NdarrayCodec())), "x", [np.ones(2, np.float32)] * NUM_ROWS)
    url = write(tmp_path, with_row_id(x=stored))
    with pytest.raises(SnapshotDamaged, match=r"part-[01].parquet, row group \d, column 'x'.*float32"):
        fed(open_folder(url, unischema=unischema(x=promised)))


@pytest.mark.parametrize("junk", [b"this is no image", b"\x89PNG\r\n\x1a\n cut short", b""])
def test_bytes_that_are_no_image_are_named(tmp_path, junk):
    schema = unischema(image=PNG)
    stored = encoded(schema, "image", images()).to_pylist()
    stored[19] = junk
    rows = open_folder(write(tmp_path, with_row_id(image=pa.array(stored, pa.binary()))), unischema=schema)
    with pytest.raises(SnapshotDamaged, match=rf"{tmp_path}/part-1.parquet, row group 1, column 'image': .*decode"):
        fed(rows)


def test_an_image_that_is_null_is_refused_or_filled_with_encoded_bytes(tmp_path):
    schema = unischema(image=PNG)
    stored = encoded(schema, "image", images()).to_pylist()
    black = bytes(schema.image.codec.encode(schema.image, np.zeros((4, 3, 3), np.uint8)))
    stored[6] = None
    url = write(tmp_path, with_row_id(image=pa.array(stored, pa.binary())))
    with pytest.raises(SnapshotDamaged, match=r"part-0.parquet, row group 1, column 'image': 1 nulls, .* row 1"):
        fed(open_folder(url, unischema=schema))
    found = fed(open_folder(url, unischema=schema, fill={"image": black}))["image"]
    assert found[6] == [[[0, 0, 0]] * 3] * 4
    assert found[7] == [[[7, 100, 200]] * 3] * 4


class Poison:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["_common_metadata", "_metadata", "part-0.parquet"])
def test_a_pickle_in_the_folder_is_not_opened_and_its_row_group_counts_are_not_believed(tmp_path, name):
    touched, folder = tmp_path / "touched", tmp_path / "rows"
    poison = pickle.dumps(Poison(touched))
    believed = {"part-0.parquet": 1, "part-1.parquet": 7}
    table = with_row_id().replace_schema_metadata(
        {UNISCHEMA_KEY: poison, ROW_GROUPS_PER_FILE_KEY: json.dumps(believed).encode()}
    )
    url = write(folder, table if name.startswith("part") else with_row_id())
    if not name.startswith("part"):
        pq.write_metadata(table.schema, folder / name)

    assert fed(open_folder(url)) == {"row_id": list(EACH)}
    assert not touched.exists()

    pickle.loads(pq.read_schema(folder / name).metadata[UNISCHEMA_KEY])  # it would have shown
    assert touched.exists()


def test_an_array_of_pickled_objects_is_not_opened(tmp_path):
    import io

    touched, written = tmp_path / "touched", io.BytesIO()
    np.save(written, np.array([Poison(touched)], dtype=object), allow_pickle=True)
    url = write(tmp_path / "rows", with_row_id(x=pa.array([written.getvalue()] * NUM_ROWS)))
    with pytest.raises(SnapshotDamaged, match=r"row group \d, column 'x': .*pickle"):
        fed(open_folder(url, unischema=unischema(x=(np.float32, (1,), NdarrayCodec()))))
    assert not touched.exists()
