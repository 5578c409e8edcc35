"""A batch of columns as torch tensors, and how Arrow tables become one without a row loop.

Legend: B rows of a batch, L length of a list column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """Lists of unequal length: row i holds values[offsets[i]:offsets[i + 1]]; offsets has shape (B + 1,)."""

    values: Tensor
    offsets: Tensor

    def row_of_value(self) -> Tensor:
        """For each value the row that it belongs to; shape of values."""
        rows = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return torch.repeat_interleave(rows, self.offsets.diff())

    def to(self, device: torch.device) -> Ragged:
        return Ragged(self.values.to(device), self.offsets.to(device))


Column = Tensor | Ragged


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A rank's rows of one step.

    `positions`, shape (B,), says where they stand in the global batch of `global_rows` rows: what is drawn at random
    for a row is drawn by its position, so that it does not depend on the number of ranks.
    """

    columns: Mapping[str, Column]
    positions: Tensor
    global_rows: int
    step: int

    @property
    def num_rows(self) -> int:
        return len(self.positions)

    def to(self, device: torch.device) -> Batch:
        """The same rows on another device; on the one they lie on, without a copy."""
        columns = {name: column.to(device) for name, column in self.columns.items()}
        return replace(self, columns=columns, positions=self.positions.to(device))

    def __getitem__(self, name: str) -> Tensor:
        """A column of scalars, shape (B,), or of lists of one length, shape (B, L)."""
        column = self.columns[name]
        assert isinstance(column, Tensor), f"{name} holds lists of unequal length: use ragged()"
        return column

    def ragged(self, name: str) -> Ragged:
        column = self.columns[name]
        assert isinstance(column, Ragged), f"{name} does not hold lists of unequal length"
        return column


def to_columns(table: pa.Table, list_lengths: Mapping[str, int]) -> dict[str, Column]:
    """Arrow columns as tensors, without a copy where Arrow holds them in one piece and without nulls.

    A list column named in `list_lengths` becomes shape (B, L), any other list column a Ragged.
    Raises ValueError for a column with nulls, and for lists that are not of the promised length.
    """
    columns: dict[str, Column] = {}
    for name in table.column_names:
        array = pa.concat_arrays(table.column(name).chunks) if table.num_rows else pa.array([], table.field(name).type)
        if array.null_count:
            raise ValueError(f"column {name!r} holds {array.null_count} nulls; the training layout has none")
        if not pa.types.is_list(array.type):
            columns[name] = _tensor(array)
            continue
        values, offsets = _tensor(array.flatten()), _tensor(array.offsets).to(torch.int64)
        offsets = offsets - offsets[0]
        if (length := list_lengths.get(name)) is None:
            columns[name] = Ragged(values, offsets)
        elif len(values) == length * len(array) and bool((offsets.diff() == length).all()):
            columns[name] = values.view(-1, length)
        else:
            raise ValueError(f"column {name!r} holds lists that are not {length} long, as the manifest promises")
    return columns


def joined(pieces: Sequence[Mapping[str, Column]]) -> dict[str, Column]:
    """The rows of all pieces, one piece after the other."""
    if len(pieces) == 1:
        return dict(pieces[0])
    return {name: _joined([piece[name] for piece in pieces]) for name in pieces[0]}


def sliced(columns: Mapping[str, Column], start: int, stop: int) -> dict[str, Column]:
    """Rows `start` to `stop`, without a copy."""
    return {name: _sliced(column, start, stop) for name, column in columns.items()}


def num_rows(columns: Mapping[str, Column]) -> int:
    first = next(iter(columns.values()))
    return len(first) if isinstance(first, Tensor) else len(first.offsets) - 1


def _joined(columns: Sequence[Column]) -> Column:
    tensors = [column for column in columns if isinstance(column, Tensor)]
    if tensors:
        return torch.cat(tensors)
    raggeds = [column for column in columns if isinstance(column, Ragged)]
    sizes = torch.cat([column.offsets.diff() for column in raggeds])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    return Ragged(torch.cat([column.values for column in raggeds]), offsets)


def _sliced(column: Column, start: int, stop: int) -> Column:
    if isinstance(column, Tensor):
        return column[start:stop]
    offsets = column.offsets[start : stop + 1]
    return Ragged(column.values[int(offsets[0]) : int(offsets[-1])], offsets - offsets[0])


def _tensor(array: pa.Array) -> Tensor:
    numbers = array.to_numpy(zero_copy_only=False)
    # Arrow's memory is read-only; torch would warn, and nothing here writes into a batch.
    return torch.from_numpy(numbers if numbers.flags.writeable else np.array(numbers))
