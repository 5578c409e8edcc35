"""A batch of columns as torch tensors.

Legend: B rows of a batch, L length of a list column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from training.decoding import ColumnRefused, decoder


@dataclass(frozen=True)
class Ragged:
    """Lists, strings (as UTF-8) or bytes: row i holds values[offsets[i]:offsets[i + 1]]; offsets has shape (B + 1,)."""

    values: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, array: pa.Array) -> Ragged:
        """An Arrow array of lists of numbers, strings or bytes, without a row loop."""
        if isinstance(array, pa.ListArray):
            values, offsets = array.flatten().to_numpy(), array.offsets.to_numpy()
        else:
            _, offset_bytes, value_bytes = array.buffers()
            offsets = np.frombuffer(offset_bytes or b"\0" * 4, np.int32)[array.offset : array.offset + len(array) + 1]
            every = np.frombuffer(value_bytes, np.uint8) if value_bytes else np.empty(0, np.uint8)
            values = every[offsets[0] : offsets[-1]]
        return cls(writeable(values), torch.from_numpy(offsets.astype(np.int64) - int(offsets[0])))

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1

    def split(self, rows: int) -> list[Ragged]:
        """Pieces of `rows` rows each, without a copy of the values."""
        return [self._rows(start, min(start + rows, self.num_rows)) for start in range(0, self.num_rows, rows)]

    def _rows(self, start: int, stop: int) -> Ragged:
        offsets = self.offsets[start : stop + 1]
        return Ragged(self.values[int(offsets[0]) : int(offsets[-1])], offsets - offsets[0])

    def padded(self, length: int, *, keep: Literal["first", "last"] = "first", padding: float = 0) -> Tensor:
        """Shape (B, length): the first values of each row, padded on the right, or the last, padded on the left."""
        sizes = self.offsets.diff()
        kept = sizes.clamp(max=length)
        column = torch.arange(length, device=self.offsets.device)
        if keep == "first":
            begin, is_value = self.offsets[:-1], column < kept.unsqueeze(1)
        else:
            begin, is_value = self.offsets[1:] - length, column >= (length - kept).unsqueeze(1)
        source = (begin.unsqueeze(1) + column)[is_value]
        out = self.values.new_full((self.num_rows, length), padding)
        bits = _SIGNED.get(out.dtype, out.dtype)
        out.view(bits)[is_value] = self.values.view(bits)[source]
        return out

    def texts(self) -> list[str]:
        """The rows of a string column."""
        every, ends = self.values.cpu().numpy().tobytes(), self.offsets.tolist()
        return [every[start:stop].decode() for start, stop in pairwise(ends)]

    def row_of_value(self) -> Tensor:
        """For each value the row that it belongs to; shape of values."""
        rows = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return torch.repeat_interleave(rows, self.offsets.diff())

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Ragged:
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Ragged:
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Ragged:
        return Ragged(change(self.values), change(self.offsets))


_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
"""Torch cannot assign to the types on the left; seen as those on the right, the bits stay the same."""

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

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Batch:
        """The same rows on another device; on the one they lie on, without a copy."""
        columns = {name: column.to(device, non_blocking=non_blocking) for name, column in self.columns.items()}
        return replace(self, columns=columns, positions=self.positions.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same rows in page-locked memory; DataLoader calls it when asked for `pin_memory=True`."""
        columns = {name: column.pin_memory() for name, column in self.columns.items()}
        return replace(self, columns=columns, positions=self.positions.pin_memory())

    def __getitem__(self, name: str) -> Tensor:
        """A column of scalars, shape (B,), or of lists of one length, shape (B, L)."""
        column = self.columns[name]
        assert isinstance(column, Tensor), f"{name} holds lists of unequal length: use ragged()"
        return column

    def ragged(self, name: str) -> Ragged:
        column = self.columns[name]
        assert isinstance(column, Ragged), f"{name} does not hold lists of unequal length"
        return column


def num_rows(columns: Mapping[str, Column]) -> int:
    first = next(iter(columns.values()))
    return len(first) if isinstance(first, Tensor) else first.num_rows


def to_columns(table: pa.Table, list_lengths: Mapping[str, int]) -> dict[str, Column]:
    """A small table's columns as tensors of the types that are stored.

    A list column named in `list_lengths` becomes shape (B, L), any other a Ragged, as strings do.
    Raises ValueError for a column with nulls, and for lists that are not of the promised length.
    """
    columns: dict[str, Column] = {}
    for field in table.schema:
        chunks = table.column(field.name).chunks or [pa.array([], field.type)]
        try:
            array = decoder(field, length=list_lengths.get(field.name))(pa.concat_arrays(chunks))
        except ColumnRefused as refused:
            raise ValueError(f"column {field.name!r}: {refused}") from None
        columns[field.name] = writeable(array) if isinstance(array, np.ndarray) else Ragged.of(array)
    return columns


def writeable(array: np.ndarray) -> Tensor:
    """The array as a tensor; copied where it is read-only, as Arrow's memory is, for torch would warn."""
    return torch.from_numpy(array if array.flags.writeable else np.array(array))
