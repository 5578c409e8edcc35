"""The one place that makes the SparkSession."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyspark.sql import SparkSession

# Output must not depend on a site's defaults: these settings are part of what a job promises.
_PROMISES = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.adaptive.enabled": "true",
}
_FASTER = {
    # Stages that do the same share their compiled code: columns of a kind are counted by one method, compiled once.
    "spark.sql.codegen.useIdInClassName": "false",
    # Values that a task counts in place before it falls back on a slower map: a million where Spark has 65,536.
    "spark.sql.codegen.aggregate.fastHashMap.capacityBit": "20",
}
_BYTES_PER_SHUFFLE_PARTITION = 64 << 20


def spark_session(name: str) -> SparkSession:
    """The session of this job. Master, memory, partitions and jars are spark-submit's to set; its default is local[*].

    Only the promises are set on the builder: it knows nothing of spark-submit's settings, so a default set there would
    win over them. What is only faster is set afterwards, where nobody has said otherwise.
    """
    builder = SparkSession.builder.appName(f"headrace {name}")
    for key, value in _PROMISES.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    given = spark.sparkContext.getConf()
    for key, value in _FASTER.items():
        if not given.contains(key):
            spark.conf.set(key, value)
    return spark


def size_shuffles(spark: SparkSession, input_bytes: int) -> None:
    """Fit the number of shuffle partitions to the input, unless spark-submit set it: Spark's 200 are slow for a
    small log and too few for a large one, and adaptive execution can only merge partitions."""
    if not spark.sparkContext.getConf().contains("spark.sql.shuffle.partitions"):
        partitions = max(spark.sparkContext.defaultParallelism, -(-input_bytes // _BYTES_PER_SHUFFLE_PARTITION))
        spark.conf.set("spark.sql.shuffle.partitions", str(partitions))


@contextmanager
def step(spark: SparkSession, name: str) -> Iterator[None]:
    """Name the Spark jobs started inside, for the UI and the history server, and on the terminal above Spark's bar.

    The bar is the sign of a terminal (see pipelines/launch.py): Python's own output is a pipe of spark-submit here.
    """
    context: Any = spark.sparkContext
    before = context.getLocalProperty("spark.job.description")
    context.setJobDescription(name)
    if context.getConf().get("spark.ui.showConsoleProgress") == "true":
        jvm: Any = spark._jvm
        jvm.System.err.println(f"{context.appName.removeprefix('headrace ')}: {name} ...")
    try:
        yield
    finally:
        context.setLocalProperty("spark.job.description", before)


@contextmanager
def settings_of(spark: SparkSession, wanted: Mapping[str, str]) -> Iterator[None]:
    """Spark settings for as long as this lasts."""
    before = {key: spark.conf.get(key, None) for key in wanted}
    for key, value in wanted.items():
        spark.conf.set(key, value)
    try:
        yield
    finally:
        for key, old in before.items():
            if old is None:
                spark.conf.unset(key)
            else:
                spark.conf.set(key, old)
