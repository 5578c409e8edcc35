"""Arrow columns as arrays that batches are gathered from: no row loop, no pandas, the type as stored."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import UserError, nearest

Decoded: TypeAlias = "np.ndarray | pa.Array"
"""An array of shape (rows, ...), or an Arrow array of lists, strings or bytes, whose rows differ in length."""

Decoder = Callable[[pa.Array], Decoded]

_INTEGER_OF_WIDTH = {32: pa.int32(), 64: pa.int64()}


class ColumnRefused(ValueError):
    """A column holds what was not promised; the text says what, the caller says where."""


class PicklableDecoder:
    """A column's decoder that may be sent to another process: it is made anew there."""

    def __init__(self, field: pa.Field, length: int | None, fill: Any, codec: Codec | None):
        self._arguments = field, length, fill, codec
        self._decode = decoder(field, length=length, fill=fill, codec=codec)

    def __call__(self, array: pa.Array) -> Decoded:
        return self._decode(array)

    def __reduce__(self) -> tuple:
        return PicklableDecoder, self._arguments


def decoder(field: pa.Field, *, length: int | None = None, fill: Any = None, codec: Codec | None = None) -> Decoder:
    """What turns a column of this type into an array.

    `fill` stands in for nulls; without it a null is refused. A list column with a `length` becomes shape
    (rows, length), a fixed-size list one of its own length. Times become integers in the unit that they are stored in,
    dictionaries their values. `codec` decodes a value of bytes.
    Raises UserError for a type that has no tensor.
    """
    decode = _decode_bytes(codec) if codec else _decoder_of_type(field.name, field.type, length)
    stand_in = None if fill is None else _stand_in(field, fill)

    def without_nulls(array: pa.Array) -> Decoded:
        if array.null_count:
            if stand_in is None:
                raise ColumnRefused(
                    f"{array.null_count:,} nulls, the first in row {_first_null(array):,}, and nothing says what "
                    "stands in for them (`fill`)"
                )
            array = pc.fill_null(array, stand_in)
        return decode(array)

    return without_nulls


def known(columns: Iterable[str], schema: pa.Schema, where: str) -> None:
    """Raise UserError for the first column that the schema does not have, with the nearest that it has."""
    for column in columns:
        if column not in schema.names:
            raise UserError(
                f"{where}: there is no column {column!r}{nearest(column, schema.names)}; "
                f"it has {', '.join(schema.names)}."
            )


def same_type(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether two files' columns are of one type; lists that may hold nulls are of the type of those that may not."""
    if (pa.types.is_list(one) and pa.types.is_list(other)) or (
        pa.types.is_large_list(one) and pa.types.is_large_list(other)
    ):
        return same_type(one.value_type, other.value_type)
    return one == other


def decoded_width(field: pa.Field, *, length: int | None = None, codec: Codec | None = None) -> float | None:
    """Bytes of one decoded row, or None where rows differ."""
    if codec:
        return codec.row_bytes
    kind, count = field.type, 1
    if pa.types.is_fixed_size_list(kind):
        kind, count = kind.value_type, kind.list_size
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if length is None:
            return None
        kind, count = kind.value_type, length
    elif pa.types.is_dictionary(kind):
        kind = kind.value_type
    try:
        return count * max(1, kind.bit_width // 8)
    except ValueError:
        return None


@dataclass(frozen=True)
class Codec:
    """A value of bytes as an array of one shape, decoded by `decode` (bytes to array).

    A size that is None in `shape` is not known: `of_shape_of` a value makes it so.
    """

    decode: Callable[[bytes], np.ndarray]
    dtype: np.dtype
    shape: tuple[int | None, ...]

    def of_shape_of(self, value: bytes | None) -> Codec:
        """The same for arrays that are all of the shape of this one."""
        shape = tuple(size or 0 for size in self.shape)
        if value is not None:
            with contextlib.suppress(Exception):  # if it cannot be decoded, the reading says where
                shape = self.decode(value).shape
        return Codec(self.decode, self.dtype, shape)

    @property
    def row_bytes(self) -> float:
        return float(self.dtype.itemsize * math.prod(size or 0 for size in self.shape))


def decoded_image(content: bytes) -> np.ndarray:
    """An encoded image as shape (height, width, 3), red first: what petastorm's codec gives, without its slow copy."""
    import cv2  # of the extra `images`

    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ValueError("it is no image, or is cut short")
    return pixels


def _decoder_of_type(name: str, kind: pa.DataType, length: int | None) -> Decoder:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if pa.types.is_dictionary(kind):
        inner = _decoder_of_type(name, kind.value_type, length)
        return lambda array: inner(array.dictionary_decode())
    if pa.types.is_boolean(kind):
        return lambda array: array.to_numpy(zero_copy_only=False)
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        whole = _INTEGER_OF_WIDTH[kind.bit_width]
        return lambda array: array.view(whole).to_numpy()
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return lambda array: array.to_numpy()
    if pa.types.is_fixed_size_list(kind) and _is_number(kind.value_type):
        return lambda array: _equal_lists(array.flatten(), len(array), kind.list_size)
    if is_list and _is_number(kind.value_type):
        if length is not None:
            return lambda array: _lists_of_length(array, length)
        return lambda array: _lists(array, pa.list_(kind.value_type))
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return lambda array: array
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return lambda array: array.cast(pa.binary())
    raise UserError(
        f"column {name!r} is of type {kind}, which has no tensor: leave it out of the columns, or cast it in the job "
        "that writes it (numbers, booleans, times, strings, bytes and lists of numbers have one)."
    )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _lists(array: pa.Array, small: pa.DataType) -> pa.Array:
    if nulls := array.flatten().null_count:
        raise ColumnRefused(f"{nulls:,} nulls within lists, which nothing can stand in for")
    return array if array.type == small else array.cast(small)


def _lists_of_length(array: pa.Array, length: int) -> np.ndarray:
    offsets = array.offsets.to_numpy()
    if len(array) and not (np.diff(offsets) == length).all():
        wrong = int(np.argmax(np.diff(offsets) != length))
        raise ColumnRefused(
            f"row {wrong:,} holds a list of {int(offsets[wrong + 1] - offsets[wrong])} values, where every list "
            f"should be {length} long"
        )
    return _equal_lists(array.flatten(), len(array), length)


def _equal_lists(values: pa.Array, num_rows: int, length: int) -> np.ndarray:
    if values.null_count:
        raise ColumnRefused(f"{values.null_count:,} nulls within lists, which nothing can stand in for")
    return values.to_numpy().reshape(num_rows, length)


def _decode_bytes(codec: Codec) -> Decoder:
    def decode(array: pa.Array) -> np.ndarray:
        out = np.empty((len(array), *(size or 0 for size in codec.shape)), dtype=codec.dtype)
        for number, value in enumerate(array.to_pylist()):
            row = codec.decode(value)
            if row.shape != codec.shape or row.dtype != codec.dtype:
                raise ColumnRefused(
                    f"row {number:,} holds an array of shape {row.shape} and type {row.dtype}, where every one should "
                    f"be of shape {codec.shape} and type {codec.dtype}: resize them, or give their Unischema"
                )
            out[number] = row
        return out

    return decode


def _stand_in(field: pa.Field, fill: Any) -> pa.Scalar:
    try:
        return pa.scalar(fill, field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"column {field.name!r} is of type {field.type}, and {fill!r} cannot stand in for its nulls: {error}."
        ) from None


def _first_null(array: pa.Array) -> int:
    return int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
