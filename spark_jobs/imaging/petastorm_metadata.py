"""The file `_common_metadata` by which petastorm's own `make_reader` knows a split's columns and decodes its images.

petastorm keeps its Unischema there as a pickle. Nothing of Headrace reads it: the feed takes the manifest's word.
It is written here without petastorm or the pickle module, as the few calls that make the schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

UNISCHEMA_KEY, ROW_GROUPS_KEY = "dataset-toolkit.unischema.v1", "dataset-toolkit.num_row_groups_per_file.v1"
FILE = "_common_metadata"

# Opcodes of pickle's protocol 2.
_BEGIN, _END, _MARK, _TUPLE, _LIST, _CALL, _FALSE = b"\x80\x02", b".", b"(", b"t", b"l", b"R", b"\x89"


@dataclass(frozen=True)
class Field:
    """A column: its numpy type, its type in Spark, and the shape of an encoded image."""

    name: str
    numpy_type: str
    spark_type: str = ""
    image_shape: tuple[int, ...] = ()
    image_format: str = ""
    quality: int = 0


def common_metadata(schema: pa.Schema, fields: Sequence[Field], row_groups: Mapping[str, int]) -> bytes:
    """The content of the file. `row_groups` says how many each of the split's files has, by its name."""
    metadata = {UNISCHEMA_KEY: unischema("images", fields), ROW_GROUPS_KEY: json.dumps(dict(row_groups)).encode()}
    written = pa.BufferOutputStream()
    pq.write_metadata(schema.with_metadata({key.encode(): value for key, value in metadata.items()}), written)
    content: bytes = written.getvalue().to_pybytes()
    return content


def unischema(name: str, fields: Sequence[Field]) -> bytes:
    """`Unischema(name, [UnischemaField(...), ...])`, pickled."""
    listed = _MARK + b"".join(map(_field, fields)) + _LIST
    return _BEGIN + _called("petastorm.unischema", "Unischema", _text(name), listed) + _END


def _field(field: Field) -> bytes:
    if field.image_shape:
        codec = _called("petastorm.codecs", "CompressedImageCodec", _text(field.image_format), _whole(field.quality))
    else:
        codec = _called("petastorm.codecs", "ScalarCodec", _called("pyspark.sql.types", field.spark_type))
    shape = _MARK + b"".join(map(_whole, field.image_shape)) + _TUPLE
    numpy_type = _named("numpy", field.numpy_type)
    return _called("petastorm.unischema", "UnischemaField", _text(field.name), numpy_type, shape, codec, _FALSE)


def _called(module: str, name: str, *arguments: bytes) -> bytes:
    return _named(module, name) + _MARK + b"".join(arguments) + _TUPLE + _CALL


def _named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()


def _whole(number: int) -> bytes:
    return b"J" + number.to_bytes(4, "little", signed=True)
