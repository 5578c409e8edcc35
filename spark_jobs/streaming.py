"""Taking files in as they arrive: Structured Streaming finds them, and each batch is one run of ingest.

A batch that is played again, after a kill between a version and the stream's own note of it, changes nothing: the
manifest knows its files. So every file is taken in exactly once, and the checkpoint may be deleted at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyspark.sql import DataFrame, SparkSession

from schemas.contract import Table
from schemas.errors import UserError
from schemas.storage import join
from spark_jobs.sources import plain_url

TakeIn = Callable[[tuple[str, ...]], None]


def watch(
    spark: SparkSession,
    table: Table,
    raw: str,
    checkpoint: str,
    take_in: TakeIn,
    *,
    once: bool,
    every_s: float,
    files_per_batch: int,
) -> None:
    """Give `take_in` the files of a table as they appear below `raw`, in batches; with `once`, those there are.

    Raises what `take_in` raises; UserError for a source that is no files.
    """
    if not table.source.is_files:
        raise UserError(f"events: a source of format {table.source.format} cannot be watched, only files can.")
    # binaryFile names files without reading them, where no content is asked for.
    arriving = (
        spark.readStream.format("binaryFile")
        .schema("path string, modificationTime timestamp, length bigint, content binary")
        .option("maxFilesPerTrigger", str(files_per_batch))
        .load(join(raw, table.source.path))
        .select("path")
    )
    failures: list[Exception] = []

    def batch(found: DataFrame, number: int) -> None:
        try:
            take_in(_names(found))
        except Exception as error:
            failures.append(error)  # Spark would wrap it, and the user's mistake is one line
            raise

    writer = arriving.writeStream.foreachBatch(batch).option("checkpointLocation", checkpoint)
    writer = writer.trigger(availableNow=True) if once else writer.trigger(processingTime=f"{every_s} seconds")
    query = writer.start()
    try:
        query.awaitTermination()
    except Exception:
        if failures:
            raise failures[0] from None
        raise
    finally:
        query.stop()


def _names(found: DataFrame) -> tuple[str, ...]:
    rows: Sequence[object] = [row["path"] for row in found.distinct().collect()]  # as many as a batch has files
    return tuple(sorted(plain_url(str(path)) for path in rows))
