"""Reading and writing tables: lines of raw text in, Parquet in and out. The one place that does either."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from schemas.manifest import DataFile
from schemas.storage import join
from spark_jobs.hadoop_files import HadoopFiles

_MIN_ROW_GROUP_ROWS, _MAX_ROW_GROUP_ROWS = 1 << 10, 1 << 17


def read_lines(spark: SparkSession, files: Sequence[str]) -> DataFrame:
    """One row per physical line: `line` (its bytes as they are, also where they are no UTF-8) and `file`."""
    text = spark.read.text(list(files))
    return text.select(F.col("value").alias("line"), F.col("_metadata.file_path").alias("file"))


def read_part(spark: SparkSession, root: str, files: Sequence[DataFile], schema: StructType) -> DataFrame:
    """A part of a published folder, by the files that its manifest names and no others."""
    return spark.read.schema(schema).parquet(*(join(root, file.path) for file in files))


def write_table(table: DataFrame, url: str, *, num_files: int | None = None) -> None:
    """Write a table for people and later jobs: zstd, as many files as it has partitions unless told."""
    table = table.coalesce(num_files) if num_files else table
    table.write.mode("error").option("compression", "zstd").parquet(url)


def row_group_rows(rows: int) -> int:
    """Rows of a row group: 64 of them or more for shuffling and sharing out, within what reads well.

    A power of two from 1,024 to 131,072, so that a log of any size has a layout that does not depend on the cluster.
    """
    wanted = max(1, rows // 64)
    return min(_MAX_ROW_GROUP_ROWS, max(_MIN_ROW_GROUP_ROWS, 1 << (wanted - 1).bit_length()))


def write_training_layout(rows: DataFrame, url: str, *, order: Column, num_files: int, rows_per_row_group: int) -> None:
    """Write rows for the feed: non-null columns as REQUIRED, LZ4, no dictionary, in the order of a random key.

    `order` is a pseudo-random number a row. Files are drawn by it and sorted by it, so every file is a random
    sample, and the same rows give the same files whatever the cluster.
    """
    shuffled = required(rows).repartition(num_files, order).sortWithinPartitions(order)
    (
        shuffled.write.mode("error")
        .option("compression", "lz4_raw")
        .option("parquet.enable.dictionary", "false")
        .option("parquet.block.row.count.limit", str(rows_per_row_group))
        .parquet(url)
    )


def required(rows: DataFrame) -> DataFrame:
    """The columns as non-null ones, which Parquet stores as REQUIRED and the feed reads without a copy.

    None of them holds a null: encoders map null to an index or to the mean. 0 here only tells Spark so.
    """

    def column(name: str) -> Column:
        kind = rows.schema[name].dataType.typeName()
        if kind == "array":
            whole = F.transform(name, lambda value: F.coalesce(value, F.lit(0)))
            return F.coalesce(whole, F.array().cast("array<int>")).alias(name)
        return F.coalesce(F.col(name), F.lit(0).cast(rows.schema[name].dataType)).alias(name)

    return rows.select(*(column(name) for name in rows.columns))


def data_files(spark: SparkSession, hadoop: HadoopFiles, root: str, part: str) -> tuple[DataFile, ...]:
    """Every Parquet file of a part with its rows by row group, its size and its SHA-256 (computed by the cluster)."""
    found = [status for status in hadoop.glob(join(root, part)) if status.url.endswith(".parquet")]
    if not found:
        return ()
    read_back = spark.read.format("binaryFile").load([status.url for status in found])
    # Collected: one short row a file, as many as the manifest lists.
    digests = {
        _name(row.path): row.sha256
        for row in read_back.select("path", F.sha2("content", 256).alias("sha256")).collect()
    }
    return tuple(
        DataFile(
            path=f"{part}/{_name(status.url)}",
            bytes=status.bytes,
            sha256=digests[_name(status.url)],
            row_groups=hadoop.row_groups(status.url),
        )
        for status in found
    )


def _name(url: str) -> str:
    return url.rsplit("/", 1)[-1]
