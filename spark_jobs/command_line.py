"""What every job's command line shares: help, kinds of arguments, one line and exit code 2 for a user's mistake."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from schemas.errors import UserError
from schemas.programs import Parser
from spark_jobs.session import spark_session

_FULL = ("No space left on device", "File too large", "Disk quota exceeded")
# Parts of Spark that write for themselves, by their place in a stack trace.
_SCRATCH = ("org.apache.spark.shuffle.", "DiskBlockObjectWriter", "UnsafeSorterSpillWriter", "storage.DiskStore")
_WRITING = re.compile(r"Task failed while writing rows to (?P<url>.+?)\. SQLSTATE")
_GONE = re.compile(r"FAILED_READ_FILE\.FILE_NOT_EXIST\] .*?reading file (?P<url>.+?)\. +File does not exist")
_HOST = re.compile(r"\(TID \d+\) \((?P<host>\S+) executor (?P<executor>\S+)\)")
_SQLSTATE = re.compile(r"\. SQLSTATE: \w+$")


def parser(name: str, summary: str) -> Parser:
    return Parser(
        prog=f"spark-submit spark_jobs/jobs/{name}.py",
        description=summary,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share between 0 and 1")
    return value


def whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least:,} and {most:,}")
        return int(text)

    return parse


def positive(text: str) -> float:
    if not (float(text) > 0 and math.isfinite(float(text))):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


def moment(text: str) -> int:
    """ISO 8601, UTC unless it says otherwise, to milliseconds since 1970."""
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no ISO 8601 moment") from None
    return round((given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp() * 1000)


def day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no day of the form 2024-05-31") from None


def run(name: str, work: Callable[[SparkSession], None]) -> int:
    """Run a job's work in its session; give the exit code."""
    spark = spark_session(name)
    try:
        work(spark)
    except UserError as error:
        _complain(spark, f"{name}: {error}")
        return 2
    except (PySparkException, Py4JJavaError) as error:
        cause = mistake_in(str(error), dict(spark.sparkContext.getConf().getAll()))
        if cause is None:
            raise
        _complain(spark, f"{name}: {cause}")
        return 2
    finally:
        spark.stop()
    return 0


def _complain(spark: SparkSession, line: str) -> None:
    """Print to the standard error of spark-submit, which sends that of its Python to its standard output."""
    jvm: Any = spark._jvm
    jvm.System.err.write(f"{line}\n".encode())
    jvm.System.err.flush()


def mistake_in(text: str, settings: Mapping[str, str]) -> str | None:
    """The line of a Spark failure that is about the user's files rather than about a defect."""
    if any(sign in text for sign in _FULL):
        return _full_disk(text, settings)
    gone = _GONE.search(text)
    if gone is not None:
        return (
            f"{gone['url']} went away while it was read; nothing was published. Bring it back, or have its folder made "
            "anew, and run again."
        )
    for sign in ("Permission denied", "PATH_NOT_FOUND", "FileNotFoundException", "Connection refused"):
        if sign in text:
            line = next(line.strip() for line in text.splitlines() if sign in line)
            advice = "; nothing was published. Bring it back, and run again." if sign == "PATH_NOT_FOUND" else "."
            return _SQLSTATE.sub(advice, line)
    return None


def _full_disk(text: str, settings: Mapping[str, str]) -> str:
    """Which disk is full: that of the output, or one for shuffles and spills; and what to do."""
    host = _HOST.search(text)
    where = f" of {host['host']}" if host is not None and host["executor"] != "driver" else ""
    output = _WRITING.search(text)
    if output is not None and not any(sign in text for sign in _SCRATCH):
        disk, other = f"the disk of {output['url']}", "give another place with --out"
    else:
        disk = f"the disk{where} for shuffles and spills (spark.local.dir, {settings.get('spark.local.dir', '/tmp')})"
        other = "give another with --conf spark.local.dir=FOLDER"
    return f"no space left on {disk}. Nothing was published: make room, or {other}, and run again."
