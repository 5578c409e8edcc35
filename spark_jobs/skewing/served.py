"""What a release served, out of the landed log: a sample of its requests, and every feature that it logged of them."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from schemas.errors import UserError
from schemas.storage import join
from spark_jobs.hadoop_files import HadoopFiles

REQUEST = -1
"""The place of what is known of the request; items shown have their position, from 0 on."""
PER_USER = 20
"""Requests of one user at most: each is replayed with all of the user's events, and who has many of one has many of
the other."""


def read_impressions(spark: SparkSession, landed: str) -> DataFrame:
    """The landed impressions; UserError where there are none."""
    folder = join(landed, "impressions")
    hadoop = HadoopFiles(spark)
    if not hadoop.exists(folder) or not any(url.endswith(".parquet") for url in hadoop.files_below(folder)):
        raise UserError(f"{folder} holds no Parquet files: give --landed the folder that `headrace land` wrote.")
    return spark.read.parquet(folder)


def sample_requests(impressions: DataFrame, generation: str, max_requests: int) -> DataFrame:
    """At most so many requests that this release's models answered, and PER_USER of a user: those whose ids hash
    lowest, so always the same.

    UserError naming the generations that there are, where none is of this one.
    """
    answered = impressions.where((F.col("generation") == generation) & F.col("fallback").isNull())
    answered = answered.where(F.length("features") > 2)
    # Chosen by ids alone, so that of a long log only the sample is shuffled with its features.
    order = (F.xxhash64("request_id"), F.col("request_id"))
    ids = answered.groupBy("request_id").agg(F.min("user_id").alias("user_id"))
    of_user = ids.withColumn("rank", F.row_number().over(Window.partitionBy("user_id").orderBy(*order)))
    ids = of_user.where(F.col("rank") <= PER_USER).orderBy(*order).limit(max_requests).select("request_id")
    chosen = answered.join(F.broadcast(ids), on="request_id", how="left_semi").dropDuplicates(["request_id"]).persist()
    if chosen.isEmpty():
        found = [row[0] for row in impressions.select("generation").distinct().orderBy("generation").limit(5).collect()]
        raise UserError(
            f"no request that was logged with features is of generation {generation!r}; the log has "
            f"{', '.join(map(repr, found)) or 'none'}. Land the logs that it wrote, or give its own --release."
        )
    return chosen


def shown_rows(requests: DataFrame) -> DataFrame:
    """One row per item shown, and one for a request that showed none: request_id, place, item_id, request and item
    features as JSON."""
    shown = requests.select("*", F.posexplode_outer("items").alias("place", "shown"))
    return shown.select(
        "request_id",
        "user_id",
        "time_ms",
        "context",
        F.col("features").alias("request_features"),
        F.coalesce("place", F.lit(0)).alias("place"),
        F.col("shown.item_id").alias("item_id"),
        F.coalesce("shown.features", F.lit("{}")).alias("item_features"),
    )


def served_features(shown: DataFrame) -> DataFrame:
    """request_id, place (REQUEST for those of the request), feature, served: its numbers as a list, a scalar as one."""
    of_request = shown.where(F.col("place") == 0).select(
        "request_id", F.lit(REQUEST).alias("place"), _parsed("request_features")
    )
    of_items = shown.select("request_id", "place", _parsed("item_features"))
    each = of_request.unionByName(of_items).select("request_id", "place", F.explode("known").alias("feature", "text"))
    is_list = F.startswith(F.col("text"), F.lit("["))
    numbers = F.from_json("text", "array<double>")
    return each.select(
        "request_id", "place", "feature",
        F.when(is_list, numbers).otherwise(F.array(F.expr("try_cast(text AS DOUBLE)"))).alias("served"),
    )  # fmt: skip


def _parsed(column: str) -> Column:
    """Values stay JSON text: numbers and lists of numbers are told apart afterwards."""
    return F.from_json(column, "map<string,string>").alias("known")
