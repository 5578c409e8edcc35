"""Raw lines to raw fields: every column still text, so that a bad value can be named and kept."""

from __future__ import annotations

import csv
from collections.abc import Collection

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
    """Raise UserError naming the first column of the contract that the header lacks, and the nearest it has.

    A nullable one may be missing, as in files from before it was added: it is null there.
    """
    for column in table.columns:
        if column.raw_name not in header and not column.nullable:
            raise UserError(
                f"{where}: column {column.raw_name!r} (contract column {column.name!r}) is missing from the header"
                f"{nearest(column.raw_name, header) or '.'} The header has {len(header)} columns: "
                f"{', '.join(header[:12])}."
            )


def with_raw_fields(
    lines: DataFrame, table: Table, header: list[str] | None, *, only: Collection[str] | None = None
) -> DataFrame:
    """Add one text column per contract column, `raw_<name>` (null where absent), and `_corrupt` (null where sound).

    In and out: one row per line. `header` gives the order of a delimited file's columns; None means the contract's.
    `only` some columns are read faster, and without `_corrupt` where that asks for the whole line.
    """
    columns = [column for column in table.columns if only is None or column.name in only]
    if table.source.format == "jsonl":
        parsed = _json(table, columns)
    else:
        header = header or [column.raw_name for column in table.columns]
        if not table.source.quote:
            return _split_fields(lines, table, header, columns, whole=only is None)
        parsed = _delimited(table, header, columns)
    return lines.withColumn("_parsed", parsed).select("*", "_parsed.*").drop("_parsed")


def _split_fields(
    lines: DataFrame, table: Table, header: list[str], columns: list[Column], *, whole: bool
) -> DataFrame:
    """Fields of a source without quotes, where every delimiter parts two of them: no parser is needed."""
    source = table.source
    places = {column.name: header.index(column.raw_name) for column in columns if column.raw_name in header}
    limit = -1 if whole else max(places.values(), default=0) + 2
    # A column of its own, or the line would be split once a field.
    split = lines.withColumn("_fields", F.split("line", _literal(source.delimiter), limit))

    def field(column: Column) -> SparkColumn:
        if column.name not in places:
            return _split(column, F.lit(None).cast("string")).alias(f"raw_{column.name}")
        text = F.nullif(F.get("_fields", F.lit(places[column.name])), F.lit(""))
        text = F.nullif(text, F.lit(source.null)) if source.null else text
        return _split(column, text).alias(f"raw_{column.name}")

    added = [field(column) for column in columns]
    if whole:
        num_fields = F.size("_fields")
        wrong_width = F.format_string(f"%d fields, the header has {len(header)}", num_fields)
        added.append(F.when(num_fields != len(header), wrong_width).alias(CORRUPT))
    return split.select(*lines.columns, *added)


def _delimited(table: Table, header: list[str], columns: list[Column]) -> SparkColumn:
    source = table.source
    # Fields are told apart by position, for a header may hold dots, colons and one name twice.
    schema = T.StructType([T.StructField(f"c{i}", T.StringType()) for i in range(len(header))])
    parsed = F.from_csv(
        F.col("line"),
        schema.add(CORRUPT, T.StringType()).simpleString().removeprefix("struct<").removesuffix(">").replace(":", " "),
        {
            "sep": source.delimiter,
            "quote": source.quote,
            "escape": source.quote,
            "nullValue": source.null,
            "mode": "PERMISSIVE",
            "columnNameOfCorruptRecord": CORRUPT,
        },
    )

    def field(column: Column) -> SparkColumn:
        there = column.raw_name in header
        text = parsed[f"c{header.index(column.raw_name)}"] if there else F.lit(None).cast("string")
        return _split(column, text).alias(f"raw_{column.name}")

    # A delimiter inside quotes parts nothing, so the fields cannot be counted by it.
    wrong_width = F.lit(f"another number of fields than the header's {len(header)}")
    return F.struct(*map(field, columns), F.when(parsed[CORRUPT].isNotNull(), wrong_width).alias(CORRUPT))


def _json(table: Table, columns: list[Column]) -> SparkColumn:
    """The fields of `columns`; all of the table's are parsed, so that a line is corrupt or not whoever asks."""
    fields = [
        T.StructField(column.raw_name, T.ArrayType(T.StringType()) if column.type == "list<string>" else T.StringType())
        for column in table.columns
    ]
    schema = T.StructType([*fields, T.StructField(CORRUPT, T.StringType())])
    parsed = F.from_json(F.col("line"), schema, {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": CORRUPT})
    shown = [parsed.getField(column.raw_name).alias(f"raw_{column.name}") for column in columns]
    # from_json stops at the end of the first object, and what comes after it would be lost without a word.
    one_object = (F.json_array_length(F.concat(F.lit("["), "line", F.lit("]"))) == 1) & F.rtrim("line").endswith("}")
    sound = parsed.isNotNull() & parsed.getField(CORRUPT).isNull() & F.coalesce(one_object, F.lit(False))
    corrupt = F.when(~sound, F.lit("the line is no JSON object of these columns"))
    return F.struct(*shown, corrupt.alias(CORRUPT))


def _split(column: Column, text: SparkColumn) -> SparkColumn:
    return F.split(text, _literal(column.separator), -1) if column.type == "list<string>" else text


def _literal(delimiter: str) -> str:
    """A regular expression that matches the delimiter and nothing else."""
    return "".join(f"\\x{ord(char):02x}" if ord(char) < 256 else char for char in delimiter)
