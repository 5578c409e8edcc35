"""Raw lines to raw fields: every column still text, so that a bad value can be named and kept."""

from __future__ import annotations

import csv

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from schemas.contract import Column, Source, Table
from schemas.errors import UserError, nearest

CORRUPT = "_corrupt"


def header_of(line: bytes, source: Source) -> list[str]:
    """The column names in a header line."""
    text = line.decode("utf-8", errors="replace").rstrip("\r\n")
    if source.quote:
        return next(csv.reader([text], delimiter=source.delimiter, quotechar=source.quote), [])
    return text.split(source.delimiter)


def check_header(header: list[str], table: Table, *, where: str) -> None:
    """Raise UserError naming the first column of the contract that the header lacks, and the nearest it has."""
    for column in table.columns:
        if column.raw_name not in header:
            raise UserError(
                f"{where}: column {column.raw_name!r} (contract column {column.name!r}) is missing from the header"
                f"{nearest(column.raw_name, header) or '.'} The header has {len(header)} columns: "
                f"{', '.join(header[:12])}."
            )


def with_raw_fields(lines: DataFrame, table: Table, header: list[str] | None) -> DataFrame:
    """Add one text column per contract column, `raw_<name>` (null where absent), and `_corrupt` (null where sound).

    In and out: one row per line. `header` gives the order of a delimited file's columns; None means the contract's.
    """
    if table.source.format == "jsonl":
        parsed = _json(table)
    else:
        parsed = _delimited(table, header or [column.raw_name for column in table.columns])
    return lines.withColumn("_parsed", parsed).select("*", "_parsed.*").drop("_parsed")


def _delimited(table: Table, header: list[str]) -> SparkColumn:
    source = table.source
    # Fields are told apart by position, for a header may hold dots, colons and one name twice.
    schema = T.StructType([T.StructField(f"c{i}", T.StringType()) for i in range(len(header))])
    parsed = F.from_csv(
        F.col("line"),
        schema.add(CORRUPT, T.StringType()).simpleString().removeprefix("struct<").removesuffix(">").replace(":", " "),
        {
            "sep": source.delimiter,
            "quote": source.quote,
            "escape": source.quote or "\u0000",
            "nullValue": source.null,
            "mode": "PERMISSIVE",
            "columnNameOfCorruptRecord": CORRUPT,
        },
    )
    fields = [
        _split(column, parsed[f"c{header.index(column.raw_name)}"]).alias(f"raw_{column.name}")
        for column in table.columns
    ]
    if source.quote:  # a delimiter inside quotes parts nothing, so the fields cannot be counted by it
        wrong_width = F.lit(f"another number of fields than the header's {len(header)}")
    else:
        num_fields = F.size(F.split("line", _literal(source.delimiter), -1))
        wrong_width = F.format_string(f"%d fields, the header has {len(header)}", num_fields)
    return F.struct(*fields, F.when(parsed[CORRUPT].isNotNull(), wrong_width).alias(CORRUPT))


def _json(table: Table) -> SparkColumn:
    fields = [
        T.StructField(column.raw_name, T.ArrayType(T.StringType()) if column.type == "list<string>" else T.StringType())
        for column in table.columns
    ]
    schema = T.StructType([*fields, T.StructField(CORRUPT, T.StringType())])
    parsed = F.from_json(F.col("line"), schema, {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": CORRUPT})
    columns = [parsed.getField(column.raw_name).alias(f"raw_{column.name}") for column in table.columns]
    # from_json stops at the end of the first object, and what comes after it would be lost without a word.
    one_object = (F.json_array_length(F.concat(F.lit("["), "line", F.lit("]"))) == 1) & F.rtrim("line").endswith("}")
    sound = parsed.isNotNull() & parsed.getField(CORRUPT).isNull() & F.coalesce(one_object, F.lit(False))
    corrupt = F.when(~sound, F.lit("the line is no JSON object of these columns"))
    return F.struct(*columns, corrupt.alias(CORRUPT))


def _split(column: Column, text: SparkColumn) -> SparkColumn:
    return F.split(text, _literal(column.separator), -1) if column.type == "list<string>" else text


def _literal(delimiter: str) -> str:
    """A regular expression that matches the delimiter and nothing else."""
    return "".join(f"\\x{ord(char):02x}" if ord(char) < 256 else char for char in delimiter)
