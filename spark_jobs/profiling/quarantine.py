"""Refused rows by table and rule, with a few of each to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.manifest import DataFile
from schemas.profile import QuarantineRule, QuarantineSample
from schemas.storage import join

SAMPLES = 5
_LINE_BYTES, _REASON = 240, 160


def quarantine_rules(spark: SparkSession, root: str, parts: Mapping[str, Sequence[DataFile]]) -> list[QuarantineRule]:
    """Rows and samples by table and rule, the most frequent first: one small aggregation a table."""
    rules = []
    for part, files in sorted(parts.items()):
        if part.startswith("quarantine/") and any(file.rows for file in files):
            refused = spark.read.parquet(*(join(root, file.path) for file in files))
            rules += _rules_of(refused, part.removeprefix("quarantine/"))
    return sorted(rules, key=lambda rule: (rule.table, -rule.rows, rule.rule))


def _rules_of(refused: DataFrame, table: str) -> list[QuarantineRule]:
    """The row with the smallest hash for each of a few seeds: samples that cost no more for a billion rows."""
    line = F.col("line").cast("binary")
    shown = F.substring(line, 1, _LINE_BYTES)
    entry = [F.substring("reason", 1, _REASON).alias("reason"), shown.alias("line"), F.length(line).alias("bytes")]
    samples = [
        F.min_by(F.struct(*entry), F.xxhash64(line, F.lit(seed))).alias(f"sample_{seed}") for seed in range(SAMPLES)
    ]
    found = refused.groupBy("rule").agg(F.count("*").alias("rows"), *samples).collect()
    return [
        QuarantineRule(
            table=table,
            rule=row["rule"],
            rows=row["rows"],
            samples=_distinct([row[f"sample_{seed}"] for seed in range(SAMPLES)]),
        )
        for row in found
    ]


def _distinct(rows: Sequence[object]) -> tuple[QuarantineSample, ...]:
    samples = {
        readable(bytes(row["line"]), row["bytes"]): row["reason"] or ""  # type: ignore[index]
        for row in rows
    }
    return tuple(QuarantineSample(line=line, reason=reason) for line, reason in sorted(samples.items()))


def readable(line: bytes, whole_bytes: int) -> str:
    """A line as text in one line: other bytes than UTF-8 and control characters as escapes, cut ends marked."""
    cut = whole_bytes > len(line)
    if cut:  # in the middle of a character, perhaps
        line = line.decode("utf-8", errors="ignore").encode() if _is_utf8_but_for_its_end(line) else line
    text = line.decode("utf-8", errors="backslashreplace")
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return f"{shown} … ({whole_bytes:,} bytes)" if cut else shown


def _is_utf8_but_for_its_end(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(line) - 3
    return True
