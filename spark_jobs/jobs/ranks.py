"""Ranks: a training program as barrier tasks on the cluster's executors, a task a rank; Horovod is the engine."""

from __future__ import annotations

import argparse
import re
import sys

from py4j.protocol import Py4JJavaError
from pyspark import SparkContext
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from schemas.errors import UserError
from spark_jobs.command_line import parser, run, whole
from spark_jobs.rank_output import Listener, listening
from spark_jobs.rank_task import RankJob, run_rank
from spark_jobs.session import step

_CODE = "headrace-code"
_LOST = 75  # sysexits.h: a failure that another try may not meet
_NO_PYTHON = re.compile(r'Cannot run program "(?P<python>[^"]+)"')


def run_ranks(spark: SparkSession, given: argparse.Namespace) -> int:
    """Run the program on as many ranks as asked; give the exit code of the worst."""
    context = spark.sparkContext
    if given.code is not None:
        context.addArchive(f"{given.code}#{_CODE}")
    conf = context.getConf()
    driver = conf.get("spark.driver.host") or "localhost"
    with listening(conf.get("spark.driver.bindAddress") or driver, _print) as listener:
        job = RankJob(
            module=given.module,
            arguments=tuple(given.arguments),
            folder=given.folder,
            code=_CODE if given.code is not None else None,
            driver=driver,
            port=listener.port,
            secret=listener.secret,
        )
        tasks = context.parallelize(range(given.ranks), given.ranks).barrier()
        try:
            with step(spark, f"{given.module} on {given.ranks} ranks"):
                tasks.mapPartitions(lambda _: run_rank(job)).collect()
        except (PySparkException, Py4JJavaError) as error:
            return answer(context, str(error), listener, given.ranks)
    return 0


def answer(context: SparkContext, failure: str, listener: Listener, ranks: int) -> int:
    """The exit code for a stage that failed; UserError where the user can put it right."""
    if listener.refusals:
        raise UserError(listener.refusals[0])
    if any(listener.exit_codes.values()):
        return max(listener.exit_codes.values())
    if "SPARK-24819" in failure:
        cpus = context.getConf().get("spark.task.cpus", "1")
        raise UserError(
            f"{context.master} has fewer slots than {ranks} ranks, each of which takes {cpus} core(s) of an executor "
            "(spark.task.cpus): ask for fewer with --ranks, or give more executors or cores (spark.executor.instances, "
            "spark.executor.cores, spark.cores.max), or wait until other jobs have ended."
        )
    if python := _NO_PYTHON.search(failure):
        raise UserError(
            f"executors have no {python['python']}: ranks need the environment that `make setup` makes, on every "
            "worker at the path that PYSPARK_PYTHON or --conf spark.pyspark.python names."
        )
    reason = next((line.strip() for line in failure.splitlines() if "failed" in line), failure.splitlines()[0])
    _print(f"ranks: Spark ended the job, and the same command goes on from the last checkpoint: {reason}")
    return _LOST


def _print(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> int:
    command = parser("ranks", "a training program on ranks that are barrier tasks of this cluster")
    command.add_argument("--ranks", type=whole(1, 100_000), required=True, help="how many")
    command.add_argument("--code", help="archive of the packages that the program needs; none: they can be imported")
    command.add_argument("--folder", required=True, help="where the program works, on every host")
    command.add_argument("module", help="the program, as `python -m` takes it")
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="what it is given")
    given = command.parse_args(arguments)
    codes: list[int] = []
    return run("ranks", lambda spark: codes.append(run_ranks(spark, given))) or codes[0]


if __name__ == "__main__":
    sys.exit(main())
