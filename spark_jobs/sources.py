"""Raw tables as frames, wherever they lie: text files, Parquet, a database, a table of Spark's own.

Every frame has `file` (where the row comes from) and one `raw_<name>` a column of the contract; those of text also
have `line` and `_corrupt`. Files that differ in header or schema are frames of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from urllib.parse import unquote

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.contract import Table, TableName
from schemas.errors import UserError, nearest
from schemas.storage import join
from spark_jobs.databases import jdbc_options, redacted
from spark_jobs.hadoop_files import FileStatus, HadoopFiles
from spark_jobs.published_sources import list_published
from spark_jobs.text_files import BrokenFile, check_readable, first_line, read_lines
from spark_jobs.transforms.parsing import check_header, header_of, with_raw_fields
from spark_jobs.transforms.rules import check_raw_type

KIND = "kind"
ROW, HEADER, BLANK = "row", "header", "blank"


@dataclass(frozen=True)
class RawTable:
    """A raw table: its files of one header or schema at a time, each as a frame that `read` makes."""

    groups: tuple[Callable[[Collection[str] | None], DataFrame], ...]

    def read(self, then: Callable[[DataFrame], DataFrame], only: Collection[str] | None = None) -> DataFrame:
        """The rows of all files, each group through `then` first; `only` some columns where not all are needed.

        One row a line, with `kind`: row, header or blank.
        """
        return reduce(lambda one, other: one.unionByName(other), (then(group(only)) for group in self.groups))


def find_source(hadoop: HadoopFiles, raw: str, table: Table, name: TableName) -> list[FileStatus]:
    """The files of a raw table, or one entry for what has a name and no files; UserError where there is nothing."""
    if not table.source.is_files:
        jdbc = table.source.jdbc
        return [FileStatus(f"{redacted(jdbc.url)}/{table.source.path}" if jdbc else table.source.path, 0, 0)]
    url = join(raw, table.source.path)
    files = list_published(hadoop, url, name) if table.source.format == "parquet" else hadoop.glob(url)
    if not files:
        raise UserError(f"{name}: no file at {url}. Give the folder that holds {table.source.path!r} with --raw.")
    if not any(file.bytes for file in files):
        raise UserError(f"{name}: {files[0].url} is empty.")
    return files


def open_source(
    spark: SparkSession, hadoop: HadoopFiles, table: Table, name: TableName, files: Sequence[FileStatus]
) -> RawTable:
    """The raw table in these files, with headers and schemas checked against the contract."""
    kind = table.source.format
    if kind == "parquet":
        return _parquet(spark, hadoop, table, name, files)
    if kind in ("jdbc", "table"):
        return _named(spark, table, name, files[0].url)
    for file in files:
        check_readable(hadoop, file.url)
    if kind == "jsonl" or not table.source.header:
        return RawTable((_text(spark, hadoop, table, [file.url for file in files], None),))
    by_header: dict[bytes, list[str]] = {}
    for file in files:
        line = first_line(hadoop, file.url)
        if line:
            check_header(header_of(line, table.source), table, where=f"{name}: {file.url}")
            by_header.setdefault(line, []).append(file.url)
        elif file.bytes:
            by_header.setdefault(b"", []).append(file.url)
    blank = by_header.pop(b"", [])  # files that begin with an empty line: where no other has a header, nothing has
    if not by_header:
        raise UserError(f"{name}: {files[0].url} begins with no header line.")
    if blank:
        raise UserError(f"{name}: {blank[0]} begins with no header line.")
    return RawTable(tuple(_text(spark, hadoop, table, urls, line) for line, urls in by_header.items()))


def _text(
    spark: SparkSession, hadoop: HadoopFiles, table: Table, urls: list[str], header_line: bytes | None
) -> Callable[[Collection[str] | None], DataFrame]:
    header = header_of(header_line, table.source) if header_line is not None else None

    def read(only: Collection[str] | None) -> DataFrame:
        lines = read_lines(spark, hadoop, urls)
        # In files that were put together the header comes again.
        kind = F.when(F.length(F.trim("line")) == 0, BLANK).otherwise(ROW)
        if header_line is not None:
            is_header = F.col("line").cast("binary") == F.lit(bytearray(header_line))
            kind = F.when(is_header, HEADER).otherwise(kind)
        return with_raw_fields(lines.withColumn(KIND, kind), table, header, only=only)

    return read


def _parquet(
    spark: SparkSession, hadoop: HadoopFiles, table: Table, name: TableName, files: Sequence[FileStatus]
) -> RawTable:
    by_schema: dict[str, list[str]] = {}
    for file in files:
        by_schema.setdefault(hadoop.parquet_schema(file.url), []).append(file.url)
    groups = []
    for urls in by_schema.values():
        rows = spark.read.parquet(*urls).select("*", F.col("_metadata.file_path").alias("file"))
        groups.append(_typed(rows, table, where=f"{name}: {urls[0]}"))
    return RawTable(tuple(groups))


def _named(spark: SparkSession, table: Table, name: TableName, url: str) -> RawTable:
    if table.source.jdbc is not None:
        rows = spark.read.format("jdbc").options(**jdbc_options(table.source)).load()
    else:
        try:
            rows = spark.table(table.source.path)
        except PySparkException as error:
            raise UserError(f"{name}: Spark has no table {table.source.path!r}: {str(error).splitlines()[0]}") from None
    return RawTable((_typed(rows.withColumn("file", F.lit(url)), table, where=f"{name}: {url}"),))


def _typed(rows: DataFrame, table: Table, *, where: str) -> Callable[[Collection[str] | None], DataFrame]:
    types = {field.name: field.dataType for field in rows.schema.fields}
    for column in table.columns:
        if column.raw_name in types:
            check_raw_type(column, types[column.raw_name], where=where)
        elif not column.nullable:
            raise UserError(
                f"{where}: column {column.raw_name!r} (contract column {column.name!r}) is missing"
                f"{nearest(column.raw_name, types) or '.'} There are: {', '.join(list(types)[:12])}."
            )

    def read(only: Collection[str] | None) -> DataFrame:
        fields = [
            (F.col(f"`{column.raw_name}`") if column.raw_name in types else F.lit(None).cast("string")).alias(
                f"raw_{column.name}"
            )
            for column in table.columns
            if only is None or column.name in only
        ]
        return rows.select("file", F.lit(ROW).alias(KIND), *fields)

    return read


@contextmanager
def naming_broken_files() -> Iterator[None]:
    """Turn Spark's failure to read a file to its end into one line that names it."""
    try:
        yield
    except (PySparkException, Py4JJavaError) as error:
        text = str(error)
        ours = re.search(rf"{BrokenFile.__name__}: (.+)", text)
        if ours is not None:
            raise UserError(f"{ours[1]} Nothing was published.") from None
        broken = re.search(r"Encountered error while reading file (\S+?)\.? ", text)
        if "FAILED_READ_FILE" not in text or broken is None:
            raise
        causes = re.findall(r"Caused by: [\w.$]*?(\w+(?:Exception|Error)): (.*)", text)
        why = f" ({causes[-1][1].strip()})" if causes else ""
        raise UserError(
            f"{plain_url(broken[1])} cannot be read to its end{why}: is it cut short or damaged? Nothing was published."
        ) from None


def plain_url(file_path: str) -> str:
    """Spark's name of a file in a row as Hadoop's listing has it."""
    url = unquote(file_path)
    return f"file:{url.removeprefix('file://')}" if url.startswith("file:///") else url


def with_line(rows: DataFrame) -> DataFrame:
    """The line of each row; what has none gets its raw fields as JSON, so that quarantine can hold the row."""
    if "line" in rows.columns:
        return rows
    raw = [name for name in rows.columns if name.startswith("raw_")]
    named = F.struct(*(F.col(name).alias(name.removeprefix("raw_")) for name in raw))
    return rows.withColumn("line", F.to_json(named, {"ignoreNullFields": "false"}))
