"""How many bytes the decoded rows of a row group take, estimated from the footer before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.decoding import Codec, decoded_width

Sample = Callable[[str], float]
"""Bytes a row of a column of strings, measured in the first row group."""


class Widths:
    """About how many bytes the decoded columns of a row group take."""

    def __init__(self, schema: pa.Schema, lengths: Mapping[str, int], codecs: Mapping[str, Codec], sample: Sample):
        self._schema, self._sample = schema, sample
        self._width = {
            field.name: decoded_width(field, length=lengths.get(field.name), codec=codecs.get(field.name))
            for field in schema
        }

    def of(self, row_group: pq.RowGroupMetaData, columns: Sequence[str]) -> int:
        size = 0.0
        varying = set()
        for column in columns:
            if (width := self._width[column]) is None:
                varying.add(column)
            else:
                size += row_group.num_rows * width
        for number in range(row_group.num_columns) if varying else ():
            leaf = row_group.column(number)
            if (name := leaf.path_in_schema.split(".")[0]) in varying:
                size += 8 * row_group.num_rows + self._of_varying(name, leaf, row_group.num_rows)
        return int(size)

    def _of_varying(self, name: str, leaf: pq.ColumnChunkMetaData, num_rows: int) -> float:
        kind = self._schema.field(name).type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return leaf.num_values * (decoded_width(kind.value_field) or 8)
        if not any("DICTIONARY" in encoding for encoding in leaf.encodings):
            return leaf.total_uncompressed_size
        return max(leaf.total_uncompressed_size, num_rows * self._sample(name))  # a dictionary hides what it stands for


def sampled(filesystem: Any, path: str) -> Sample:
    @lru_cache(maxsize=256)
    def bytes_per_row(column: str) -> float:
        with pq.ParquetFile(filesystem.open(path, "rb")) as file:
            table = file.read_row_group(0, columns=[column], use_threads=False)
        return table.nbytes / max(1, table.num_rows)

    return bytes_per_row
