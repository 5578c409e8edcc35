"""Arrow columns to tensors and back to rows."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from training.batch import Ragged, joined, num_rows, sliced, to_columns

LISTS = pa.list_(pa.int32())


def table() -> pa.Table:
    return pa.table(
        {
            "id": pa.array([1, 2, 3], pa.int64()),
            "x": pa.array([0.5, 1.5, 2.5], pa.float32()),
            "yes": pa.array([True, False, True]),
            "pair": pa.array([[1, 2], [3, 4], [5, 6]], LISTS),
            "some": pa.array([[], [7], [8, 9]], LISTS),
        }
    )


def test_columns_keep_their_type_and_their_values():
    columns = to_columns(table(), {"pair": 2})
    assert columns["id"].dtype == torch.int64
    assert columns["id"].tolist() == [1, 2, 3]
    assert columns["x"].dtype == torch.float32
    assert columns["yes"].tolist() == [True, False, True]
    assert columns["pair"].dtype == torch.int32
    assert columns["pair"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert columns["some"].values.tolist() == [7, 8, 9]
    assert columns["some"].offsets.tolist() == [0, 0, 1, 3]
    assert columns["some"].row_of_value().tolist() == [1, 2, 2]


def test_a_slice_of_a_table_and_a_table_in_chunks_give_their_own_rows_only():
    chunked = pa.concat_tables([table().slice(2), table().slice(0, 2)])
    columns = to_columns(chunked, {"pair": 2})
    assert columns["id"].tolist() == [3, 1, 2]
    assert columns["pair"].tolist() == [[5, 6], [1, 2], [3, 4]]
    assert columns["some"].values.tolist() == [8, 9, 7]
    assert columns["some"].offsets.tolist() == [0, 2, 2, 3]


def test_slicing_and_joining_give_the_rows_back():
    columns = to_columns(table(), {"pair": 2})
    pieces = [sliced(columns, 0, 1), sliced(columns, 1, 1), sliced(columns, 1, 3)]
    assert [num_rows(piece) for piece in pieces] == [1, 0, 2]
    whole = joined(pieces)
    assert whole["pair"].tolist() == columns["pair"].tolist()
    assert isinstance(whole["some"], Ragged)
    assert whole["some"].values.tolist() == [7, 8, 9]
    assert whole["some"].offsets.tolist() == [0, 0, 1, 3]


def test_no_rows_are_columns_without_rows():
    columns = to_columns(table().slice(0, 0), {"pair": 2})
    assert num_rows(columns) == 0
    assert columns["pair"].shape == (0, 2)


def test_nulls_and_lists_of_another_length_than_promised_are_refused_by_name():
    with pytest.raises(ValueError, match="'x' holds 1 nulls"):
        to_columns(pa.table({"x": pa.array([1.0, None])}), {})
    with pytest.raises(ValueError, match="'some' holds lists that are not 1 long"):
        to_columns(table(), {"some": 1})
