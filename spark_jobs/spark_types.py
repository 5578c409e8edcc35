"""Contract to Spark: the StructType of a checked table."""

from __future__ import annotations

from pyspark.sql import types as T

from schemas.contract import ColumnType, Table

SPARK_TYPES: dict[ColumnType, T.DataType] = {
    "string": T.StringType(),
    "int32": T.IntegerType(),
    "int64": T.LongType(),
    "float32": T.FloatType(),
    "float64": T.DoubleType(),
    "boolean": T.BooleanType(),
    "timestamp_ms": T.LongType(),
    "list<string>": T.ArrayType(T.StringType(), containsNull=False),
}


def spark_schema(table: Table) -> T.StructType:
    """One field a column, in the contract's order."""
    return T.StructType(
        [T.StructField(column.name, SPARK_TYPES[column.type], column.nullable) for column in table.columns]
    )
