"""The contract's rules as Spark expressions, all in one pass: typed columns, and the rules each row breaks."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.contract import Column, Table
from spark_jobs.spark_types import SPARK_TYPES
from spark_jobs.transforms.parsing import CORRUPT

_SHOWN_CHARS = 80
NAMED_TIME_FORMATS = ("epoch_s", "epoch_ms", "iso8601")


@dataclass(frozen=True)
class Rule:
    """A named condition; `broken` is true (never null) for rows that break it, `reason` says how."""

    name: str
    broken: SparkColumn
    reason: SparkColumn


def with_checked_columns(fields: DataFrame, table: Table) -> DataFrame:
    """Add the contract's typed columns and `broken`, an array of (rule, reason), empty for a sound row.

    In and out: one row per line, with the columns of `with_raw_fields`.
    """
    typed = {column.name: typed_column(column) for column in table.columns}
    rules = [*_line_rules(table), *(rule for column in table.columns for rule in column_rules(column))]
    with_types = fields.withColumns(typed)
    broken = F.array(*(_entry(rule) for rule in rules))
    return with_types.withColumn("broken", F.filter(broken, lambda entry: entry.isNotNull()))


def typed_column(column: Column) -> SparkColumn:
    """The column in its own type; null where the text does not fit."""
    raw = F.col(f"raw_{column.name}")
    if column.type == "list<string>":
        return _list(raw)
    if column.type == "timestamp_ms":
        return _timestamp_ms(column, raw)
    return raw.try_cast(SPARK_TYPES[column.type])


def column_rules(column: Column) -> list[Rule]:
    """The rules of one column, in the order in which a reader would want to hear of them."""
    raw, value = F.col(f"raw_{column.name}"), F.col(column.name)
    shown = F.to_json(raw) if column.type == "list<string>" else raw
    shown = F.substring(shown, 1, _SHOWN_CHARS)
    rules = []

    def add(kind: str, broken: SparkColumn, why: str) -> None:
        reason = F.format_string(f"%s {why.replace('%', '%%')}", F.concat(F.lit("'"), shown, F.lit("'")))
        rules.append(Rule(f"{kind}:{column.name}", F.coalesce(broken, F.lit(False)), reason))

    if not column.nullable:
        rules.append(Rule(f"null:{column.name}", raw.isNull(), F.lit("the value is missing")))
    wrong_type = raw.isNotNull() & value.isNull()
    if column.type in ("float32", "float64"):
        wrong_type = wrong_type | F.isnan(value) | (F.abs(value) == float("inf"))
    add("type", wrong_type, f"is no {_described(column)}")
    if column.pattern is not None:
        add("pattern", ~shown_text(raw, column).rlike(f"^(?:{column.pattern})$"), f"does not match {column.pattern}")
    if column.range is not None:
        if column.range.min is not None:
            add("range", value < _bound(column.range.min, column), f"is below {column.range.min:.15g}")
        if column.range.max is not None:
            add("range", value > _bound(column.range.max, column), f"is above {column.range.max:.15g}")
    if column.one_of is not None:
        allowed = F.array(*(F.lit(choice) for choice in column.one_of))
        outside = (
            F.size(F.array_except(value, allowed)) > 0
            if column.type == "list<string>"
            else ~F.array_contains(allowed, raw)
        )
        add("one_of", outside, f"is none of {', '.join(column.one_of[:12])}")
    return rules


def shown_text(raw: SparkColumn, column: Column) -> SparkColumn:
    """The raw text that a pattern must match."""
    return F.concat_ws(column.separator, raw) if column.type == "list<string>" else raw


def _bound(number: float, column: Column) -> SparkColumn:
    """An end of the range, rounded as the values are: 0.1 as float32 is above 0.1 as float64."""
    return F.lit(number).cast("float") if column.type == "float32" else F.lit(number)


def _line_rules(table: Table) -> list[Rule]:
    unreadable = "json" if table.source.format == "jsonl" else "width"
    return [
        Rule("encoding", ~F.is_valid_utf8("line"), F.lit("the line is no valid UTF-8")),
        Rule(unreadable, F.col(CORRUPT).isNotNull(), F.col(CORRUPT)),
    ]


def _entry(rule: Rule) -> SparkColumn:
    return F.when(rule.broken, F.struct(F.lit(rule.name).alias("rule"), rule.reason.alias("reason")))


def _list(raw: SparkColumn) -> SparkColumn:
    """The values without nulls and empty ones."""
    return F.filter(raw, lambda value: value.isNotNull() & (value != ""))


def _timestamp_ms(column: Column, raw: SparkColumn) -> SparkColumn:
    """Milliseconds since 1970 in UTC, exact to the millisecond."""
    if column.time_format in ("epoch_s", "epoch_ms"):
        factor = 1000 if column.time_format == "epoch_s" else 1
        return (raw.try_cast("decimal(24,6)") * F.lit(factor)).try_cast("bigint")
    if column.time_format == "iso8601":
        # Spark takes a time without a day for one of today, and a bare number for a year.
        return F.unix_millis(F.when(raw.rlike(r"^\s*\d{4}-"), F.try_to_timestamp(raw)))
    return F.unix_millis(F.try_to_timestamp(raw, F.lit(column.time_format)))


def _described(column: Column) -> str:
    return f"time of the form {column.time_format}" if column.type == "timestamp_ms" else column.type
