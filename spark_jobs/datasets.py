"""Reading and writing tables of published folders as Parquet: the one place that does either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from schemas.manifest import DataFile
from schemas.storage import join
from spark_jobs.hadoop_files import HadoopFiles

STAGING = "rows"  # where the files of several splits lie until each is in its split's folder
_FILES_AT_ONCE = 8  # read for their checksums


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


def write_tables(rows: DataFrame, hadoop: HadoopFiles, root: str, parts: Sequence[str]) -> None:
    """Write small tables of one schema in one job: partition i of `rows` becomes the one file of the i-th part."""
    write_partitions(rows, hadoop, root, parts, {"compression": "zstd"})


def write_partitions(
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
