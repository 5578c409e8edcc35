"""One side of a comparison: rows of a snapshot, of an event store or of a Parquet folder, in columns that compare.

Indices stay indices of their own snapshot's vocabulary until they are counted; numbers are scaled back to the log's
units, for two snapshots standardise with moments of their own; what two snapshots define otherwise is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.contract import Column, Contract
from schemas.errors import UserError
from schemas.features import (
    NULL_IDX,
    PADDING_IDX,
    TOKEN_SEPARATORS,
    BucketFeature,
    Feature,
    FeatureTransform,
    GapsFeature,
    HashFeature,
    HistoryFeature,
    IndexFeature,
    IndicesFeature,
    NumberFeature,
    TokensFeature,
)
from schemas.manifest import MANIFEST, SPLITS
from schemas.snapshot import Snapshot
from schemas.storage import join
from spark_jobs.datasets import read_part
from spark_jobs.drifting.verdicts import Of
from spark_jobs.hadoop_files import HadoopFiles
from spark_jobs.profiling.reading import open_either
from spark_jobs.spark_types import spark_schema
from spark_jobs.transforms.versions import VALID_FROM, with_entity_columns

CLUSTER = "_cluster"
PREDICTION = "prediction"
Window = tuple[int | None, int | None]


@dataclass(frozen=True, kw_only=True)
class SideColumn:
    """A column of a side: what it is, its values, and what must be the same on the other side."""

    of: Of
    value: SparkColumn
    vocabulary: str | None = None
    definition: object = None


@dataclass(frozen=True, kw_only=True)
class Side:
    """Rows with CLUSTER, the hash of the user, or of the row where there are no users; and columns by shown name."""

    name: str
    rows: DataFrame
    columns: Mapping[str, SideColumn]
    is_clustered: bool
    snapshot: Snapshot | None = None
    transform: FeatureTransform | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


def open_side(spark: SparkSession, url: str, window: Window) -> Side:
    """A published folder, or a Parquet folder with a column `prediction`; rows from the window's first moment on and
    before its last."""
    hadoop = HadoopFiles(spark)
    if not hadoop.exists(join(url, MANIFEST)) and hadoop.exists(url):
        return open_predictions(spark, url, window)
    snapshot = open_either(hadoop, url)
    side = _of_snapshot(spark, snapshot) if snapshot.manifest.kind == "snapshot" else _of_events(spark, snapshot)
    contract = snapshot.manifest.contract
    time = "event_time_ms" if snapshot.manifest.kind == "snapshot" else contract.events.the("event_time").name
    return _within(side, window, time)


def open_predictions(spark: SparkSession, url: str, window: Window) -> Side:
    """What was predicted: of a landed log the scores of items shown, of another Parquet folder its `prediction`."""
    hadoop = HadoopFiles(spark)
    if not hadoop.exists(url):
        raise UserError(f"{url} is no folder: give a snapshot, an event store, a landed log or a Parquet folder.")
    if hadoop.exists(join(url, "impressions")):
        shown = spark.read.parquet(join(url, "impressions"))
        each = shown.where(F.col("fallback").isNull()).select(
            "user_id", "time_ms", F.explode("items.score").alias(PREDICTION)
        )
        return _within(_of_predictions(url, each), window, "time_ms")
    if not any(name.endswith(".parquet") for name in hadoop.files_below(url)):
        raise UserError(
            f"{url} has neither a {MANIFEST} nor Parquet files: give what ingest, prepare or land wrote, or a folder "
            f"of Parquet with a column {PREDICTION!r}."
        )
    rows = spark.read.parquet(url)
    if PREDICTION not in rows.columns:
        raise UserError(
            f"{url} has no {MANIFEST} and no column {PREDICTION!r}; its columns: {', '.join(rows.columns)}."
        )
    time = next((name for name in ("event_time_ms", "time_ms") if name in rows.columns), None)
    return _within(_of_predictions(url, rows), window, time)


def _of_predictions(url: str, rows: DataFrame) -> Side:
    users = [name for name in ("user_id", "user_idx") if name in rows.columns]
    cluster = F.xxhash64(users[0]) if users else F.xxhash64(*rows.columns)
    value = SideColumn(of="prediction", value=F.col(PREDICTION).cast("double"))
    return Side(name=url, rows=rows.withColumn(CLUSTER, cluster), columns={PREDICTION: value}, is_clustered=bool(users))


def _within(side: Side, window: Window, time: str | None) -> Side:
    start, end = window
    if start is None and end is None:
        return side
    if time is None:
        raise UserError(f"{side.name} has no column event_time_ms or time_ms that a window could choose rows by.")
    at = F.col(f"`{time}`")
    inside = F.lit(True)
    inside = inside if start is None else inside & (at >= start)
    inside = inside if end is None else inside & (at < end)
    return Side(**{**side.__dict__, "rows": side.rows.where(inside)})


def _of_snapshot(spark: SparkSession, snapshot: Snapshot) -> Side:
    """All splits together: what is unseen to one of them is compared as a value that not both sides know."""
    if snapshot.manifest.transform is None:
        raise UserError(f"{snapshot.url} is a snapshot without features, of images: there are no columns to compare.")
    manifest, transform = snapshot.manifest, snapshot.transform
    parts = [
        spark.read.parquet(*(snapshot.file_url(file) for file in snapshot.files(split)))
        for split in SPLITS
        if manifest.rows(split)
    ]
    shared = [name for name in parts[0].columns if all(name in part.columns for part in parts)]
    rows = reduce(DataFrame.unionByName, [part.select(*shared) for part in parts])
    items = [f.name for f in transform.of("items") if f.name not in (*rows.columns, "item_idx")]
    if items and "item_idx" in rows.columns and manifest.rows("items"):
        table = spark.read.parquet(*(snapshot.file_url(file) for file in snapshot.files("items")))
        rows = rows.join(table.select("item_idx", *items), on="item_idx", how="left")
    columns = {name: SideColumn(of="label", value=F.col(name).cast("double")) for name in manifest.contract.labels}
    for feature in transform.features:
        if feature.name in rows.columns and feature.name != "user_idx":
            columns[feature.name] = feature_values(feature, is_nullable=_is_nullable(feature, manifest.contract))
    is_clustered = "user_idx" in rows.columns and bool(snapshot.files("vocab/user"))
    cluster = F.xxhash64("row_id")
    if is_clustered:
        # By the user's id, which two snapshots number otherwise; users whom train does not know are told by the row.
        vocabulary = [snapshot.file_url(file) for file in snapshot.files("vocab/user")]
        known = spark.read.schema("value STRING, idx INT").parquet(*vocabulary)
        known = known.select(F.col("idx").alias("user_idx"), F.col("value").alias("_user"))
        rows = rows.join(known, on="user_idx", how="left")
        cluster = F.xxhash64(F.coalesce("_user", F.col("row_id").cast("string")))
    return Side(
        name=snapshot.url,
        rows=rows.withColumn(CLUSTER, cluster),
        columns=columns,
        is_clustered=is_clustered,
        snapshot=snapshot,
        transform=transform,
    )


def feature_values(feature: Feature, *, is_nullable: bool = False) -> SideColumn:
    """A feature's training column as values that mean the same in any snapshot whose `definition` is the same.

    `is_nullable`: of a number, whether its source is.
    """
    column = F.col(f"`{feature.name}`")
    if isinstance(feature, IndexFeature | IndicesFeature | HistoryFeature):
        length = getattr(feature, "length", None)
        return SideColumn(of="feature", value=column, vocabulary=feature.vocabulary, definition=length)
    if isinstance(feature, NumberFeature):
        steps = (feature.low, feature.high, feature.log1p)
        return SideColumn(of="feature", value=_unscaled(feature, column, is_nullable), definition=steps)
    if isinstance(feature, BucketFeature | HashFeature):
        definition = feature.edges if isinstance(feature, BucketFeature) else (feature.sources, feature.buckets)
        text = F.when(column != NULL_IDX, column.cast("string"))
        return SideColumn(of="feature", value=text, definition=definition)
    if isinstance(feature, TokensFeature | GapsFeature):
        kept = F.transform(F.array_remove(column, F.lit(PADDING_IDX)), lambda element: element.cast("string"))
        buckets = feature.buckets if isinstance(feature, TokensFeature) else None
        return SideColumn(of="feature", value=kept, definition=(feature.length, buckets))
    return SideColumn(of="feature", value=column.cast("double"), definition=feature.kind)


def _unscaled(feature: NumberFeature, column: SparkColumn, is_nullable: bool) -> SparkColumn:
    """In the log's units, rounded to what float32 keeps, so that one number is one number on both sides.

    A null stands as the mean, which each snapshot has its own of.
    """
    if (feature.mean, feature.std) == (0.0, 1.0):
        return column.cast("double")
    size = max(abs(feature.mean), abs(feature.std))
    digits = 5 - math.floor(math.log10(size)) if size > 0 else 5
    value = F.round(column.cast("double") * feature.std + feature.mean, digits)
    return F.when(column != 0, value) if is_nullable else value


def _is_nullable(feature: Feature, contract: Contract) -> bool:
    """Whether a number's source can be null; one of a user or an item is, for those that its table lacks."""
    tables = contract.tables()
    table = tables.get(feature.owner)
    source = getattr(feature, "source", None)
    if feature.owner != "events" or table is None or source is None:
        return True
    return next((column.nullable for column in table.columns if column.name == source), True)


