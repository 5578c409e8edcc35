"""The programs of `training` that run on ranks: which options say where the ranks are, and how they are started."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pipelines import launch, profiles, spark_ranks
from pipelines.elastic import Elastic
from schemas.errors import UserError
from schemas.storage import absolute

PROGRAMS = {
    "train": "snapshot -> run with checkpoints and bundle (on ranks)",
    "lr-range": "which learning rate a recipe's loss falls fastest at (on ranks)",
    "evaluate": "metrics of a run on a split, beside popularity or with intervals (on ranks)",
    "compare": "whether two rankers differ by more than chance (on ranks)",
    "step-profile": "where a step's time goes: feed, forward, backward, exchange, optimizer (on ranks)",
}
_ON_HELP = "horovodrun, torchrun, or the executors of a Spark cluster (horovod)"


def add_options(step: argparse.ArgumentParser, name: str) -> None:
    """What is understood before a program gets the rest of the command line."""
    step.add_argument("--ranks", type=int, default=1, help="how many ranks (1)")
    step.add_argument("--hosts", help="horovodrun's hosts, for example a:4,b:4")
    step.add_argument("--on", choices=("horovod", "torch", "spark"), default="horovod", help=_ON_HELP)
    add_spark_options(step)
    if name == "train":
        step.add_argument("--min-ranks", type=int, help="elastic: goes on while so many ranks are left")
        step.add_argument(
            "--max-ranks", type=int, help="elastic: the most ranks, with which it begins if it can (--ranks)"
        )
        step.add_argument("--discover", help="elastic: program that prints the hosts there are, host:slots each")
        step.add_argument(
            "--max-restarts", type=int, default=100, help="elastic: changes of ranks it lives through (100)"
        )
        step.add_argument("--interfaces", help="elastic: network interfaces of the hosts, for example eth0")


def add_spark_options(step: argparse.ArgumentParser) -> None:
    step.add_argument("--master", help="Spark master (local[*])")
    step.add_argument("--conf", action="append", default=[], help="Spark setting KEY=VALUE")
    step.add_argument("--profile", help=f"Spark settings: a file, or one of {', '.join(profiles.names())}")


def run(given: argparse.Namespace, rest: list[str]) -> int:
    """Training settings are checked in one process first, so that a mistake is one line and not one a rank."""
    module = f"training.{given.step.replace('-', '_')}"
    if {"-h", "--help"} & {*rest}:
        return _show_help(module, given.step)
    elastic = elastic_of(given) if given.step == "train" else None
    on_spark = given.on == "spark"
    if not on_spark and (given.master or given.conf or given.profile):
        raise UserError("--master, --conf and --profile are Spark's: give --on spark too.")
    if on_spark and given.hosts is not None:
        raise UserError("--hosts is horovodrun's: with --on spark ranks run where the cluster's executors are.")
    most = given.ranks if elastic is None else elastic.max_ranks
    if given.step == "train" and (most > 1 or on_spark):
        code = launch.program(module, [*rest, "--check-only", "--world-size", str(most)])
        if code != 0:
            return code
    if on_spark:
        settings = {"master": given.master, "conf": given.conf, "profile": given.profile}
        return spark_ranks.on_spark(module, rest, ranks=given.ranks, **settings)
    return launch.on_ranks(module, rest, ranks=given.ranks, hosts=given.hosts, launcher=given.on, elastic=elastic)


def _show_help(module: str, name: str) -> int:
    """The program's own help, then that of the options that never reach it."""
    code = launch.program(module, ["--help"])
    ours = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS)
    add_options(ours.add_argument_group("where it runs"), name)  # type: ignore[arg-type]
    print(f"\n{ours.format_help().strip()}", flush=True)
    return code


def elastic_of(given: argparse.Namespace) -> Elastic | None:
    """What was asked of an elastic job, if that was."""
    if given.min_ranks is None:
        if given.max_ranks is not None or given.discover is not None:
            raise UserError("--max-ranks and --discover are of elastic jobs: give --min-ranks too.")
        return None
    most = given.ranks if given.max_ranks is None else given.max_ranks
    if not 1 <= given.min_ranks <= given.ranks <= most:
        raise UserError(
            f"an elastic job waits for --ranks, between --min-ranks and --max-ranks: {given.ranks} is not between "
            f"{given.min_ranks} and {most}."
        )
    if given.on != "horovod" or given.hosts is not None:
        raise UserError("elastic jobs are horovodrun's, and their hosts are those that --discover prints.")
    discover = Path(absolute(given.discover)) if given.discover is not None else None
    if discover is not None and not os.access(discover, os.X_OK):
        raise UserError(f"--discover {discover} is no program that can be run: make it executable (chmod +x).")
    return Elastic(
        min_ranks=given.min_ranks,
        max_ranks=most,
        discover=discover,
        interfaces=given.interfaces,
        max_restarts=given.max_restarts,
    )
