"""Logged requests as rows of the batch pipeline: the same transforms, fitted as the release's snapshot was.

What a request may know is what the event store holds up to its moment: events of that moment or later, among them
those that came of the request itself, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from schemas.contract import Contract
from schemas.errors import UserError
from schemas.feature_set import FeatureSet, parts
from schemas.features import PastFeature
from schemas.settings import parse_model
from schemas.snapshot import Snapshot
from spark_jobs.datasets import read_part
from spark_jobs.fitted_tables import fitted_tables_of, history_shape_of
from spark_jobs.log import Log, read_log
from spark_jobs.spark_types import SPARK_TYPES, spark_schema
from spark_jobs.transforms.encoding import FittedTables, HistoryShape, encoded, look_ups, with_ids
from spark_jobs.transforms.histories import with_history
from spark_jobs.transforms.past import past_of, past_of_state
from spark_jobs.transforms.splits import SplitPolicy
from spark_jobs.transforms.versions import VALID_FROM, with_entity_columns

_STATE = "key string, tile bigint, rows bigint, labels double"


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The batch side: one row per item shown, or one without an item, with every feature's column; and the events that
    it was made of."""

    rows: DataFrame
    events: DataFrame


def replay(
    spark: SparkSession, snapshot: Snapshot, events: Snapshot, shown: DataFrame, from_item: Mapping[str, str]
) -> Replay:
    """In: rows of `shown_rows`. Out: request_id, place and the snapshot's features of each.

    `from_item`: columns of events that are copied from the item's row, by the items' column, as the feedback job does.
    """
    fitted, shape = fitted_tables_of(spark, snapshot), history_shape_of(snapshot)
    log = read_log(spark, events, _wanted(snapshot), _cuts(snapshot), seed=0)
    rows = _raw_rows(shown, log, from_item)
    rows = log.with_borrowed(_with_copied(spark, rows, events, from_item, log)).persist()
    past = {
        feature.name: _past(spark, snapshot, log.events, rows, feature)
        for feature in fitted.events.features
        if isinstance(feature, PastFeature)
    }
    entities = {}
    if log.users is not None and fitted.users.features:
        entities["user_id"] = log.users
    if log.items is not None and fitted.items.features:
        entities["item_id"] = log.items
    made = encoded(with_ids(rows, fitted), fitted, look_ups(log.events, entities, fitted, past=past))
    if shape is not None:
        histories = _histories(log.events, rows, fitted, shape)
        made = made.join(histories, on="request_id", how="left")
    names = [feature.name for feature in snapshot.transform.features if feature.name in made.columns]
    rows = made.select("request_id", "place", "user_id", "item_id", "event_time_ms", *names)
    return Replay(rows=rows, events=log.events)


def _wanted(snapshot: Snapshot) -> FeatureSet:
    described = snapshot.manifest.config.get("features")
    if described is None:
        raise UserError(f"{snapshot.url} does not say which features it was made of: prepare it with this release.")
    return parse_model(FeatureSet, described, where=f"{snapshot.url}: features")


def _cuts(snapshot: Snapshot) -> SplitPolicy:
    """By time, whatever the snapshot's own split: it decides only what features of folds count, which are looked up."""
    first = [int(snapshot.manifest.statistics[split]["first_event_time_ms"]) for split in ("valid", "test")]
    return SplitPolicy(kind="time", cuts_ms=(first[0], max(first)))


def _raw_rows(shown: DataFrame, log: Log, from_item: Mapping[str, str]) -> DataFrame:
    """Rows as read_log gives events: ids, time, the columns of the context."""
    own = {parts(source)[1]: name for source, name in log.columns["events"].items() if parts(source)[0] == "events"}
    present = {"user_id", "item_id", "event_time_ms", *from_item}
    wanted = {column: name for column, name in own.items() if name not in present}
    context = F.from_json("context", _context_schema(log.contract, wanted)) if wanted else F.lit(None)
    row_id = F.xxhash64("request_id", "place")
    rows = shown.select(
        "request_id", "place", "user_id", "item_id", F.col("time_ms").alias("event_time_ms"), row_id.alias("row_id"),
        F.lit("test").alias("split"), F.lit(None).cast("float").alias("label"), context.alias("_context"),
    )  # fmt: skip
    return rows.withColumns({name: F.col(f"_context.{column}") for column, name in wanted.items()}).drop("_context")


def _with_copied(
    spark: SparkSession, rows: DataFrame, events: Snapshot, from_item: Mapping[str, str], log: Log
) -> DataFrame:
    """Add what events copy from the item's row, as it was when the item was shown."""
    items = log.contract.items
    wanted = [name for name in from_item if f"events.{name}" in log.columns["events"]]
    if items is None or not wanted:
        return rows
    types = {column.name: SPARK_TYPES[column.type] for column in log.contract.events.columns}
    known = read_part(spark, events.url, events.files("items"), spark_schema(items)).select(
        F.col(items.key[0]).cast("string").alias("item_id"),
        *(F.col(column.name).alias(VALID_FROM) for column in items.with_role("valid_from")),
        *(F.col(from_item[name]).try_cast(types[name]).alias(name) for name in wanted),
    )
    return with_entity_columns(rows, known, key="item_id")


def _context_schema(contract: Contract, columns: dict[str, str]) -> T.StructType:
    types = {column.name: SPARK_TYPES[column.type] for column in contract.events.columns}
    return T.StructType([T.StructField(column, types[column]) for column in columns])


def _past(
    spark: SparkSession, snapshot: Snapshot, events: DataFrame, rows: DataFrame, feature: PastFeature
) -> DataFrame:
    if feature.folds is None:
        return past_of(events, feature, asked=rows)
    files = [snapshot.file_url(file) for file in snapshot.files(f"state/{feature.name}")]
    return past_of_state(spark.read.schema(_STATE).parquet(*files), feature)


def _histories(events: DataFrame, rows: DataFrame, fitted: FittedTables, shape: HistoryShape) -> DataFrame:
    """request_id and the history's columns. Each request is a user of its own whose last event is the request."""
    requests = rows.select("request_id", "user_id", F.col("event_time_ms").alias("_asked_ms")).distinct()
    before = events.select("user_id", "item_id", "event_time_ms", "row_id").join(
        F.broadcast(requests), on="user_id", how="inner"
    )
    before = before.where(F.col("event_time_ms") < F.col("_asked_ms"))
    # Bounded before they are gathered: a user may hold a large part of the log.
    latest = Window.partitionBy("request_id").orderBy(F.desc("event_time_ms"), F.desc(_tie()))
    recent = before.withColumn("_age", F.row_number().over(latest)).where(F.col("_age") <= shape.length)
    asked = requests.select(
        F.col("request_id").alias("user_id"),
        F.lit(None).cast("string").alias("item_id"),
        F.col("_asked_ms").alias("event_time_ms"),
        F.lit(0).cast("bigint").alias("row_id"),
    )
    own = recent.select(F.col("request_id").alias("user_id"), "item_id", "event_time_ms", "row_id")
    indexed = with_ids(own.unionByName(asked), FittedTables(ids={"item": fitted.ids["item"]}))
    made = with_history(indexed, length=shape.length, with_gaps=shape.with_gaps)
    return made.where(F.col("item_id").isNull()).select(F.col("user_id").alias("request_id"), *shape.columns)


def _tie() -> Column:
    return F.xxhash64("item_id", "row_id")
