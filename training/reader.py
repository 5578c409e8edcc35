"""What there is to read: the row groups of any Parquet folder, or of a snapshot's part.

petastorm finds the files and row groups, opens the file systems and decodes its codecs; this is its one home beside
the adapter. Its worker pools are not used: decision 5 says what they cost.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet as pq

from schemas.errors import SnapshotDamaged, UserError, nearest
from schemas.features import HistoryFeature, IndicesFeature
from schemas.snapshot import Snapshot
from schemas.storage import absolute, fsspec_url
from training import petastorm_on_arrow
from training.decoding import Codec, decoded_width, decoder, same_type
from training.row_group_cache import RowGroupCache
from training.row_groups import ParquetRows, RowGroup, Verify

petastorm_on_arrow.install()

from petastorm.etl.dataset_metadata import load_row_groups  # noqa: E402
from petastorm.fs_utils import get_filesystem_and_path_or_paths  # noqa: E402

Filters = Sequence[tuple[str, str, Any]] | Sequence[Sequence[tuple[str, str, Any]]]

_FOOTERS_KEPT = 64  # a footer of 40 columns and 16 row groups takes 0.2 MB
_FOOTERS_AT_ONCE = 16


def open_folder(
    url: str,
    *,
    columns: Sequence[str] | None = None,
    filters: Filters | None = None,
    fill: Mapping[str, Any] | None = None,
    lengths: Mapping[str, int] | None = None,
    unischema: Any = None,
    cache: RowGroupCache | None = None,
    verify: Verify = "first",
) -> ParquetRows:
    """The rows of any Parquet folder or file: local, or at a URL that fsspec knows (`s3://bucket/folder`).

    `columns`: which (all of them). `filters`: rows for which all of these conditions hold, `("day", ">=", 5)`, or any
    of several such lists; row groups whose statistics rule them out are never read. `fill`: by column, what stands in
    for nulls; without it a null is an error. `lengths`: list columns that become matrices. `unischema`: petastorm's
    Unischema object, for columns that were written with its codecs (the pickled one in the folder is not read).
    `cache`: for row groups that come from afar.
    """
    filesystem, path = _filesystem(url)
    filesystem.invalidate_cache()  # of listings, in which a file that came since would be missing
    try:
        dataset = petastorm_on_arrow.LegacyParquetDataset(path, filesystem=filesystem, validate_schema=False)
    except (FileNotFoundError, OSError) as error:
        raise UserError(f"{url} cannot be opened: {error}") from None
    dataset.common_metadata_path = dataset.metadata_path = None  # the footers are needed for more than what these say
    if not dataset.pieces:
        raise UserError(f"{url}: there is no Parquet file in it.")
    try:
        pieces = load_row_groups(dataset)
    except Exception:
        for piece in dataset.pieces:
            _footer(filesystem, piece.path)  # the one that cannot be read says so
        raise
    levels = {level.name: level.dictionary for level in dataset.partitions or ()}
    footers = {piece.path: piece.get_metadata() for piece in dataset.pieces}
    schema = pq.ParquetSchema.to_arrow_schema(dataset.schema)
    for name, values in levels.items():
        schema = schema.append(pa.field(name, values.type, nullable=False))
    _same_columns(footers, columns or schema.names, schema, levels)
    codecs = _codecs(unischema)
    widths = _Widths(schema, lengths or {}, codecs)
    row_groups = tuple(
        RowGroup(
            path=piece.path,
            index=piece.row_group,
            num_rows=footers[piece.path].row_group(piece.row_group).num_rows,
            decoded_bytes=widths.of(footers[piece.path].row_group(piece.row_group), columns or schema.names),
            hive={name: levels[name][index].as_py() for name, index in piece.partition_keys},
            version=_version(filesystem, piece.path) if cache else "",
        )
        for piece in pieces
    )
    return _selected(
        _Found(url, row_groups, schema, frozenset(levels)),
        columns=columns, filters=filters, fill=fill or {}, lengths=lengths or {}, codecs=codecs, cache=cache,
        verify=verify,
    )  # fmt: skip


def open_part(
    snapshot: Snapshot, part: str, *, columns: Sequence[str] | None = None, cache: RowGroupCache | None = None,
    verify: Verify = "first",
) -> ParquetRows:  # fmt: skip
    """The rows of a snapshot's part, as its manifest lists them; no file is opened but the first."""
    files = snapshot.files(part)
    if not files:
        raise UserError(f"{snapshot.url}: there is no part {part!r}; it has {', '.join(snapshot.manifest.parts)}.")
    features = snapshot.transform.features if snapshot.manifest.transform else ()
    lengths = {f.name: f.length for f in features if isinstance(f, HistoryFeature | IndicesFeature)}
    filesystem, root = _filesystem(snapshot.url)
    first = next((file for file in files if file.row_groups), files[0])
    footer = _footer(filesystem, f"{root}/{first.path}")
    schema = footer.schema.to_arrow_schema()
    _known(columns or schema.names, schema, snapshot.url)
    per_row = 0.0
    if footer.num_rows:
        sample = footer.row_group(0)
        per_row = _Widths(schema, lengths, {}).of(sample, columns or schema.names) / sample.num_rows
    row_groups = tuple(
        RowGroup(
            path=f"{root}/{file.path}",
            index=index,
            num_rows=rows,
            decoded_bytes=int(rows * per_row),
            version=file.sha256,
        )
        for file in files
        for index, rows in enumerate(file.row_groups)
    )
    return _selected(
        _Found(f"{snapshot.url}/{part}", row_groups, schema, frozenset()),
        columns=columns, filters=None, fill={}, lengths=lengths, codecs={}, cache=cache, verify=verify,
    )  # fmt: skip


