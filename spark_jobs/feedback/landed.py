"""What was landed of responses and actions: the files, what each holds, and their rows without what a model saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.errors import UserError
from schemas.event_store import SourceFile
from schemas.feedback_state import ShownFile
from schemas.served import Kind
from schemas.storage import join
from spark_jobs.hadoop_files import FileStatus, HadoopFiles
from spark_jobs.sources import plain_url
from spark_jobs.transforms.event_days import DAY, DAY_MS, in_days, name_of

# Of schemas.served, what becomes of an event; features are most of a file's bytes, and stay unread.
_ITEM = "struct<item_id: string, position: int, propensity: double>"
_COLUMNS: dict[Kind, str] = {
    "impressions": f"request_id string, time_ms bigint, user_id string, context string, items array<{_ITEM}>, "
    "fallback string",
    "actions": "action_id string, request_id string, item_id string, user_id string, action string, value double, "
    "time_ms bigint",
}


def find_landed(hadoop: HadoopFiles, landed: str, kind: Kind) -> list[FileStatus]:
    """The landed files of a kind. UserError where there are no impressions at all; there may be no actions yet."""
    url = join(landed, kind, "day=*/*.parquet")
    files = [file for file in hadoop.glob(url) if file.bytes]
    if not files and kind == "impressions":
        raise UserError(f"no impressions at {url}: run `headrace land` first, or give its folder with --landed.")
    return files


def read_landed(spark: SparkSession, kind: Kind, files: Sequence[str], days: Collection[str] | None) -> DataFrame:
    """Rows of these days (None: all) out of these files, with `day`, days since 1970 of their time (UTC)."""
    rows = spark.read.schema(_COLUMNS[kind])
    table = rows.parquet(*files) if files else spark.createDataFrame([], _COLUMNS[kind])
    dated = table.withColumn(DAY, F.floor(F.col("time_ms") / F.lit(DAY_MS)).cast("int"))
    return dated.where(in_days(days))


def count_impressions(spark: SparkSession, files: Sequence[FileStatus]) -> tuple[tuple[ShownFile, ...], int]:
    """The files with their responses and items by day, and the time of the latest response."""
    days, items, latest_ms = _counted(spark, "impressions", files, F.coalesce(F.size("items"), F.lit(0)))
    counted = tuple(
        ShownFile(
            url=file.url,
            bytes=file.bytes,
            modified_ms=file.modified_ms,
            days=days[file.url],
            items=items[file.url],
        )
        for file in files
    )
    return counted, latest_ms


def count_actions(spark: SparkSession, files: Sequence[FileStatus]) -> tuple[tuple[SourceFile, ...], int]:
    """The files with their actions by day, and the time of the latest action."""
    days, _, latest_ms = _counted(spark, "actions", files, F.lit(0))
    counted = tuple(
        SourceFile(url=file.url, bytes=file.bytes, modified_ms=file.modified_ms, days=days[file.url]) for file in files
    )
    return counted, latest_ms


def _counted(
    spark: SparkSession, kind: Kind, files: Sequence[FileStatus], inside: Column
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]], int]:
    rows: dict[str, dict[str, int]] = defaultdict(dict)
    within: dict[str, dict[str, int]] = defaultdict(dict)
    latest_ms = 0
    if not files:
        return rows, within, latest_ms
    table = read_landed(spark, kind, [file.url for file in files], None)
    table = table.select(F.col("_metadata.file_path").alias("file"), "time_ms", DAY, inside.alias("inside"))
    counts = table.groupBy("file", DAY).agg(
        F.count("*").alias("rows"), F.sum("inside").alias("inside"), F.max("time_ms").alias("last")
    )
    for row in counts.collect():  # as many as the manifest lists: files by days
        rows[plain_url(row["file"])][name_of(row[DAY])] = row["rows"]
        within[plain_url(row["file"])][name_of(row[DAY])] = row["inside"]
        latest_ms = max(latest_ms, row["last"] or 0)
    return rows, within, latest_ms
