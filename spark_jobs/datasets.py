"""Reading and writing tables: lines of raw text in, Parquet in and out. The one place that does either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from schemas.manifest import DataFile
from schemas.storage import join
from spark_jobs.hadoop_files import HadoopFiles

STAGING = "rows"  # where the files of several splits lie until each is in its split's folder
_FILES_AT_ONCE = 8  # read for their checksums
_MIN_ROW_GROUP_ROWS, _MAX_ROW_GROUP_ROWS = 1 << 10, 1 << 17


def read_lines(spark: SparkSession, files: Sequence[str]) -> DataFrame:
    """One row per physical line: `line` (its bytes as they are, also where they are no UTF-8) and `file`."""
    text = spark.read.text(list(files))
    return text.select(F.col("value").alias("line"), F.col("_metadata.file_path").alias("file"))


def read_part(spark: SparkSession, root: str, files: Sequence[DataFile], schema: StructType) -> DataFrame:
    """A part of a published folder, by the files that its manifest names and no others.

    Files written under an earlier contract are read with this schema: a column that they lack is null, and int32 and
    float32 are widened to what the schema says.
    """
    if not files:
        return spark.createDataFrame([], schema)
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


@dataclass(frozen=True, kw_only=True)
class SplitLayout:
    """How many files a split gets, and how many rows a row group holds at most."""

    num_files: int
    rows_per_row_group: int


def write_training_layout(
    rows: DataFrame, hadoop: HadoopFiles, root: str, *, order: Column, layouts: Mapping[str, SplitLayout]
) -> None:
    """Write splits for the feed, all in one job: non-null columns as REQUIRED, LZ4, no dictionary, in a random order.

    In: one row per event with `split`, one of `layouts`, which have the same rows per row group. `order` is a
    pseudo-random number a row: a file is drawn by it and sorted by it, so every file is a random sample of its
    split, and the same rows give the same files whatever the cluster.
    """
    first_file = dict(zip(layouts, accumulate((one.num_files for one in layouts.values()), initial=0), strict=False))
    file = F.lit(None).cast("int")
    for split, layout in layouts.items():
        drawn = F.lit(first_file[split]) + F.pmod(F.col("_order"), F.lit(layout.num_files)).cast("int")
        file = F.when(F.col("split") == split, drawn).otherwise(file)
    num_files = sum(layout.num_files for layout in layouts.values())
    (rows_per_row_group,) = {layout.rows_per_row_group for layout in layouts.values()}
    placed = required(rows.drop("split")).columns
    shuffled = rows.withColumn("_order", order).withColumn("_file", file).repartitionById(num_files, F.col("_file"))
    folders = [split for split, layout in layouts.items() for _ in range(layout.num_files)]
    settings = {
        "compression": "lz4_raw",
        "parquet.enable.dictionary": "false",
        "parquet.block.row.count.limit": str(rows_per_row_group),
    }
    _write_partitions(
        required(shuffled.sortWithinPartitions("_order").select(*placed)), hadoop, root, folders, settings
    )


def write_tables(rows: DataFrame, hadoop: HadoopFiles, root: str, parts: Sequence[str]) -> None:
    """Write small tables of one schema in one job: partition i of `rows` becomes the one file of the i-th part."""
    _write_partitions(rows, hadoop, root, parts, {"compression": "zstd"})


def _write_partitions(
    rows: DataFrame, hadoop: HadoopFiles, root: str, folders: Sequence[str], settings: Mapping[str, str]
) -> None:
    """Write each partition as a file of the folder of its number; a folder whose partitions are empty stays empty."""
    staging = join(root, STAGING)
    rows.write.mode("error").options(**settings).parquet(staging)
    # Spark puts a partition's number into its file's name. An object store copies each file once here.
    for folder in dict.fromkeys(folders):
        hadoop.make_folder(join(root, folder))
    for status in hadoop.glob(staging):
        number = int(_name(status.url).split("-")[1])
        hadoop.rename(status.url, join(root, folders[number], _name(status.url)))
    hadoop.delete_folder(staging)


def required(rows: DataFrame) -> DataFrame:
    """The columns as non-null ones, which Parquet stores as REQUIRED and the feed reads without a copy.

    None of them holds a null: encoders map null to an index or to the mean. 0 here only tells Spark so.
    """

    def column(name: str) -> Column:
        kind = rows.schema[name].dataType.typeName()
        if kind == "array":
            whole = F.transform(name, lambda value: F.coalesce(value, F.lit(0)))
            return F.coalesce(whole, F.array().cast("array<int>")).alias(name)
        nothing = F.lit("").cast(kind) if kind == "binary" else F.lit(0).cast(rows.schema[name].dataType)
        return F.coalesce(F.col(name), nothing).alias(name)

    return rows.select(*(column(name) for name in rows.columns))


def data_files(hadoop: HadoopFiles, root: str, parts: Sequence[str]) -> dict[str, tuple[DataFile, ...]]:
    """By part, its Parquet files with their rows by row group, sizes and SHA-256."""
    paths = {
        part: [f"{part}/{_name(s.url)}" for s in hadoop.glob(join(root, part)) if s.url.endswith(".parquet")]
        for part in parts
    }
    found = {file.path: file for file in data_files_at(hadoop, root, [p for of in paths.values() for p in of])}
    return {part: tuple(found[path] for path in of) for part, of in paths.items()}


def data_files_at(hadoop: HadoopFiles, root: str, paths: Sequence[str]) -> tuple[DataFile, ...]:
    """The Parquet files at these paths below `root`, in their order."""
    if not paths:
        return ()

    def data_file(path: str) -> DataFile:
        size, sha256 = hadoop.size_and_sha256(join(root, path))
        return DataFile(path=path, bytes=size, sha256=sha256, row_groups=hadoop.row_groups(join(root, path)))

    # Streamed through the driver's JVM: Spark's binaryFile would hold each file in an executor's memory as a whole.
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        return tuple(pool.map(data_file, paths))


def _name(url: str) -> str:
    return url.rsplit("/", 1)[-1]
