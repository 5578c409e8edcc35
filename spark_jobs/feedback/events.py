"""Items shown and what was done to them as events of the contract, column by column."""

from __future__ import annotations

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from schemas.contract import Column, Contract
from schemas.feedback import FeedbackRules
from spark_jobs.feedback.labels import typed_label
from spark_jobs.spark_types import SPARK_TYPES
from spark_jobs.transforms.event_days import DAY
from spark_jobs.transforms.rules import typed_column
from spark_jobs.transforms.versions import VALID_FROM, with_entity_columns

_OF_ITEM = "from_item_"


def raw_columns(base: Contract, rules: FeedbackRules) -> list[Column]:
    """Columns of events that come as text: the ids, and what the caller said of the request (its context)."""
    made = {*rules.labels, *rules.from_item, base.events.the("event_time").name}
    return [
        column
        for column in base.events.columns
        if column.name not in made and column.role not in ("propensity", "weight", "label")
    ]


def with_raw_columns(shown: DataFrame, base: Contract, rules: FeedbackRules) -> DataFrame:
    """Add `raw_<name>`, text, of what a log would say of the event, and `<name>` in the contract's type.

    The latter is null where the text is no such value.
    """
    columns = raw_columns(base, rules)
    ids = {"user": F.col("user_id"), "item": F.col("item_id")}
    said = T.StructType([T.StructField(column.name, T.StringType()) for column in columns if column.role not in ids])
    rows = shown.withColumn("_said", F.from_json("context", said)) if said.fields else shown
    raw = {f"raw_{c.name}": ids.get(c.role, F.col(f"_said.{c.name}") if said.fields else None) for c in columns}
    rows = rows.withColumns({name: value for name, value in raw.items() if value is not None})
    fits = {f"typed_{c.name}": _fitted(c) for c in columns}
    return rows.withColumns(fits).drop("_said", "context")


def misfits(base: Contract, rules: FeedbackRules) -> dict[str, SparkColumn]:
    """By column, whether its text is no value of its type."""
    return {
        column.name: F.col(f"raw_{column.name}").isNotNull() & F.col(f"typed_{column.name}").isNull()
        for column in raw_columns(base, rules)
    }


def with_item_columns(rows: DataFrame, items: DataFrame | None, base: Contract, rules: FeedbackRules) -> DataFrame:
    """Add what events copy from the item's row, as it was when the item was shown. In and out: the same rows."""
    if items is None or base.items is None or not rules.from_item:
        return rows
    versions = [F.col(column.name).alias(VALID_FROM) for column in base.items.with_role("valid_from")]
    key = f"typed_{base.events.the('item').name}"
    of_item = {f"{_OF_ITEM}{name}": F.col(source) for name, source in rules.from_item.items()}
    known = items.select(
        F.col(base.items.key[0]).alias(key), *versions, *(column.alias(name) for name, column in of_item.items())
    )
    # The version at the moment of showing, whatever the event's time is.
    return with_entity_columns(rows.withColumn("event_time_ms", F.col("shown_ms")), known, key=key)


def event_rows(
    rows: DataFrame, base: Contract, served: Contract, rules: FeedbackRules, weight: SparkColumn
) -> DataFrame:
    """The events, with the contract's columns in its order and `day` of the response. One row an event."""
    time = F.col("shown_ms") if rules.event == "impression" else F.col("first_ms")
    raw = {column.name for column in raw_columns(base, rules)}

    def value(column: Column) -> SparkColumn:
        if column.role == "event_time":
            return time
        if column.name in rules.labels:
            return typed_label(column, rules.labels[column.name])
        if column.name in rules.from_item:
            return F.col(f"{_OF_ITEM}{column.name}").try_cast(SPARK_TYPES[column.type])
        if column.name in raw:
            return F.col(f"typed_{column.name}")
        if column.role == "propensity":
            return F.col("propensity").cast(SPARK_TYPES[column.type])
        if column.role == "weight":
            return weight.cast(SPARK_TYPES[column.type])
        if column.name in ("position", "request_id"):
            return F.col(column.name)
        return F.lit(None).cast(SPARK_TYPES[column.type])

    return rows.select(DAY, *(value(column).alias(column.name) for column in served.events.columns))


def _fitted(column: Column) -> SparkColumn:
    return typed_column(column, T.StringType())
