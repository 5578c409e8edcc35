"""The rows that every loader is given: the first N of a Parquet folder's, as tables, as packed rows and as sums.

A row-based loader stores a row as one record: the columns of one dtype side by side, in the order of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

Batch = dict[str, torch.Tensor]
"""By column: a value a row. Or by dtype, as packed rows are: all columns of that dtype, one row of them a row."""


@dataclass(frozen=True)
class Rows:
    """The first `limit` rows of the Parquet files of `data`, in the order of their names; all of them without limit."""

    data: Path
    limit: int | None = None

    @cached_property
    def files(self) -> list[Path]:
        files = sorted(self.data.glob("*.parquet"))
        if not files:
            raise FileNotFoundError(f"no .parquet file in {self.data}")
        return files

    @cached_property
    def schema(self) -> pa.Schema:
        return pq.read_schema(self.files[0])

    @cached_property
    def count(self) -> int:
        rows = sum(pq.read_metadata(file).num_rows for file in self.files)
        if self.limit is not None and self.limit > rows:
            raise ValueError(f"{self.data} holds {rows} rows, fewer than --rows {self.limit}")
        return self.limit or rows

    @property
    def is_all(self) -> bool:
        return self.limit is None or self.count == Rows(self.data).count

    @cached_property
    def columns_by_dtype(self) -> dict[str, list[str]]:
        """The columns that a packed row holds side by side."""
        columns: dict[str, list[str]] = {}
        for field in self.schema:
            columns.setdefault(str(np.dtype(field.type.to_pandas_dtype())), []).append(field.name)
        return columns

    @cached_property
    def record(self) -> np.dtype:
        """One packed row; aligned, so that a batch of them can be seen as each of its dtypes."""
        fields = [(dtype, dtype, (len(columns),)) for dtype, columns in self.columns_by_dtype.items()]
        return np.dtype(fields, align=True)

    def tables(self) -> Iterator[pa.Table]:
        """The rows in file order, a table a row group."""
        left = self.count
        for path in self.files:
            with pq.ParquetFile(path) as file:
                for row_group in range(file.num_row_groups):
                    if not left:
                        return
                    table = file.read_row_group(row_group).slice(0, left)
                    left -= table.num_rows
                    yield table

    def records(self) -> Iterator[np.ndarray]:
        """The rows in file order as packed rows, a row group at a time."""
        for table in self.tables():
            packed = np.empty(table.num_rows, self.record)
            for dtype, columns in self.columns_by_dtype.items():
                packed[dtype] = np.stack([table[column].to_numpy() for column in columns], axis=1)
            yield packed

    def digest(self) -> str:
        """Changes with the files and the limit: formats of other rows are made anew."""
        files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]
        return hashlib.sha256(json.dumps([files, self.count]).encode()).hexdigest()

    def sums(self) -> Sums:
        sums = Sums(self)
        for table in self.tables():
            sums.add({name: torch.from_numpy(table[name].to_numpy().copy()) for name in table.column_names})
        return sums


class Sums:
    """Each column's sum of bit patterns, which no order changes and no lost, repeated or altered row leaves alone."""

    def __init__(self, rows: Rows):
        self.by_column = dict.fromkeys(rows.schema.names, 0)
        self._rows = rows

    def add(self, batch: Batch) -> None:
        for name, values in columns_of(batch, self._rows).items():
            stored = getattr(torch, str(np.dtype(self._rows.schema.field(name).type.to_pandas_dtype())))
            bits = values.to(stored).contiguous().view({4: torch.int32, 8: torch.int64}[stored.itemsize])
            self.by_column[name] += int(bits.sum(dtype=torch.int64))


def columns_of(batch: Batch, rows: Rows) -> Batch:
    """By column: a value a row; those of packed rows are views."""
    columns = {}
    for name, values in batch.items():
        if values.dim() == 1:
            columns[name] = values
        else:
            columns |= dict(zip(rows.columns_by_dtype[name], values.unbind(1), strict=True))
    return columns


def joined(packed_rows: list[bytes]) -> torch.Tensor:
    """A batch (rows, bytes of a row) of rows that came as bytes: one copy, whatever the number of columns.

    The fastest way that we know to make a batch of rows. It stays one tensor on its way between processes.
    """
    return torch.frombuffer(bytearray().join(packed_rows), dtype=torch.uint8).view(len(packed_rows), -1)


def split(packed: torch.Tensor, record: np.dtype) -> Batch:
    """By dtype: all columns of that dtype; views of the batch that `joined` made."""
    batch = {}
    for dtype in record.names or ():
        begin = record.fields[dtype][1]  # type: ignore[index]
        end = begin + record[dtype].itemsize
        batch[dtype] = packed[:, begin:end].view(getattr(torch, dtype))
    return batch
