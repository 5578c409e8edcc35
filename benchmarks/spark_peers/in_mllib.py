"""PySpark with MLlib, as its documentation has it: Imputer, VectorAssembler, StandardScaler, StringIndexer.

StringIndexer has no threshold, so the frequent values are counted first, and each column's StringIndexerModel is made
from them; to fit one instead would bring every value of the log to the driver. One model for all columns, by
`from_arrays_of_labels`, is slower to make: PySpark 4.3 fills every column up to the longest, a call to the JVM a label
(and numbers the unseen value of every column after the longest column's labels).
"""

from __future__ import annotations

import os
from pathlib import Path

from pyspark.ml import Estimator, Pipeline, PipelineModel, Transformer
from pyspark.ml.feature import Imputer, StandardScaler, StringIndexerModel, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.spark_peers import job
from benchmarks.spark_peers.job import Phases

_SHARE_OF_MEMORY = 0.7  # of which the heap is made; the JVM's own memory and Python take the rest
_ROWS_PER_SHUFFLE_PARTITION = 500_000
_HOUR_MS = 3_600_000


def session(memory_mb: int, scratch: Path) -> SparkSession:
    spark = (
        SparkSession.builder.appName("mllib")
        .master(f"local[{len(os.sched_getaffinity(0))}]")
        .config("spark.driver.memory", f"{round(memory_mb * _SHARE_OF_MEMORY)}m")
        .config("spark.local.dir", str(scratch))
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def cuts(log: DataFrame, num_rows: int) -> list[int]:
    """The first moments of valid and of test: the hour that each lies in first, then its rows in order."""
    hour = F.floor(F.col("time_ms") / _HOUR_MS).alias("hour")
    hours = log.groupBy(hour).count().orderBy("hour").collect()
    found = []
    for share in job.SHARES_BEFORE:
        before, wanted = 0, job.rank_of_cut(share, num_rows)
        inside = next(row["hour"] for row in hours if (before := before + row["count"]) >= wanted)
        before -= next(row["count"] for row in hours if row["hour"] == inside)
        first = inside * _HOUR_MS
        times = log.where((F.col("time_ms") >= first) & (F.col("time_ms") < first + _HOUR_MS)).select("time_ms")
        found.append(times.orderBy("time_ms").offset(wanted - before - 1).limit(1).collect()[0]["time_ms"] + 1)
    return found


def vocabulary(train: DataFrame, column: str) -> DataFrame:
    """value, idx, count."""
    counts = train.where(F.col(column).isNotNull()).groupBy(F.col(column).alias("value")).count()
    frequent = counts.where(F.col("count") >= job.MIN_COUNT).withColumn("value", F.col("value").cast("string"))
    in_order = frequent.repartition(1).sortWithinPartitions(F.desc("count"), "value")
    idx = (F.monotonically_increasing_id() + job.FIRST_IDX).cast("int")
    return in_order.select("value", idx.alias("idx"), "count")


def scaling(train: DataFrame) -> tuple[PipelineModel, dict[str, float]]:
    """What standardises the numbers, and by how much its spread is too small: it sees means in the place of nulls."""
    logs, whole = [f"{i}_log" for i in job.NUMBERS], [f"{i}_whole" for i in job.NUMBERS]
    stages: list[Estimator | Transformer] = [
        Imputer(inputCols=logs, outputCols=whole),
        VectorAssembler(inputCols=whole, outputCol="whole"),
        StandardScaler(inputCol="whole", outputCol="scaled", withMean=True, withStd=True),
    ]
    fitted = Pipeline(stages=stages).fit(with_logs(train))
    known = train.agg(F.count("*").alias("rows"), *(F.count(i).alias(i) for i in job.NUMBERS)).collect()[0]
    return fitted, {i: (known[i] / known["rows"]) ** 0.5 for i in job.NUMBERS}


def indexing(labels: dict[str, list[str]]) -> list[StringIndexerModel]:
    return [
        StringIndexerModel.from_labels(of_column, inputCol=c, outputCol=f"{c}_indexed", handleInvalid="keep")
        for c, of_column in labels.items()
    ]


def with_logs(rows: DataFrame) -> DataFrame:
    return rows.withColumns({f"{i}_log": F.log1p(i) for i in job.NUMBERS})


def encoded(
    rows: DataFrame, pipeline: PipelineModel, labels: dict[str, list[str]], spread: dict[str, float]
) -> DataFrame:
    found = pipeline.transform(with_logs(rows)).withColumn("scaled", vector_to_array(F.col("scaled")))
    numbers = [
        F.when(F.col(i).isNull(), 0.0).otherwise(F.col("scaled")[place] * spread[i]).cast("float").alias(i)
        for place, i in enumerate(job.NUMBERS)
    ]
    values = [
        F.when(F.col(c).isNull(), job.NULL_IDX)
        .when(F.col(f"{c}_indexed") == len(labels[c]), job.UNSEEN_IDX)
        .otherwise(F.col(f"{c}_indexed") + job.FIRST_IDX)
        .cast("int")
        .alias(c)
        for c in job.VALUES
    ]
    return found.select("row_id", "time_ms", F.col("label").cast("float").alias("label"), *numbers, *values)


def write(rows: DataFrame, folder: Path, num_rows: int) -> None:
    files = job.num_files(num_rows)
    order = F.xxhash64(F.col("row_id"), F.lit(job.SEED))
    (
        rows.repartition(files, order)
        .sortWithinPartitions(order)
        .write.option("compression", "lz4_raw")
        .option("parquet.enable.dictionary", "false")
        .option("parquet.block.row.count.limit", str(job.ROWS_PER_ROW_GROUP))
        .parquet(str(folder))
    )


def main() -> None:
    given = job.arguments(__doc__ or "")
    phase = Phases(given.out)
    with phase("start"):
        spark = session(given.memory_mb, given.scratch)
        log = spark.read.parquet(str(given.events))
        num_rows = log.count()
    spark.conf.set("spark.sql.shuffle.partitions", str(max(4, num_rows // _ROWS_PER_SHUFFLE_PARTITION)))
    with phase("fit"):
        valid_ms, test_ms = cuts(log, num_rows)
        train = log.where(F.col("time_ms") < valid_ms)
        scaler, spread = scaling(train)
    labels = {}
    for c in job.VALUES:
        folder = str(given.out / "vocab" / c)
        with phase("vocabularies"):
            vocabulary(train, c).write.parquet(folder)
        with phase("labels"):
            labels[c] = [row["value"] for row in spark.read.parquet(folder).orderBy("idx").select("value").collect()]
    with phase("labels"):
        model = PipelineModel([*scaler.stages, *indexing(labels)])
    time_ms = F.col("time_ms")
    splits = {
        "train": train,
        "valid": log.where((time_ms >= valid_ms) & (time_ms < test_ms)),
        "test": log.where(time_ms >= test_ms),
    }
    for split, rows in splits.items():
        with phase(split):
            write(encoded(rows, model, labels, spread), given.out / split, rows.count())
    spark.stop()


if __name__ == "__main__":
    main()
