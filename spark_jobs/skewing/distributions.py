"""The served and the batch values of each feature as the two sides of a comparison: by the measures of drift."""

from __future__ import annotations

from collections.abc import Collection

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.features import Feature, ListFeature
from schemas.snapshot import Snapshot
from spark_jobs.drifting.comparison import observe
from spark_jobs.drifting.pairs import pair_of
from spark_jobs.drifting.sides import CLUSTER, Side, feature_values
from spark_jobs.drifting.verdicts import Observed
from spark_jobs.skewing.served import REQUEST


def observe_sides(
    spark: SparkSession, snapshot: Snapshot, served: DataFrame, batch: DataFrame, features: Collection[str]
) -> list[Observed]:
    """These features, as far as they were served: of requests by request, of items by item shown. The batch is the
    reference."""
    if not features:
        return []
    places = served.where(F.col("feature").isin(*features)).groupBy("feature").agg(F.min("place").alias("place"))
    # Collected: a row a feature.
    grains = {row["feature"]: row["place"] for row in places.collect()}
    known = {feature.name: feature for feature in snapshot.transform.features if feature.name in batch.columns}
    observed = []
    for of_request in (True, False):
        names = [
            n for n, place in grains.items() if n in known and (place == REQUEST) == of_request and n != "user_idx"
        ]
        if names:
            rows = batch.where(F.col("place") == 0 if of_request else F.col("item_id").isNotNull())
            rows = rows.withColumn("place", F.lit(REQUEST)) if of_request else rows
            sides = [
                _side(snapshot, "batch", rows, names, known),
                _side(snapshot, "served", _wide(served, rows, names, known), names, known),
            ]
            observed += observe(spark, pair_of(spark, *sides))[0]
    return observed


def _side(snapshot: Snapshot, name: str, rows: DataFrame, names: list[str], known: dict[str, Feature]) -> Side:
    return Side(
        name=name,
        rows=rows.withColumn(CLUSTER, F.xxhash64("user_id")),
        columns={feature: feature_values(known[feature]) for feature in names},
        is_clustered=True,
        snapshot=snapshot,
        transform=snapshot.transform,
    )


def _wide(served: DataFrame, rows: DataFrame, names: list[str], known: dict[str, Feature]) -> DataFrame:
    """One row per request or item shown, with each feature in the type of the batch's column."""
    by_name = (
        served.where(F.col("feature").isin(names))
        .groupBy("request_id", "place")
        .agg(F.map_from_entries(F.collect_list(F.struct("feature", "served"))).alias("known"))
    )
    columns = []
    for name in names:
        values, kind = F.col("known")[name], "int" if known[name].dtype == "int32" else "float"
        typed = (
            values.cast(f"array<{kind}>")
            if isinstance(known[name], ListFeature)
            else F.get(values, F.lit(0)).cast(kind)
        )
        columns.append(typed.alias(name))
    who = rows.select("request_id", "place", "user_id")
    return by_name.join(who, on=["request_id", "place"], how="inner").select("user_id", *columns)
