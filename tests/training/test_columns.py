"""Every kind of column, from a Parquet file through a shuffled feed to the row that it belongs to."""

from __future__ import annotations

import datetime
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

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
