"""Contract to Arrow: the schema of a table once it is checked, as ingest writes it and pyarrow reads it."""

from __future__ import annotations

import pyarrow as pa

from schemas.contract import ColumnType, Table

ARROW_TYPES: dict[ColumnType, pa.DataType] = {
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "boolean": pa.bool_(),
    "timestamp_ms": pa.int64(),
    "list<string>": pa.list_(pa.field("element", pa.string(), nullable=False)),
}


def arrow_schema(table: Table) -> pa.Schema:
    """One Arrow field a column, in the contract's order; a column that cannot be null is not nullable."""
    return pa.schema(
        [pa.field(column.name, ARROW_TYPES[column.type], nullable=column.nullable) for column in table.columns]
    )
