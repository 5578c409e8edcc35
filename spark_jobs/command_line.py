"""What every job's command line shares: help, one line and exit code 2 for a user's mistake."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from schemas.errors import UserError
from schemas.programs import Parser
from spark_jobs.session import spark_session


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
        cause = _mistake_in(str(error))
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


def _mistake_in(text: str) -> str | None:
    """The line of a Spark failure that is about the user's files rather than about a defect."""
    for sign in ("Permission denied", "No space left", "PATH_NOT_FOUND", "FileNotFoundException", "Connection refused"):
        if sign in text:
            return next(line.strip() for line in text.splitlines() if sign in line)
    return None