@dataclass(frozen=True)
class _Found:
    url: str
    row_groups: tuple[RowGroup, ...]
    schema: pa.Schema
    hive: frozenset[str]


def _selected(
    found: _Found, *, columns: Sequence[str] | None, filters: Filters | None, fill: Mapping[str, Any],
    lengths: Mapping[str, int], codecs: Mapping[str, Codec], cache: RowGroupCache | None, verify: Verify,
) -> ParquetRows:  # fmt: skip
    schema = found.schema
    wanted = list(dict.fromkeys(columns or schema.names))
    conditions = [] if not filters else [filters] if isinstance(filters[0][0], str) else list(filters)
    in_filter = {condition[0] for conjunction in conditions for condition in conjunction}
    _known([*wanted, *fill, *sorted(in_filter)], schema, found.url)
    expression = pq.filters_to_expression(filters) if filters else None
    open_filesystem = partial(_filesystem_of_process, found.url)
    row_groups = found.row_groups
    if expression is not None:
        row_groups = _only_matching(open_filesystem(), row_groups, schema, expression)
    decoders = {
        column: decoder(
            schema.field(column), length=lengths.get(column), fill=fill.get(column), codec=codecs.get(column)
        )
        for column in wanted
    }
    file_columns = [column for column in dict.fromkeys([*wanted, *sorted(in_filter)]) if column not in found.hive]
    return ParquetRows(
        name=found.url,
        open_filesystem=open_filesystem,
        footer=lru_cache(maxsize=_FOOTERS_KEPT)(lambda path: _footer(open_filesystem(), path)),
        row_groups=row_groups,
        schema=pa.schema([schema.field(column) for column in wanted]),
        decoders=decoders,
        file_columns=tuple(file_columns),
        filter=expression,
        cache=cache,
        verify=verify,
    )


def _only_matching(
    filesystem: Any, row_groups: Sequence[RowGroup], schema: pa.Schema, expression: pyarrow.dataset.Expression
) -> tuple[RowGroup, ...]:
    """The row groups that hold matching rows, with how many: what statistics rule out is not read, the rest counted."""
    is_local = isinstance(filesystem, petastorm_on_arrow.LocalFileSystem)
    arrow_fs = pa.fs.LocalFileSystem() if is_local else pa.fs.PyFileSystem(pa.fs.FSSpecHandler(filesystem))
    files: dict[str, list[RowGroup]] = {}
    for row_group in row_groups:
        files.setdefault(row_group.path, []).append(row_group)

    def matching(path: str) -> list[RowGroup]:
        hive = [pyarrow.dataset.field(name) == value for name, value in files[path][0].hive.items()]
        partition = None
        for condition in hive:
            partition = condition if partition is None else partition & condition
        fragment = pyarrow.dataset.ParquetFileFormat().make_fragment(path, arrow_fs, partition_expression=partition)
        counts = {
            piece.row_groups[0].id: piece.count_rows(filter=expression, schema=schema)
            for piece in fragment.split_by_row_group(expression, schema=schema)
        }
        return [replace(of, num_rows=counts[of.index]) for of in files[path] if counts.get(of.index)]

    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        return tuple(row_group for found in pool.map(matching, files) for row_group in found)


