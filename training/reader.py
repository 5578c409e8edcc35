"""What there is to read: the row groups of any Parquet folder, or of a snapshot's part.

petastorm finds the files and row groups, opens the file systems and decodes its codecs; this is its one home beside
the adapter. Its worker pools are not used: decision 5 says what they cost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import SnapshotDamaged, UserError
from schemas.snapshot import Snapshot
from schemas.storage import absolute, fsspec_url
from training import petastorm_on_arrow
from training.decoding import Codec, PicklableDecoder, decoded_image, known, same_type
from training.row_filters import Filters, conjunctions_of, only_matching
from training.row_group_cache import RowGroupCache
from training.row_groups import ParquetRows, RowGroup, Verify
from training.row_widths import Widths, sampled

petastorm_on_arrow.install()

from petastorm.etl.dataset_metadata import load_row_groups  # noqa: E402
from petastorm.fs_utils import get_filesystem_and_path_or_paths  # noqa: E402

_FOOTERS_KEPT = 64  # a footer of 40 columns and 16 row groups takes 0.2 MB


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
    except Exception as error:  # the clients of object stores have errors of their own
        raise UserError(f"{url} cannot be opened: {error}") from error
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
        if name in schema.names:  # the folder's value counts
            schema = schema.remove(schema.get_field_index(name))
        schema = schema.append(pa.field(name, values.type, nullable=False))
    known([*(columns or ()), *(lengths or ())], schema, url)
    _same_columns(footers, columns or schema.names, schema, levels)
    codecs = {
        name: codec if None not in codec.shape else codec.of_shape_of(_first_value(filesystem, dataset.pieces, name))
        for name, codec in _codecs(unischema).items()
        if name in (columns or schema.names)
    }
    first = next((path for path, footer in footers.items() if footer.num_row_groups), "")
    widths = Widths(schema, lengths or {}, codecs, sampled(filesystem, first))
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
    lengths = snapshot.transform.lengths if snapshot.manifest.transform else {}
    codecs = _codecs_of(snapshot)
    filesystem, root = _filesystem(snapshot.url)
    first = next((file for file in files if file.row_groups), files[0])
    footer = _footer(filesystem, f"{root}/{first.path}")
    schema = footer.schema.to_arrow_schema()
    known(columns or schema.names, schema, snapshot.url)
    per_row = 0.0
    if footer.num_rows:
        sample = footer.row_group(0)
        widths = Widths(schema, lengths, codecs, sampled(filesystem, f"{root}/{first.path}"))
        per_row = widths.of(sample, columns or schema.names) / sample.num_rows
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
        columns=columns, filters=None, fill={}, lengths=lengths, codecs=codecs, cache=cache, verify=verify,
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
    conjunctions = conjunctions_of(filters, schema, found.url) if filters else []
    in_filter = sorted({condition[0] for conjunction in conjunctions for condition in conjunction})
    known([*wanted, *fill], schema, found.url)
    open_filesystem = partial(_filesystem_of_process, found.url)
    decoders = {
        column: PicklableDecoder(schema.field(column), lengths.get(column), fill.get(column), codecs.get(column))
        for column in wanted
    }
    file_columns = [column for column in dict.fromkeys([*wanted, *in_filter]) if column not in found.hive]
    rows = ParquetRows(
        name=found.url,
        open_filesystem=open_filesystem,
        footer=_Footers(open_filesystem),
        row_groups=found.row_groups,
        schema=pa.schema([schema.field(column) for column in wanted]),
        decoders=decoders,
        file_columns=tuple(file_columns),
        filter=pq.filters_to_expression(conjunctions) if conjunctions else None,
        filter_columns=tuple(column for column in in_filter if column not in found.hive),
        cache=cache,
        verify=verify,
    )
    return replace(rows, row_groups=only_matching(rows, schema, conjunctions)) if conjunctions else rows


def _codecs(unischema: Any) -> dict[str, Codec]:
    """Those of petastorm's fields that are stored as bytes; its scalars are stored as what they are."""
    codecs = {}
    for name, entry in unischema.fields.items() if unischema else ():
        if entry.codec is None or entry.shape == ():
            continue
        codecs[name] = Codec(partial(entry.codec.decode, entry), np.dtype(entry.numpy_dtype), tuple(entry.shape))
    return codecs


def _codecs_of(snapshot: Snapshot) -> dict[str, Codec]:
    """Of a snapshot of images: its manifest says what petastorm's metadata says in a pickle."""
    images = snapshot.manifest.images
    if images is None:
        return {}
    return {images.column: Codec(decoded_image, np.dtype(np.uint8), (images.size, images.size, 3))}


def _first_value(filesystem: Any, pieces: Sequence[Any], column: str) -> bytes | None:
    """Of a column of encoded arrays: it says how large they are where their Unischema does not."""
    for piece in pieces:
        with pq.ParquetFile(filesystem.open(piece.path, "rb")) as file:
            for index in range(file.num_row_groups):
                values = file.read_row_group(index, columns=[column], use_threads=False).column(column).drop_null()
                if len(values):
                    return values[0].as_py()
    return None


class _Footers:
    """The footers asked for last, by path; sent to another process, it begins with none."""

    def __init__(self, open_filesystem: Callable[[], Any]):
        self._open_filesystem = open_filesystem
        self._footer = lru_cache(maxsize=_FOOTERS_KEPT)(lambda path: _footer(open_filesystem(), path))

    def __call__(self, path: str) -> pq.FileMetaData:
        return self._footer(path)

    def __reduce__(self) -> tuple:
        return _Footers, (self._open_filesystem,)


def _filesystem_of_process(url: str) -> Any:
    return _filesystem_of(url, os.getpid())


@lru_cache(maxsize=256)
def _filesystem_of(url: str, _process: int) -> Any:
    """Opened anew in each process: the clients of object stores do not live through a fork."""
    return _filesystem(url)[0]


def _filesystem(url: str) -> tuple[Any, str]:
    """petastorm's file system for a path or URL, and the path in it."""
    there = fsspec_url(absolute(url))
    if "://" not in there:  # as it is: a URL would end at a "#" or "?" in a folder's name
        return petastorm_on_arrow.LocalFileSystem(), there
    if there.startswith("file://"):
        local = petastorm_on_arrow.LocalFileSystem()
        return local, local._strip_protocol(there)
    try:
        return get_filesystem_and_path_or_paths(there)
    except ImportError as error:
        raise UserError(f"{url}: {error}: install the package that fsspec names for it.") from None
    except ValueError as error:
        raise UserError(f"{url} cannot be opened: {error}.") from None


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
