"""Reading one row group: from a file or the cache, checked, filtered and decoded; every failure names its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from schemas.errors import SnapshotDamaged
from training.decoding import ColumnRefused, Decoded, Decoder, same_type
from training.gather import Columns
from training.petastorm_on_arrow import LocalFileSystem
from training.row_group_cache import RowGroupCache

Verify = Literal["first", "always", "never"]
"""When to compare the pages' checksums, where the file has them: when a row group is read for the first time, always
(a third slower), or never."""


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """A row group: where it lies, its rows (those that the filter lets through) and about how many bytes they take."""

    path: str
    index: int
    num_rows: int
    decoded_bytes: int
    hive: Mapping[str, int | str] = field(default_factory=dict)
    """The values that its folders give to its rows."""
    version: str = ""
    """Changes when the file changes: for the cache."""

    def __str__(self) -> str:
        return f"{self.path}, row group {self.index}"


@dataclass(frozen=True)
class RowGroupColumns:
    """The decoded columns of a row group: those whose rows have one shape, and those whose rows differ in length."""

    num_rows: int
    fixed: Columns
    ragged: dict[str, pa.Array]
    names: tuple[str, ...]
    """All of them, in the order asked for."""


@dataclass(frozen=True, kw_only=True)
class ParquetRows:
    """Row groups of one schema, and what of them is read and how."""

    name: str
    open_filesystem: Callable[[], Any]
    footer: Callable[[str], pq.FileMetaData]
    """By path."""
    row_groups: tuple[RowGroup, ...]
    schema: pa.Schema
    """The columns that come, in the order asked for; those of hive folders too."""
    decoders: Mapping[str, Decoder]
    file_columns: tuple[str, ...]
    """The columns to be read from a file: without those of hive folders, with those that only the filter needs."""
    filter: pyarrow.dataset.Expression | None = None
    filter_columns: tuple[str, ...] = ()
    """Those of `file_columns` that the filter asks about."""
    cache: RowGroupCache | None = None
    verify: Verify = "first"
    _verified: set[int] = field(default_factory=set)

    @property
    def num_rows(self) -> int:
        return sum(row_group.num_rows for row_group in self.row_groups)

    def read(self, number: int) -> RowGroupColumns:
        """The decoded columns of a row group; safe to call from several threads.

        Raises SnapshotDamaged naming file, row group and column where the file is gone, cut short or changed, has
        other columns than the first file, or holds a null or a list that was not promised.
        """
        row_group = self.row_groups[number]
        table = self._table(number, row_group)
        if not self.schema.equals(table.schema):  # one comparison where all is as in the first file
            self._check_types(table.schema, row_group)
        if self.filter is not None:
            table = table.filter(self.filter)
        if table.num_rows != row_group.num_rows:
            raise SnapshotDamaged(
                f"{row_group}: it holds {table.num_rows:,} rows, {row_group.num_rows:,} were planned: "
                "the file was changed, or its manifest."
            )
        return self._decoded(table, str(row_group))

    def _check_types(self, found: pa.Schema, row_group: RowGroup) -> None:
        for name in self.schema.names:
            if not same_type(found.field(name).type, self.schema.field(name).type):
                raise SnapshotDamaged(
                    f"{row_group}, column {name!r}: its type is {found.field(name).type}, "
                    f"in the first file it is {self.schema.field(name).type}."
                )

    def count(self, number: int) -> int:
        """Rows of a row group that the filter lets through; only what it asks about is read."""
        row_group = self.row_groups[number]
        table = self._from_file(row_group, self.filter_columns, verify=False)
        return _with_folders(table, row_group).filter(self.filter).num_rows

    def empty(self) -> RowGroupColumns:
        """No rows, with the types and shapes of all columns."""
        return self._decoded(self.schema.empty_table(), self.name)

    def _decoded(self, table: pa.Table, where: str) -> RowGroupColumns:
        fixed, ragged = Columns(), {}
        for name in self.schema.names:
            chunked = table.column(name)
            array = chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()
            try:
                column: Decoded = self.decoders[name](array)
            except ColumnRefused as refused:
                raise SnapshotDamaged(f"{where}, column {name!r}: {refused}.") from None
            except Exception as error:
                raise SnapshotDamaged(f"{where}, column {name!r}: it cannot be decoded: {error}") from error
            if isinstance(column, np.ndarray):
                fixed[name] = np.ascontiguousarray(column)
            else:
                ragged[name] = column
        return RowGroupColumns(table.num_rows, fixed, ragged, tuple(self.schema.names))

    def _table(self, number: int, row_group: RowGroup) -> pa.Table:
        verify = self.verify == "always" or (self.verify == "first" and number not in self._verified)
        if self.cache is None:
            table = self._from_file(row_group, self.file_columns, verify=verify)
        else:
            key = (row_group.path, row_group.version, row_group.index, *self.file_columns)
            table = self.cache.get(key, lambda: self._from_file(row_group, self.file_columns, verify=True))
        self._verified.add(number)
        return _with_folders(table, row_group)

    def _from_file(self, row_group: RowGroup, columns: Sequence[str], *, verify: bool) -> pa.Table:
        try:
            with self._open(row_group.path, verify=verify) as file:
                if row_group.index >= file.num_row_groups:
                    raise SnapshotDamaged(
                        f"{row_group}: the file has {file.num_row_groups} row groups: it was changed."
                    )
                table = file.read_row_group(row_group.index, columns=list(columns), use_threads=False)
            if len(table.column_names) < len(columns):
                missing = min(set(columns) - set(table.column_names))
                raise SnapshotDamaged(f"{row_group}, column {missing!r}: the file has no such column.")
            return table
        except SnapshotDamaged:
            raise
        except FileNotFoundError as error:
            raise SnapshotDamaged(f"{row_group}: the file is not there: {error}") from error
        except Exception as error:
            if len(columns) > 1:
                for column in columns:  # the one that is damaged says so itself
                    self._from_file(row_group, [column], verify=verify)
            where = f"{row_group}, column {columns[0]!r}" if len(columns) == 1 else str(row_group)
            raise SnapshotDamaged(f"{where}: it cannot be read: {error}") from error

    def _open(self, path: str, *, verify: bool) -> pq.ParquetFile:
        """The file, to be read from one thread; what is not local is fetched in a few large requests."""
        filesystem = self.open_filesystem()
        is_local = isinstance(filesystem, LocalFileSystem)
        source = filesystem.open(path, "rb", **({} if is_local else {"cache_type": "none"}))
        return pq.ParquetFile(
            source, metadata=self.footer(path), pre_buffer=not is_local, page_checksum_verification=verify
        )


def _with_folders(table: pa.Table, row_group: RowGroup) -> pa.Table:
    for name, value in row_group.hive.items():
        table = table.append_column(name, pa.repeat(pa.scalar(value), table.num_rows))
    return table
