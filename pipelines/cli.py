"""The command line `headrace`: one name over every step, each of which is a program of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipelines import launch, profiles
from pipelines.data import DATA_SETS, fetch
from pipelines.demo import StepFailed, demo
from schemas.errors import UserError
from schemas.programs import Parser
from schemas.storage import absolute
from schemas.version import VERSION

JOBS = {
    "ingest": "raw log -> checked events, quarantine and ledger (Spark)",
    "prepare": "checked events -> snapshot with splits, features and vocabularies (Spark)",
    "images": "folder or tars of images, a sub-folder a class -> snapshot of one size (Spark)",
    "profile": "snapshot or events -> a page that says what is in them, column by column (Spark)",
}
# A module named `profile` would hide Python's own from every job, for spark-submit looks in their folder first.
JOB_FILES = {"profile": "profile_snapshot"}
PROGRAMS = {
    "train": "snapshot -> run with checkpoints and bundle (on ranks)",
    "evaluate": "metrics of a run on a split, beside popularity or with intervals (on ranks)",
    "compare": "whether two rankers differ by more than chance (on ranks)",
}
MEASURES = {
    "check": "prove that a snapshot is whole, its ids fit and its layout fits the ranks",
    "throughput": "rows a second that the feed gives on this machine",
}
EPILOG = (
    "A command's own --help shows its settings; `headrace train --help` those of training.train, and so on. "
    "The Spark jobs also take --master, --conf KEY=VALUE and --profile (a file of Spark settings, or one of "
    f"{', '.join(profiles.names())}). README and docs/guide.md tell the rest."
)


def parser() -> argparse.ArgumentParser:
    """The commands. What a job or program understands is its own to say: those get their arguments as they stand."""
    command = Parser(prog="headrace", description="Interaction logs to trained recommenders.", epilog=EPILOG)
    command.add_argument("--version", action="version", version=VERSION)
    steps = command.add_subparsers(dest="step", required=True, metavar="COMMAND")

    run_demo = steps.add_parser("demo", help="MovieLens 100K from raw log to recommendations")
    run_demo.add_argument("--to", default="runs/demo", help="folder of the demo (runs/demo)")
    run_demo.add_argument("--ranks", type=int, default=2, help="Horovod ranks (2)")
    run_demo.add_argument("--master", help="Spark master, for example spark://host:7077 (local[*])")

    data = steps.add_parser("data", help="fetch a public data set")
    data.add_argument("name", help=f"one of: {', '.join(DATA_SETS)}")
    data.add_argument("--to", required=True, help="folder to put its files into")

    for name, summary in JOBS.items():
        job = steps.add_parser(name, help=summary, add_help=False)
        job.add_argument("--master", help="Spark master (local[*])")
        job.add_argument("--conf", action="append", default=[], help="Spark setting KEY=VALUE")
        job.add_argument("--profile", help=f"Spark settings: a file, or one of {', '.join(profiles.names())}")
    for name, summary in PROGRAMS.items():
        ranked = steps.add_parser(name, help=summary, add_help=False)
        ranked.add_argument("--ranks", type=int, default=1, help="how many ranks (1)")
        ranked.add_argument("--hosts", help="horovodrun's hosts, for example a:4,b:4")
        ranked.add_argument("--on", choices=("horovod", "torch"), default="horovod", help="horovodrun or torchrun")
    steps.add_parser("recommend", help="ten items for one user", add_help=False)
    steps.add_parser(
        "verify-resume", help="train twice, once killed and gone on with, and compare to the bit", add_help=False
    )

    for name, summary in MEASURES.items():
        steps.add_parser(name, help=summary, add_help=False)

    benchmark = steps.add_parser("benchmark", help="run a benchmark: one table and one line of JSON", add_help=False)
    benchmark.add_argument("name", choices=("quality", "feed", "spark"), help="which")
    return command


def main(arguments: list[str] | None = None) -> int:
    command = parser()
    given, rest = command.parse_known_args(arguments)
    own = {"demo", "data"}
    if rest and given.step in own:
        command.error(f"{given.step} does not know {' '.join(rest)}")
    try:
        return run(given, rest)
    except UserError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return 2
    except StepFailed as failure:
        return failure.code
    except KeyboardInterrupt:
        print("headrace: interrupted; the same command goes on from what is done", file=sys.stderr)
        return 130


def run(given: argparse.Namespace, rest: list[str]) -> int:
    """Do what was asked; give the exit code."""
    if given.step == "demo":
        demo(Path(absolute(given.to)), ranks=given.ranks, master=given.master)
    elif given.step == "data":
        print(fetch(given.name, Path(absolute(given.to))))
    elif given.step in JOBS:
        job = JOB_FILES.get(given.step, given.step)
        return launch.spark_submit(job, rest, master=given.master, conf=given.conf, profile=given.profile)
    elif given.step in PROGRAMS:
        return on_ranks(given, rest)
    elif given.step == "verify-resume":
        return launch.program("pipelines.verify_resume", rest)
    elif given.step in MEASURES or given.step == "recommend":
        return launch.program(f"training.{given.step}", rest)
    else:
        return launch.program(f"benchmarks.{given.name}", rest)
    return 0


def on_ranks(given: argparse.Namespace, rest: list[str]) -> int:
    """Training settings are checked in one process first, so that a mistake is one line and not one a rank."""
    module = f"training.{given.step}"
    if {"-h", "--help"} & set(rest):
        return launch.program(module, rest)
    if given.step == "train" and given.ranks > 1:
        code = launch.program(module, [*rest, "--check-only", "--world-size", str(given.ranks)])
        if code != 0:
            return code
    return launch.on_ranks(module, rest, ranks=given.ranks, hosts=given.hosts, launcher=given.on)


if __name__ == "__main__":
    sys.exit(main())
