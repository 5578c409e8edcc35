"""What every job's command line shares: help, one line and exit code 2 for a user's mistake."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
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
