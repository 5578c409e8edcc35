"""A little of all that jobs do: under -XX:ArchiveClassesAtExit Java writes the classes that it loads to an archive.

With it every job starts some seconds sooner. Java looks at the class path and at itself before it uses an archive, and
loads classes as ever where they are others than here.
"""

from __future__ import annotations

import tempfile

from pyspark.sql import SparkSession, Window
from pyspark.sql import functions as F


def work(folder: str) -> None:
    spark = SparkSession.builder.getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    lines = spark.range(1000).select(F.concat_ws("\t", "id", F.col("id") % 7, F.xxhash64("id")).alias("value"))
    lines.write.text(f"{folder}/lines")
    parts = F.split("value", "\t")
    rows = spark.read.text(f"{folder}/lines").select(
        *(F.element_at(parts, i + 1).try_cast(kind).alias(name) for i, (name, kind) in enumerate(
            (("id", "long"), ("group", "int"), ("number", "double"))))
    )  # fmt: skip
    rows.write.option("compression", "zstd").parquet(f"{folder}/rows")
    rows = spark.read.parquet(f"{folder}/rows").persist()
    latest = Window.partitionBy("group").orderBy(F.desc("number"))
    counts = rows.groupBy("group").agg(F.count("*").alias("count"), F.collect_list("id").alias("ids"))
    joined = rows.join(F.broadcast(counts), on="group", how="left").withColumn("place", F.row_number().over(latest))
    ordered = joined.repartitionById(2, (F.col("id") % 2).cast("int")).sortWithinPartitions("number")
    ordered.write.option("compression", "lz4_raw").parquet(f"{folder}/ordered")
    spark.read.parquet(f"{folder}/ordered").agg(F.sum("place"), F.approx_count_distinct("id")).collect()
    spark.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        work(scratch)
