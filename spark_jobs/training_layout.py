"""The layout that ranks read: every split's rows in a random order, in files that are random samples of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_jobs.datasets import write_partitions
from spark_jobs.hadoop_files import HadoopFiles
from spark_jobs.packing import packing

_MIN_ROW_GROUP_ROWS, _MAX_ROW_GROUP_ROWS = 1 << 10, 1 << 17
_ROW_GROUPS, _ROW_GROUPS_PER_RANK = 64, 8
_FILE_HOLDS_ROW_GROUPS = 4
"""So that a task sorts its file in memory: half a million rows of forty columns are 100 MB."""


def row_group_rows(rows: int, *, ranks: int = 1, batch_size: int = 0) -> int:
    """Rows of a row group: so many that there are about 64 of them, and 8 a rank, for shuffling and sharing out.

    A power of two from 1,024 to 131,072, so that a log of any size has a layout that does not depend on the cluster;
    or, where the batch of a rank is known, whole batches within these bounds, and one batch at least.
    """
    wanted = min(_MAX_ROW_GROUP_ROWS, max(1, rows // max(_ROW_GROUPS, _ROW_GROUPS_PER_RANK * ranks)))
    if batch_size:
        return batch_size * max(1, max(_MIN_ROW_GROUP_ROWS, wanted) // batch_size)
    return min(_MAX_ROW_GROUP_ROWS, max(_MIN_ROW_GROUP_ROWS, 1 << (wanted - 1).bit_length()))


@dataclass(frozen=True, kw_only=True)
class TrainingLayout:
    """How many files each split gets, and how many rows a row group holds at most."""

    num_files: Mapping[str, int]
    rows_per_row_group: int


def training_layout(counts: Mapping[str, int], *, rows_per_row_group: int, num_files: int = 0) -> TrainingLayout:
    """For splits of so many rows: files of four row groups, unless told how many files a split gets (`num_files`).

    Rows fall to files at random: four standard deviations are left free, so that no file needs a fifth, tiny group.
    """
    full = rows_per_row_group * _FILE_HOLDS_ROW_GROUPS
    rows_per_file = max(rows_per_row_group, full - 4 * math.isqrt(full))
    files = {split: num_files or max(1, math.ceil(count / rows_per_file)) for split, count in counts.items()}
    return TrainingLayout(num_files=files, rows_per_row_group=rows_per_row_group)


def write_training_layout(
    rows: DataFrame,
    hadoop: HadoopFiles,
    root: str,
    *,
    seed: int,
    layout: TrainingLayout,
    sizes: Mapping[str, int] | None = None,
) -> None:
    """Write splits for the feed, all in one job: non-null columns as REQUIRED, LZ4, no dictionary, in a random order.

    In: one row per event with `split`, one of those that `layout` knows, and `row_id`. A pseudo-random number a row,
    drawn from `row_id` and `seed`, says which file it is in and where, so every file is a random sample of its split,
    and the same rows give the same files whatever the cluster. `sizes`: the indices among the columns, and how many
    values each can have.
    """
    order = F.xxhash64("row_id", F.lit(seed))
    starts = accumulate(layout.num_files.values(), initial=0)
    file = F.lit(None).cast("int")
    for (split, count), start in zip(layout.num_files.items(), starts, strict=False):
        file = F.when(F.col("split") == split, F.lit(start) + F.pmod(order, F.lit(count)).cast("int")).otherwise(file)
    folders = [split for split, count in layout.num_files.items() for _ in range(count)]
    columns = [name for name in rows.columns if name != "split"]
    travelling = packing({**(sizes or {}), "_file": len(folders)})
    packed = travelling.pack(rows.withColumn("_file", file).drop("split"))
    shuffled = packed.repartitionById(len(folders), travelling.column("_file"))
    in_order = travelling.unpack(shuffled.sortWithinPartitions(order)).select(*columns)
    settings = {
        "compression": "lz4_raw",
        "parquet.enable.dictionary": "false",
        "parquet.block.row.count.limit": str(layout.rows_per_row_group),
        # No page every 20,000 rows: whoever reads a row group reads all of it.
        "parquet.page.row.count.limit": str(layout.rows_per_row_group),
        # Histograms of levels and sizes, which nobody here reads.
        "parquet.size.statistics.enabled": "false",
    }
    write_partitions(required(in_order), hadoop, root, folders, settings)


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
