"""The contract's rules: each by the raw texts that keep it and those that break it."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.contract import Table
from schemas.settings import parse_model
from spark_jobs.transforms.rules import with_checked_columns

pytestmark = pytest.mark.slow

# By column: what the contract says of it, and by raw text the value and the rules it breaks.
Cases = list[tuple[Any, Any, list[str]]]
TYPES: dict[str, tuple[dict[str, Any], Cases]] = {
    "int32": (
        {"type": "int32"},
        [
            ("7", 7, []),
            ("-2147483648", -2147483648, []),
            ("2147483648", None, ["type"]),
            ("7.5", None, ["type"]),
            ("seven", None, ["type"]),
            (None, None, ["null"]),
        ],
    ),
    "int64": ({"type": "int64"}, [("9223372036854775807", 2**63 - 1, []), ("9223372036854775808", None, ["type"])]),
    "float32": (
        {"type": "float32"},
        [("0.5", 0.5, []), ("-1e3", -1000.0, []), ("1e39", float("inf"), ["type"]), ("x", None, ["type"])],
    ),
    "infinite": (
        {"type": "float64"},
        [
            ("1e308", 1e308, []),
            ("1e309", float("inf"), ["type"]),
            ("inf", float("inf"), ["type"]),
            ("-Infinity", float("-inf"), ["type"]),
            ("nan", pytest.approx(float("nan"), nan_ok=True), ["type"]),
        ],
    ),
    "boolean": ({"type": "boolean"}, [("true", True, []), ("False", False, []), ("maybe", None, ["type"])]),
    "string": ({"type": "string"}, [("", "", []), (" x ", " x ", []), (None, None, ["null"])]),
    "list": ({"type": "list<string>"}, [(["a", "", None, "b"], ["a", "b"], []), ([], [], []), (None, None, ["null"])]),
    "nullable": ({"type": "int32", "nullable": True}, [(None, None, []), ("1", 1, []), ("x", None, ["type"])]),
}
TIMES: dict[str, tuple[dict[str, Any], Cases]] = {
    "epoch_s": (
        {"type": "timestamp_ms", "time_format": "epoch_s"},
        [
            ("1", 1000, []),
            ("1.5", 1500, []),
            ("8.7472471E8", 874724710000, []),
            ("-1", -1000, []),
            ("tomorrow", None, ["type"]),
            ("NaN", None, ["type"]),
            ("99999999999999999999", None, ["type"]),
        ],
    ),
    "epoch_ms": (
        {"type": "timestamp_ms", "time_format": "epoch_ms"},
        [("874724710123", 874724710123, []), ("1999-12-31", None, ["type"])],
    ),
    "iso8601": (
        {"type": "timestamp_ms", "time_format": "iso8601"},
        [
            ("1970-01-02T00:00:00", 86_400_000, []),
            ("1970-01-01T01:00:00+01:00", 0, []),
            ("1970-01-01T00:00:00Z", 0, []),
            ("1970-01-01 00:00:00.123", 123, []),
            ("1970-01-02", 86_400_000, []),
            ("1970-02-30", None, ["type"]),
            ("10:30:00", None, ["type"]),  # no day: another moment every day
            ("T10:30", None, ["type"]),
            ("86400", None, ["type"]),
        ],
    ),
    "own_pattern": (
        {"type": "timestamp_ms", "time_format": "dd/MM/yyyy HH:mm"},
        [("02/01/1970 00:01", 86_460_000, []), ("1970-01-02", None, ["type"]), ("31/02/1970 00:00", None, ["type"])],
    ),
}
BOUNDS: dict[str, tuple[dict[str, Any], Cases]] = {
    "closed": (
        {"type": "int32", "range": {"min": 1, "max": 5}},
        [("1", 1, []), ("5", 5, []), ("0", 0, ["range"]), ("6", 6, ["range"]), ("x", None, ["type"])],
    ),
    "at_most": (
        {"type": "float32", "range": {"max": 0.1}},
        [("0.1", pytest.approx(0.1), []), ("0.11", pytest.approx(0.11), ["range"])],
    ),
    "at_least": (
        {"type": "float32", "range": {"min": 0.7}},
        [("0.7", pytest.approx(0.7), []), ("0.69", pytest.approx(0.69), ["range"])],
    ),
    "since": (
        {"type": "timestamp_ms", "range": {"min": 874684800000}},
        [("874684800", 874684800000, []), ("874684799", 874684799000, ["range"])],
    ),
    "digits": (
        {"type": "string", "pattern": "[0-9]+"},
        [("12", "12", []), ("12a", "12a", ["pattern"]), ("a12", "a12", ["pattern"]), ("", "", ["pattern"])],
    ),
    "either": ({"type": "string", "pattern": "a|b"}, [("a", "a", []), ("b", "b", []), ("ab", "ab", ["pattern"])]),
    "choice": (
        {"type": "string", "one_of": ["M", "F"], "nullable": True},
        [("M", "M", []), ("m", "m", ["one_of"]), (None, None, [])],
    ),
    "choices": (
        {"type": "list<string>", "one_of": ["x", "y"]},
        [(["x"], ["x"], []), (["x", "z"], ["x", "z"], ["one_of"]), ([], [], [])],
    ),
}


def _checked(spark: SparkSession, columns: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> DataFrame:
    """Raw texts (the columns' names without `raw_`) through the rules; the line and its faults may be given too."""
    specs = [{"name": name, "meaning": "x", **spec} for name, spec in columns.items()]
    key = {"name": "key", "type": "string", "meaning": "x"}
    table = parse_model(Table, {"source": {"path": "x"}, "key": ["key"], "columns": [key, *specs]}, where="test")
    types = {name: "array<string>" if spec["type"] == "list<string>" else "string" for name, spec in columns.items()}
    schema = "line binary, file string, _corrupt string, raw_key string, " + ", ".join(
        f"raw_{name} {kind}" for name, kind in types.items()
    )
    raw = [
        (row.get("line", b""), "file", row.get("_corrupt"), str(n), *(row.get(name) for name in columns))
        for n, row in enumerate(rows)
    ]
    fields = spark.createDataFrame(raw, schema).withColumn("line", F.col("line").cast("string"))
    return with_checked_columns(fields, table).orderBy(F.col("key").cast("int"))


@pytest.mark.parametrize("cases", [TYPES, TIMES, BOUNDS], ids=["types", "times", "bounds"])
def test_a_raw_text_has_this_value_and_breaks_these_rules(
    spark: SparkSession, cases: dict[str, tuple[dict[str, Any], Cases]]
) -> None:
    texts = zip_longest(*([text for text, _, _ in column] for _, column in cases.values()))
    rows = [dict(zip(cases, row, strict=True)) for row in texts]
    checked = _checked(spark, {name: spec for name, (spec, _) in cases.items()}, rows).collect()
    for name, (_, column) in cases.items():
        found = [
            (
                text,
                row[name],
                [entry["rule"].split(":")[0] for entry in row["broken"] if entry["rule"].endswith(f":{name}")],
            )
            for (text, _, _), row in zip(column, checked, strict=False)
        ]
        assert found == column, name


def test_a_reason_shows_the_raw_text_and_the_rule(spark: SparkSession) -> None:
    columns: dict[str, dict[str, Any]] = {
        "stars": {"type": "int32", "range": {"min": 1, "max": 5}},
        "at": {"type": "timestamp_ms", "time_format": "epoch_ms", "range": {"min": 874684800000}},
        "code": {"type": "string", "pattern": "100%|[0-9]+"},
        "sex": {"type": "string", "one_of": ["M", "F"]},
        "tags": {"type": "list<string>", "one_of": ["x"]},
    }
    row = {"stars": "9", "at": "1", "code": "a%sb", "sex": "m", "tags": ["x", "z"], "line": b"\xff", "_corrupt": "bad"}
    broken = _checked(spark, columns, [row]).collect()[0]["broken"]
    assert [(entry["rule"], entry["reason"]) for entry in broken] == [
        ("encoding", "the line is no valid UTF-8"),
        ("width", "bad"),
        ("range:stars", "'9' is above 5"),
        ("range:at", "'1' is below 874684800000"),
        ("pattern:code", "'a%sb' does not match 100%|[0-9]+"),
        ("one_of:sex", "'m' is none of M, F"),
        ("one_of:tags", """'["x","z"]' is none of x"""),
    ]


def test_a_long_text_is_shown_by_its_beginning(spark: SparkSession) -> None:
    broken = _checked(spark, {"stars": {"type": "int32"}}, [{"stars": "x" * 5000}]).collect()[0]["broken"]
    assert broken[0]["reason"] == f"'{'x' * 80}' is no int32"
