"""Feature by feature, what was served against what the batch features give the same request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType

from schemas.drift import Difference, FeatureSkew
from schemas.features import Feature
from spark_jobs.profiling.sketches import finite
from spark_jobs.skewing.served import REQUEST

EXAMPLES, SHOWN_NUMBERS = 5, 12


def compare_features(
    served: DataFrame, batch: DataFrame, features: Sequence[Feature], *, tolerance: float, max_share: float
) -> tuple[FeatureSkew, ...]:
    """One per feature that was served, the worst first.

    In: rows of `served_features`, and of the replay. Whole numbers and lists of them must be equal; others may differ
    by `tolerance` of the batch's value (of 1 where that is smaller). A feature that was served at all is compared for
    every request, or every item shown: where one side lacks it, it is different.
    """
    known = {feature.name: feature for feature in features}
    at_request = (F.col("place") == REQUEST).alias("at_request")
    grains = served.select("feature", at_request).distinct()
    given = _batch_features(batch, [feature for name, feature in known.items() if name in batch.columns])
    given = given.withColumn("at_request", at_request).join(
        F.broadcast(grains), on=["feature", "at_request"], how="left_semi"
    )
    about = batch.select("request_id", "user_id", "event_time_ms").dropDuplicates(["request_id"])
    paired = served.join(given, on=["request_id", "place", "feature"], how="full_outer")
    floats = [name for name, feature in known.items() if feature.dtype == "float32"]
    slack = F.when(F.col("feature").isin(floats), F.lit(tolerance)).otherwise(F.lit(0.0))
    judged = paired.withColumn("differs", _differs(slack)).withColumn("by", _largest()).persist()
    sums = judged.groupBy("feature").agg(
        F.count("*").alias("compared"), F.count_if("differs").alias("different"), F.max("by").alias("largest")
    )
    first = Window.partitionBy("feature").orderBy(F.xxhash64("request_id"), "request_id", "place")
    examples = judged.where("differs").withColumn("rank", F.row_number().over(first)).where(F.col("rank") <= EXAMPLES)
    told = examples.join(about, on="request_id", how="inner").orderBy("feature", "rank")
    by_feature: dict[str, list[Difference]] = {}
    for row in told.collect():
        shown = Difference(
            request_id=row["request_id"],
            user_id=row["user_id"],
            time_ms=row["event_time_ms"],
            served=_text(row["served"]),
            batch=_text(row["batch"]),
        )
        by_feature.setdefault(row["feature"], []).append(shown)
    found = [
        FeatureSkew(
            feature=row["feature"],
            compared=row["compared"],
            different=row["different"],
            largest=row["largest"],
            examples=tuple(by_feature.get(row["feature"], ())),
        )
        for row in sums.collect()
    ]
    judged.unpersist()
    return tuple(sorted(found, key=lambda skew: (skew.least_share <= max_share, -skew.share, skew.feature)))


def batch_values(batch: DataFrame, names: Sequence[str]) -> Mapping[str, Column]:
    """Each feature's column as a list of doubles."""
    types = {field.name: field.dataType for field in batch.schema.fields}
    return {
        name: F.col(name).cast("array<double>")
        if isinstance(types[name], ArrayType)
        else F.array(F.col(name).cast("double"))
        for name in names
    }


def _batch_features(batch: DataFrame, features: Sequence[Feature]) -> DataFrame:
    """request_id, place, feature, batch: for each item shown, and once for the request."""
    values = batch_values(batch, [feature.name for feature in features])
    pairs = [F.struct(F.lit(name).alias("feature"), value.alias("batch")) for name, value in values.items()]
    # A row is that of its item, if any; the first one's is that of the request too.
    own = F.when(F.col("item_id").isNotNull(), F.col("place"))
    places = F.array_compact(F.array(own, F.when(F.col("place") == 0, F.lit(REQUEST))))
    each = batch.withColumn("place", F.explode(places))
    each = each.select("request_id", "place", F.explode(F.array(*pairs)).alias("known"))
    return each.select("request_id", "place", "known.feature", "known.batch")


def _differs(slack: Column) -> Column:
    served, batch = F.col("served"), F.col("batch")
    missing = served.isNull() | batch.isNull() | (F.size(served) != F.size(batch))

    def is_close(one: Column, other: Column) -> Column:
        close = F.abs(one - other) <= slack * F.greatest(F.lit(1.0), F.abs(other))
        # Of what is no finite number only the same one is close.
        return F.coalesce((one == other) | (close & (F.abs(other) < float("inf"))), one.isNull() & other.isNull())

    same = F.forall(F.zip_with(served, batch, is_close), lambda each: each)
    return missing | ~F.coalesce(same, F.lit(False))


def _largest() -> Column:
    """Null where a side has no number, or no finite one, which JSON cannot name."""
    return F.array_max(F.zip_with("served", "batch", lambda one, other: finite(F.abs(one - other))))


def _text(values: Sequence[float] | None) -> str:
    if values is None:
        return "missing"
    texts = ["null" if value is None else f"{value:.9g}" for value in values]
    if len(texts) == 1:
        return texts[0]
    return f"[{', '.join(texts[:SHOWN_NUMBERS])}{', ...' if len(texts) > SHOWN_NUMBERS else ''}]"