class _Widths:
    """About how many bytes the decoded columns of a row group take."""

    def __init__(self, schema: pa.Schema, lengths: Mapping[str, int], codecs: Mapping[str, Codec]):
        self._width = {
            field.name: decoded_width(field, length=lengths.get(field.name), codec=codecs.get(field.name))
            for field in schema
        }

    def of(self, row_group: pq.RowGroupMetaData, columns: Sequence[str]) -> int:
        varying = {column for column in columns if self._width[column] is None}
        size = row_group.num_rows * sum(self._width[column] or 8 for column in columns)
        for number in range(row_group.num_columns) if varying else ():
            leaf = row_group.column(number)
            if leaf.path_in_schema.split(".")[0] in varying:
                size += leaf.total_uncompressed_size
        return int(size)


def _codecs(unischema: Any) -> dict[str, Codec]:
    """Those of petastorm's fields that are stored as bytes; its scalars are stored as what they are."""
    codecs = {}
    for name, entry in unischema.fields.items() if unischema else ():
        if entry.codec is None or entry.shape == ():
            continue
        if None in entry.shape:
            raise UserError(
                f"column {name!r} has the shape {entry.shape} in the Unischema: rows of a batch need one shape. Write "
                "arrays of one size, and say which in the Unischema that you read with."
            )
        codecs[name] = Codec(partial(entry.codec.decode, entry), np.dtype(entry.numpy_dtype), tuple(entry.shape))
    return codecs


def _filesystem_of_process(url: str) -> Any:
    return _filesystem_of(url, os.getpid())


@lru_cache(maxsize=256)
def _filesystem_of(url: str, _process: int) -> Any:
    """Opened anew in each process: the clients of object stores do not live through a fork."""
    return _filesystem(url)[0]


def _filesystem(url: str) -> tuple[Any, str]:
    """petastorm's file system for a path or URL, and the path in it."""
    there = fsspec_url(absolute(url))
    try:
        return get_filesystem_and_path_or_paths(there if "://" in there else f"file://{there}")
    except ImportError as error:
        raise UserError(f"{url}: {error}: install the package that fsspec names for it.") from None


def _footer(filesystem: Any, path: str) -> pq.FileMetaData:
    try:
        return petastorm_on_arrow.ParquetDatasetPiece(path, filesystem.open).get_metadata()
    except Exception as error:
        raise SnapshotDamaged(f"{path}: its footer cannot be read: {error}") from error


def _version(filesystem: Any, path: str) -> str:
    try:
        return str(filesystem.ukey(path))
    except Exception:
        return str(filesystem.size(path))


def _known(columns: Any, schema: pa.Schema, where: str) -> None:
    for column in columns:
        if column not in schema.names:
            raise UserError(
                f"{where}: there is no column {column!r}{nearest(column, schema.names)}; "
                f"it has {', '.join(schema.names)}."
            )


def _same_columns(
    footers: Mapping[str, pq.FileMetaData], columns: Sequence[str], schema: pa.Schema, hive: Mapping[str, Any]
) -> None:
    for path, footer in footers.items():
        found = footer.schema.to_arrow_schema()
        for column in columns:
            if column in hive or column not in schema.names:
                continue
            if column not in found.names:
                raise SnapshotDamaged(f"{path}, column {column!r}: the file has no such column, the first file has.")
            if not same_type(found.field(column).type, schema.field(column).type):
                raise SnapshotDamaged(
                    f"{path}, column {column!r}: its type is {found.field(column).type}, in the first file it is "
                    f"{schema.field(column).type}: write all files with one schema."
                )
