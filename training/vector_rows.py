"""Rows of a file with vectors of items, some at a time, each of them checked.

Legend: R rows read at once, W numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.spec import AbstractFileSystem
from numpy.typing import NDArray

from schemas.errors import UserError

ITEM_ID, VECTOR = "item_id", "vector"
_ROWS_AT_ONCE = 1 << 13


@dataclass(frozen=True)
class VectorRows:
    """Rows of a file, the first of them its row `first`."""

    rows: pa.RecordBatch
    path: str
    first: int

    @cached_property
    def ids(self) -> pa.Array:
        return self.rows[ITEM_ID].cast(pa.large_string())

    def vectors(self, width: int | None) -> NDArray[np.float32]:
        """Shape (R, W); without `width` the first row says it."""
        lists = self.rows[VECTOR]
        length_R = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
        width = int(length_R[0]) if width is None else width
        if len(unlike := np.flatnonzero((length_R != width) | (length_R < 1))):
            row, length = int(unlike[0]), int(length_R[unlike[0]])
            has = f"has a vector of {length:,} numbers where others have {width:,}" if length >= 0 else "has no vector"
            raise self.wrong(row, has)
        values = lists.flatten()
        if values.null_count:
            hole = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
            raise self.wrong(hole // width, "has a null in its vector")
        with np.errstate(over="ignore"):  # becomes infinite, and is named so
            vectors_RW: NDArray[np.float32] = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        vectors_RW = vectors_RW.reshape(-1, width)
        if len(unlike := np.flatnonzero(~np.isfinite(vectors_RW).all(axis=1))):
            raise self.wrong(int(unlike[0]), "has a number that is not finite as float32 in its vector")
        return vectors_RW

    def wrong(self, row: int, has: str) -> UserError:
        item = "" if self.ids[row].as_py() is None else f" (item_id {self.ids[row].as_py()!r})"
        return UserError(f"--item-vectors: {self.path}: row {self.first + row:,}{item} {has}: mend it or leave it out.")


def rows_of(fs: AbstractFileSystem, path: str, columns: list[str]) -> Iterator[VectorRows]:
    """The rows of a file in order, thousands at a time; UserError where it cannot be read."""
    first = 0
    try:
        with fs.open(path, "rb") as source:
            for rows in pq.ParquetFile(source).iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
                if rows.num_rows:
                    yield VectorRows(rows, path, first)
                first += rows.num_rows
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"--item-vectors: {path} cannot be read after row {first:,}: {error}") from None


def check_columns(fs: AbstractFileSystem, path: str) -> None:
    """UserError where a file is no Parquet, or lacks a column or has it in another type."""
    try:
        with fs.open(path, "rb") as source:
            schema = pq.read_schema(source)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"--item-vectors: {path} cannot be read as Parquet: {error}") from None
    for name in (ITEM_ID, VECTOR):
        if schema.get_field_index(name) < 0:
            raise UserError(f"--item-vectors: {path} has no column {name!r}; it has {', '.join(schema.names)}.")
    id_type, vector_type = schema.field(ITEM_ID).type, schema.field(VECTOR).type
    if not (pa.types.is_string(id_type) or pa.types.is_large_string(id_type) or pa.types.is_integer(id_type)):
        raise UserError(f"--item-vectors: {path}: {ITEM_ID} is {id_type}, and text as in the log is wanted.")
    if not _is_list(vector_type) or not _is_number(vector_type.value_type):
        raise UserError(f"--item-vectors: {path}: {VECTOR} is {vector_type}, and a list of floats is wanted.")


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
