"""Row filters: what statistics rule out is never read, the rest is counted, so that a plan stays exact."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet as pq

from schemas.errors import UserError
from training.decoding import known
from training.petastorm_on_arrow import LocalFileSystem
from training.row_groups import ParquetRows, RowGroup

Filters = Sequence[tuple[str, str, Any]] | Sequence[Sequence[tuple[str, str, Any]]]
"""Conditions that all hold, `("day", ">=", 5)`, or several lists of them of which one holds."""

_COMPARISONS = ("=", "==", "!=", "<", "<=", ">", ">=", "in", "not in")
_FILES_AT_ONCE = 16


def conjunctions_of(filters: Filters, schema: pa.Schema, name: str) -> list[list[tuple[str, str, Any]]]:
    """The filter as a list of lists of conditions; UserError for what cannot be asked of these columns."""
    first = filters[0]
    conjunctions: Any = [filters] if first and isinstance(first[0], str) else filters
    nothing = schema.empty_table()
    for conjunction in conjunctions:
        if not conjunction:
            raise UserError(f"{name}: the filter holds an empty list of conditions: leave it out.")
        for condition in conjunction:
            known(condition[:1], schema, name)
            column, comparison, value = condition
            if comparison not in _COMPARISONS:
                raise UserError(
                    f"{name}: the filter's {column} {comparison} {value!r}: {comparison!r} is no comparison; "
                    f"there are {', '.join(_COMPARISONS)}."
                )
            try:
                nothing.filter(pq.filters_to_expression([condition]))
            except Exception as error:
                raise UserError(
                    f"{name}: the filter's {column} {comparison} {value!r} cannot be asked of a column of type "
                    f"{schema.field(column).type}: {error}."
                ) from None
    return [list(conjunction) for conjunction in conjunctions]


def only_matching(rows: ParquetRows, schema: pa.Schema, conjunctions: list[list[Any]]) -> tuple[RowGroup, ...]:
    """The row groups that hold matching rows, with how many: what statistics rule out is not read, the rest counted.

    Counted by the very filter that the reading applies: Arrow's own count takes statistics for the whole truth, which
    leave out the NaNs of a row group, and counts all row groups of a file where its folder satisfies the filter.
    """
    filesystem = rows.open_filesystem()
    is_local = isinstance(filesystem, LocalFileSystem)
    arrow_fs = pa.fs.LocalFileSystem() if is_local else pa.fs.PyFileSystem(pa.fs.FSSpecHandler(filesystem))
    by_statistics = _by_statistics(conjunctions, schema)
    files: dict[str, list[int]] = {}
    for number, row_group in enumerate(rows.row_groups):
        files.setdefault(row_group.path, []).append(number)

    def matching(path: str) -> list[RowGroup]:
        partition = None
        for name, value in rows.row_groups[files[path][0]].hive.items():
            condition = pyarrow.dataset.field(name) == value
            partition = condition if partition is None else partition & condition
        fragment = pyarrow.dataset.ParquetFileFormat().make_fragment(path, arrow_fs, partition_expression=partition)
        possible = {piece.row_groups[0].id for piece in fragment.split_by_row_group(by_statistics, schema=schema)}
        found = []
        for number in files[path]:
            of = rows.row_groups[number]
            if of.index in possible and (count := rows.count(number)):
                decoded_bytes = max(1, of.decoded_bytes * count // of.num_rows)
                found.append(replace(of, num_rows=count, decoded_bytes=decoded_bytes))
        return found

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        return tuple(row_group for found in pool.map(matching, files) for row_group in found)


def _by_statistics(conjunctions: list[list[Any]], schema: pa.Schema) -> pyarrow.dataset.Expression | None:
    """The filter less what statistics cannot answer: they leave out NaN, which is unequal to everything."""
    answerable = [
        [
            condition
            for condition in conjunction
            if condition[1] not in ("!=", "not in") or not pa.types.is_floating(schema.field(condition[0]).type)
        ]
        for conjunction in conjunctions
    ]
    return pq.filters_to_expression(answerable) if all(answerable) else None
