"""The contract's rules as Spark expressions, all in one pass: typed columns, and the rules each row breaks.

A sound row pays for one boolean; the names and reasons are worked out for rows that break a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from schemas.contract import Column, Table
from schemas.errors import UserError
from spark_jobs.spark_types import SPARK_TYPES
from spark_jobs.transforms.parsing import CORRUPT

_SHOWN_CHARS = 80
NAMED_TIME_FORMATS = ("epoch_s", "epoch_ms", "iso8601")
# Years 1 to 9999, the days that a calendar names.
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999
_MOMENTS = (T.TimestampType, T.TimestampNTZType, T.DateType)


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
    return with_broken(with_typed_columns(fields, table), rules_of(fields, table))


def with_typed_columns(fields: DataFrame, table: Table) -> DataFrame:
    """Add the columns of the contract that have a raw field, in their own types; null where the value does not fit."""
    types = raw_types(fields)
    there = [column for column in table.columns if column.name in types]
    return fields.withColumns({column.name: typed_column(column, types[column.name]) for column in there})


def raw_types(fields: DataFrame) -> dict[str, T.DataType]:
    """By column of the contract, the type of its raw field."""
    raw = {field.name: field.dataType for field in fields.schema.fields if field.name.startswith("raw_")}
    return {name.removeprefix("raw_"): kind for name, kind in raw.items()}


def rules_of(fields: DataFrame, table: Table) -> list[Rule]:
    """All rules of a table, for a frame with raw and typed columns, in the order in which they are told."""
    types = raw_types(fields)
    rules = _line_rules(table) if table.source.is_text else []
    return [*rules, *(rule for column in table.columns for rule in column_rules(column, types[column.name]))]


def any_broken(rules: Sequence[Rule]) -> SparkColumn:
    """Whether a row breaks any of the rules; never null."""
    return reduce(lambda one, other: one | other, (rule.broken for rule in rules), F.lit(False))


def with_broken(typed: DataFrame, rules: Sequence[Rule]) -> DataFrame:
    """Add `broken`, an array of (rule, reason), empty for a sound row. Costly: for few rows."""
    broken = F.array(*(_entry(rule) for rule in rules))
    return typed.withColumn("broken", F.filter(broken, lambda entry: entry.isNotNull()))


def typed_column(column: Column, raw_type: T.DataType) -> SparkColumn:
    """The column in its own type; null where the raw value does not fit."""
    raw, wanted = F.col(f"raw_{column.name}"), SPARK_TYPES[column.type]
    if column.type == "list<string>":
        return _list(raw if isinstance(raw_type, T.ArrayType) else F.split(raw, column.separator))
    if column.type == "timestamp_ms":
        return _within_the_calendar(_timestamp_ms(column, raw, raw_type))
    if raw_type == wanted:
        return raw
    if isinstance(wanted, T.IntegralType) and isinstance(raw_type, (T.FractionalType, T.DecimalType)):
        return F.when(raw == F.floor(raw), raw.try_cast(wanted))  # a cast would cut 1.5 to 1 without a word
    return raw.try_cast(wanted)


def check_raw_type(column: Column, raw_type: T.DataType, *, where: str) -> None:
    """Raise UserError where no value of a typed source's column can be one of the contract's."""
    if column.type == "list<string>":
        fits = isinstance(raw_type, (T.ArrayType, T.StringType, T.NullType))
    elif column.type == "timestamp_ms":
        number = isinstance(raw_type, T.NumericType) and column.time_format in ("epoch_s", "epoch_ms")
        fits = number or isinstance(raw_type, (*_MOMENTS, T.StringType))
    else:
        fits = isinstance(raw_type, (T.NumericType, T.StringType, T.BooleanType, T.NullType)) or (
            column.type == "string" and isinstance(raw_type, _MOMENTS)
        )
    if not fits:
        raise UserError(
            f"{where}: column {column.raw_name!r} is {raw_type.simpleString()}, and the contract's "
            f"{_described(column)} cannot be read from that: change its type or time_format, or leave it out."
        )


def column_rules(column: Column, raw_type: T.DataType) -> list[Rule]:
    """The rules of one column, in the order in which a reader would want to hear of them."""
    raw, value = F.col(f"raw_{column.name}"), F.col(column.name)
    shown = F.to_json(raw) if isinstance(raw_type, T.ArrayType) else raw.cast("string")
    shown = F.substring(shown, 1, _SHOWN_CHARS)
    rules = []

    def add(kind: str, broken: SparkColumn, why: str) -> None:
        reason = F.format_string(f"%s {why.replace('%', '%%')}", F.concat(F.lit("'"), shown, F.lit("'")))
        rules.append(Rule(f"{kind}:{column.name}", F.coalesce(broken, F.lit(False)), reason))

    if not column.nullable:
        rules.append(Rule(f"null:{column.name}", raw.isNull(), F.lit("the value is missing")))
    fractional = column.type in ("float32", "float64")
    if raw_type != SPARK_TYPES[column.type] or column.type == "timestamp_ms" or fractional:
        wrong_type = raw.isNotNull() & value.isNull()
        if fractional:
            wrong_type = wrong_type | F.isnan(value) | (F.abs(value) == float("inf"))
        add("type", wrong_type, f"is no {_described(column)}")
    if column.pattern is not None:
        add(
            "pattern",
            ~_text(raw, column, raw_type).rlike(f"^(?:{column.pattern})$"),
            f"does not match {column.pattern}",
        )
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
            else ~raw.cast("string").isin(*column.one_of)
        )
        add("one_of", outside, f"is none of {', '.join(column.one_of[:12])}")
    return rules


def _text(raw: SparkColumn, column: Column, raw_type: T.DataType) -> SparkColumn:
    """The raw text that a pattern must match."""
    return F.concat_ws(column.separator, raw) if isinstance(raw_type, T.ArrayType) else raw.cast("string")


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
    return F.filter(raw.cast("array<string>"), lambda value: value.isNotNull() & (value != ""))


def _timestamp_ms(column: Column, raw: SparkColumn, raw_type: T.DataType) -> SparkColumn:
    """Milliseconds since 1970 in UTC, exact to the millisecond."""
    if isinstance(raw_type, _MOMENTS):
        return F.unix_millis(raw.cast("timestamp"))
    if column.time_format in ("epoch_s", "epoch_ms"):
        factor = 1000 if column.time_format == "epoch_s" else 1
        if isinstance(raw_type, T.IntegralType):  # long arithmetic: decimals cost more than the rest of a row
            return F.try_multiply(raw.cast("bigint"), F.lit(factor).cast("bigint"))
        return (raw.try_cast("decimal(24,6)") * F.lit(factor)).try_cast("bigint")
    if column.time_format == "iso8601":
        # Spark takes a time without a day for one of today, and a bare number for a year.
        return F.unix_millis(F.when(raw.rlike(r"^\s*\d{4}-"), F.try_to_timestamp(raw)))
    return F.unix_millis(F.try_to_timestamp(raw, F.lit(column.time_format)))


def _within_the_calendar(time_ms: SparkColumn) -> SparkColumn:
    return F.when(time_ms.between(_FIRST_MS, _LAST_MS), time_ms)


def _described(column: Column) -> str:
    return f"time of the form {column.time_format}" if column.type == "timestamp_ms" else column.type