def _of_events(spark: SparkSession, snapshot: Snapshot) -> Side:
    """Events with what is known of their users and items at that time: columns with a role in features, and labels."""
    contract = snapshot.manifest.contract
    rows = read_part(spark, snapshot.url, snapshot.files("events"), spark_schema(contract.events))
    columns: dict[str, SideColumn] = {}
    labels = {column.name: name for name, column in contract.labels.items()}
    for column in contract.events.columns:
        if column.role == "label":
            columns[labels[column.name]] = SideColumn(of="label", value=F.col(column.name).cast("double"))
        elif (value := _compared(column, F.col(column.name))) is not None:
            columns[column.name] = SideColumn(of="feature", value=value, definition=column.type)
    for table in ("users", "items"):
        rows, borrowed = _with_entities(spark, snapshot, rows, contract, table)
        columns |= borrowed
    users = contract.events.with_role("user")
    cluster = F.xxhash64(F.col(users[0].name).cast("string")) if users else F.xxhash64(*contract.events.key)
    return Side(
        name=snapshot.url,
        rows=rows.withColumn(CLUSTER, cluster),
        columns=columns,
        is_clustered=bool(users),
        snapshot=snapshot,
    )


def _with_entities(
    spark: SparkSession, snapshot: Snapshot, rows: DataFrame, contract: Contract, name: str
) -> tuple[DataFrame, dict[str, SideColumn]]:
    table = getattr(contract, name)
    if table is None or not snapshot.manifest.rows(name):
        return rows, {}
    values = {column.name: _compared(column, F.col(column.name)) for column in table.columns}
    kept = {f"{name}.{key}": value for key, value in values.items() if value is not None and key not in table.key}
    if not kept:
        return rows, {}
    entities = read_part(spark, snapshot.url, snapshot.files(name), spark_schema(table))
    versions = [F.col(column.name).alias(VALID_FROM) for column in table.with_role("valid_from")]
    key, time = contract.events.the("user" if name == "users" else "item").name, contract.events.the("event_time").name
    own = entities.select(
        F.col(table.key[0]).alias("_entity"), *versions, *(value.alias(_field(shown)) for shown, value in kept.items())
    )
    timed = rows.withColumns({"_entity": F.col(key), "event_time_ms": F.col(time)})
    joined = with_entity_columns(timed, own, key="_entity").drop("_entity")
    types = {column.name: column.type for column in table.columns}
    return joined, {
        shown: SideColumn(of="feature", value=F.col(_field(shown)), definition=types[shown.partition(".")[2]])
        for shown in kept
    }


def _field(shown: str) -> str:
    return "_" + shown.replace(".", "__")


def _compared(column: Column, value: SparkColumn) -> SparkColumn | None:
    """Categories as text, numbers as doubles, texts as the list of their words; None for what is no feature."""
    if column.role in ("categorical", "item"):
        return value if column.type == "list<string>" else value.cast("string")
    if column.role == "numeric":
        return value.cast("double")
    if column.role == "text":
        return F.filter(F.split(F.lower(value), TOKEN_SEPARATORS, -1), lambda word: word != "")
    return None
