"""Lines of a log as a table in the columns of schemas/served.py."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from pydantic import BaseModel

from schemas.served import COLUMNS, SHOWN_COLUMNS, Action, Impression, Kind, Shown
from serving.segments import PREFIX_BYTES

_MODELS: dict[Kind, type[BaseModel]] = {"impressions": Impression, "actions": Action}
_AS_JSON = ("context", "features")
DAY_MS = 86_400_000


class RowFault(Exception):
    """A record does not fit the columns; the text says how, its place is the caller's to say."""


def rows_of(kind: Kind, block: bytes) -> pa.Table:
    """One row a line, in order. Raises RowFault."""
    lines = block.split(b"\n")[:-1]
    try:
        with _no_search_for_cycles():
            records = orjson.loads(b"[" + b",".join([line[PREFIX_BYTES:] for line in lines]) + b"]")
            return _table(records, COLUMNS[kind], _MODELS[kind])
    except KeyError as error:
        raise RowFault(f"a record has no {error.args[0]!r}") from None
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError, orjson.JSONDecodeError) as error:
        raise RowFault(f"a record does not fit its columns: {' '.join(str(error).split())}") from None


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Records are many objects and no cycle: looking for some takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def day_name(days: int) -> str:
    """`2026-01-31`, of days since 1970."""
    return str(np.datetime64(days, "D"))


def by_day(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each UTC day of time_ms, days ascending, rows in their order."""
    days = table.column("time_ms").to_numpy() // DAY_MS
    for day in np.unique(days):
        yield day_name(int(day)), table if (days == day).all() else table.filter(pa.array(days == day))


def _table(records: list[dict[str, Any]], schema: pa.Schema, model: type[BaseModel]) -> pa.Table:
    unknown = set().union(*records) - set(schema.names)
    if unknown:
        raise RowFault(f"a record has {min(unknown)!r}, which this release of Headrace does not know")
    return pa.Table.from_arrays([_column(records, field, model) for field in schema], schema=schema)


def _column(records: list[dict[str, Any]], field: pa.Field, model: type[BaseModel]) -> pa.Array:
    name, described = field.name, model.model_fields[field.name]
    values: list[Any]
    if described.is_required():
        values = [record[name] for record in records]
    else:
        values = [record.get(name, described.default) for record in records]
    if name in _AS_JSON:
        values = [orjson.dumps(value) for value in values]
    column = _shown(values) if name == "items" else pa.array(values, field.type)
    if column.null_count and not field.nullable:
        raise RowFault(f"a record has null for {name!r}")
    return column


def _shown(values: list[list[dict[str, Any]]]) -> pa.Array:
    items = _table(list(chain.from_iterable(values)), pa.schema(list(SHOWN_COLUMNS)), Shown)
    ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
    structs = pa.StructArray.from_arrays([c.combine_chunks() for c in items.columns], fields=list(SHOWN_COLUMNS))
    return pa.ListArray.from_arrays(pa.array(ends), structs).cast(COLUMNS["impressions"].field("items").type)
