"""Arrow columns to tensors, rows of unequal length, and a batch's way to another memory."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from training.batch import Batch, Ragged, to_columns

LISTS = pa.list_(pa.int32())
UNEQUAL = [[], [7], [8, 9], [], [1, 2, 3]]


def table() -> pa.Table:
    return pa.table(
        {
            "id": pa.array([1, 2, 3], pa.int64()),
            "x": pa.array([0.5, 1.5, 2.5], pa.float32()),
            "yes": pa.array([True, False, True]),
            "pair": pa.array([[1, 2], [3, 4], [5, 6]], LISTS),
            "some": pa.array([[], [7], [8, 9]], LISTS),
            "name": pa.array(["é", "", "abc"]),
        }
    )


def unequal(kind: pa.DataType | None = None) -> Ragged:
    return Ragged.of(pa.array(UNEQUAL, pa.list_(kind or pa.int32())))


def rows_of(ragged: Ragged) -> list[list]:
    values, offsets = ragged.values.tolist(), ragged.offsets.tolist()
    return [values[offsets[row] : offsets[row + 1]] for row in range(ragged.num_rows)]


def test_columns_keep_their_type_and_their_values():
    columns = to_columns(table(), {"pair": 2})
    assert columns["id"].dtype == torch.int64
    assert columns["id"].tolist() == [1, 2, 3]
    assert columns["x"].dtype == torch.float32
    assert columns["x"].tolist() == [0.5, 1.5, 2.5]
    assert columns["yes"].dtype == torch.bool
    assert columns["yes"].tolist() == [True, False, True]
    assert columns["pair"].dtype == torch.int32
    assert columns["pair"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert columns["some"].values.dtype == torch.int32
    assert columns["some"].values.tolist() == [7, 8, 9]
    assert columns["some"].offsets.tolist() == [0, 0, 1, 3]
    assert columns["name"].texts() == ["é", "", "abc"]


def test_columns_come_in_the_order_of_the_table():
    assert list(to_columns(table(), {"pair": 2})) == ["id", "x", "yes", "pair", "some", "name"]


def test_a_slice_of_a_table_and_a_table_in_chunks_give_their_own_rows_only():
    chunked = pa.concat_tables([table().slice(2), table().slice(0, 2)])
    columns = to_columns(chunked, {"pair": 2})
    assert columns["id"].tolist() == [3, 1, 2]
    assert columns["yes"].tolist() == [True, True, False]
    assert columns["pair"].tolist() == [[5, 6], [1, 2], [3, 4]]
    assert columns["some"].values.tolist() == [8, 9, 7]
    assert columns["some"].offsets.tolist() == [0, 2, 2, 3]
    assert columns["name"].texts() == ["abc", "é", ""]


def test_no_rows_are_columns_without_rows():
    columns = to_columns(table().slice(0, 0), {"pair": 2})
    assert columns["id"].shape == (0,)
    assert columns["id"].dtype == torch.int64
    assert columns["pair"].shape == (0, 2)
    assert columns["some"].num_rows == 0
    assert columns["name"].texts() == []


def test_no_chunks_are_columns_without_rows():
    columns = to_columns(pa.schema([("id", pa.int64()), ("name", pa.string())]).empty_table(), {})
    assert columns["id"].shape == (0,)
    assert columns["name"].texts() == []


def test_what_a_column_must_not_hold_is_refused_by_name_with_the_first_row():
    with pytest.raises(ValueError, match=r"column 'x': 2 nulls, the first in row 1,"):
        to_columns(pa.table({"x": pa.array([1.0, None, None])}), {})
    with pytest.raises(ValueError, match=r"column 'some': row 2 holds a list of 2 values, .* 1 long"):
        to_columns(pa.table({"some": pa.array([[1], [7], [8, 9]], LISTS)}), {"some": 1})
    with pytest.raises(ValueError, match=r"column 'some': 1 nulls within lists"):
        to_columns(pa.table({"some": pa.array([[1], [None, 7]], LISTS)}), {})
    with pytest.raises(ValueError, match=r"column 'pair': 1 nulls within lists"):
        to_columns(pa.table({"pair": pa.array([[1, 2], [None, 7]], LISTS)}), {"pair": 2})


def test_a_tensor_may_be_written_to_and_the_table_stays_as_it_was():
    original = table()
    columns = to_columns(original, {"pair": 2})
    columns["id"][0] = 100
    columns["pair"][0, 0] = 100
    columns["some"].values[0] = 100
    assert original["id"].to_pylist() == [1, 2, 3]
    assert original["pair"].to_pylist() == [[1, 2], [3, 4], [5, 6]]
    assert original["some"].to_pylist() == [[], [7], [8, 9]]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (pa.int8(), torch.int8),
        (pa.uint16(), torch.uint16),
        (pa.int64(), torch.int64),
        (pa.float16(), torch.float16),
        (pa.float32(), torch.float32),
        (pa.float64(), torch.float64),
    ],
    ids=str,
)
def test_lists_of_any_numbers_keep_their_type(kind, dtype):
    ragged = unequal(kind)
    assert ragged.values.dtype == dtype
    assert ragged.offsets.dtype == torch.int64
    assert rows_of(ragged) == UNEQUAL


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 5, UNEQUAL), (1, 3, [[7], [8, 9], []]), (2, 1, [[8, 9]]), (4, 1, [[1, 2, 3]]), (3, 1, [[]]), (5, 0, [])],
)
def test_a_slice_of_an_arrow_array_of_lists_gives_its_own_rows(start, length, expected):
    ragged = Ragged.of(pa.array(UNEQUAL, LISTS).slice(start, length))
    assert rows_of(ragged) == expected
    assert ragged.offsets[0] == 0
    assert len(ragged.values) == sum(map(len, expected))


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 5, ["", "日本", "a", "", "né"]), (1, 2, ["日本", "a"]), (3, 2, ["", "né"]), (3, 1, [""]), (5, 0, [])],
)
def test_a_slice_of_an_arrow_array_of_strings_gives_its_own_texts(start, length, expected):
    ragged = Ragged.of(pa.array(["", "日本", "a", "", "né"]).slice(start, length))
    assert ragged.texts() == expected
    assert ragged.offsets[0] == 0
    assert len(ragged.values) == len("".join(expected).encode())


def test_strings_are_utf_8_and_bytes_are_bytes():
    text = Ragged.of(pa.array(["né", "", "a"]))
    assert text.values.dtype == torch.uint8
    assert rows_of(text) == [[110, 195, 169], [], [97]]
    raw = Ragged.of(pa.array([b"\x00\xff", b"", b"\x01"], pa.binary()))
    assert rows_of(raw) == [[0, 255], [], [1]]


def test_only_empty_strings_have_no_values():
    ragged = Ragged.of(pa.array(["", ""]))
    assert ragged.values.shape == (0,)
    assert ragged.texts() == ["", ""]


def test_splitting_gives_pieces_of_that_many_rows_that_share_the_values():
    ragged = unequal()
    pieces = ragged.split(2)
    assert [rows_of(piece) for piece in pieces] == [[[], [7]], [[8, 9], []], [[1, 2, 3]]]
    assert [piece.offsets[0].item() for piece in pieces] == [0, 0, 0]
    ragged.values[1] = 80
    assert rows_of(pieces[1]) == [[80, 9], []]


def test_more_rows_a_piece_than_there_are_give_one_piece():
    assert [rows_of(piece) for piece in unequal().split(100)] == [UNEQUAL]


def test_padding_keeps_the_first_values_and_fills_up_on_the_right():
    assert unequal().padded(2).tolist() == [[0, 0], [7, 0], [8, 9], [0, 0], [1, 2]]
    assert unequal().padded(4, padding=-1).tolist() == [
        [-1, -1, -1, -1],
        [7, -1, -1, -1],
        [8, 9, -1, -1],
        [-1, -1, -1, -1],
        [1, 2, 3, -1],
    ]


def test_padding_keeps_the_last_values_and_fills_up_on_the_left():
    assert unequal().padded(2, keep="last").tolist() == [[0, 0], [0, 7], [8, 9], [0, 0], [2, 3]]
    assert unequal().padded(4, keep="last", padding=-1).tolist() == [
        [-1, -1, -1, -1],
        [-1, -1, -1, 7],
        [-1, -1, 8, 9],
        [-1, -1, -1, -1],
        [-1, 1, 2, 3],
    ]


@pytest.mark.parametrize("keep", ["first", "last"])
def test_padding_no_rows_and_rows_without_values(keep):
    assert unequal().split(1)[0].padded(2, keep=keep).tolist() == [[0, 0]]
    assert Ragged.of(pa.array([], LISTS)).padded(3, keep=keep).shape == (0, 3)
    assert unequal().padded(0, keep=keep).shape == (5, 0)


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.int64(), pa.float16()], ids=str
)
def test_a_padded_matrix_is_of_the_type_of_the_values(kind):
    matrix = unequal(kind).padded(2, keep="last")
    assert matrix.dtype == unequal(kind).values.dtype
    assert matrix.tolist() == [[0, 0], [0, 7], [8, 9], [0, 0], [2, 3]]


def test_each_value_knows_its_row():
    assert unequal().row_of_value().tolist() == [1, 2, 2, 4, 4, 4]
    assert Ragged.of(pa.array([[], []], LISTS)).row_of_value().tolist() == []


def batch() -> Batch:
    columns = to_columns(table(), {"pair": 2})
    return Batch(columns=columns, positions=torch.arange(4, 7), global_rows=9, step=2)


def test_a_column_is_asked_for_as_what_it_is():
    assert batch().num_rows == 3
    assert batch()["id"].tolist() == [1, 2, 3]
    assert batch().ragged("some").values.tolist() == [7, 8, 9]
    with pytest.raises(AssertionError, match=r"some holds lists of unequal length: use ragged"):
        batch()["some"]
    with pytest.raises(AssertionError, match=r"id does not hold lists of unequal length"):
        batch().ragged("id")


def test_a_batch_that_is_there_already_is_not_copied():
    before = batch()
    after = before.to(torch.device("cpu"))
    assert after["id"].data_ptr() == before["id"].data_ptr()
    assert after.ragged("some").values.data_ptr() == before.ragged("some").values.data_ptr()
    assert after.positions.data_ptr() == before.positions.data_ptr()


def test_every_tensor_of_a_batch_goes_to_the_device():
    moved = batch().to(torch.device("meta"))
    tensors = [moved["id"], moved["pair"], moved.ragged("some").values, moved.ragged("some").offsets, moved.positions]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.global_rows, moved.step, list(moved.columns)) == (9, 2, list(batch().columns))


def test_every_tensor_of_a_batch_is_pinned(monkeypatch):
    # Only a machine with an accelerator has page-locked memory, so what is asked for it is noted.
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.tolist()) or tensor.clone())
    asked = Batch(
        columns={"id": torch.tensor([1, 2]), "some": Ragged.of(pa.array([[7], [8, 9]], LISTS))},
        positions=torch.tensor([4, 5]),
        global_rows=9,
        step=2,
    )
    after = asked.pin_memory()
    assert sorted(pinned) == [[0, 1, 3], [1, 2], [4, 5], [7, 8, 9]]
    assert after["id"].data_ptr() != asked["id"].data_ptr()
    assert after["id"].tolist() == [1, 2]
    assert rows_of(after.ragged("some")) == [[7], [8, 9]]
    assert (after.positions.tolist(), after.global_rows, after.step) == ([4, 5], 9, 2)
