"""The command line `headrace`: one name over every step, each of which is a program of its own."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from pipelines import kubernetes_jobs, launch, on_ranks, profiles
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
    "feedback": "what was shown and done -> events of the contract, with propensities (Spark)",
    "drift": "what changed between two windows or snapshots, column by column (Spark)",
    "skew": "requests as served against the batch features, example by example (Spark)",
}
# A module named `profile` would hide Python's own from every job, for spark-submit looks in their folder first.
JOB_FILES = {"profile": "profile_snapshot"}
SERVING = {
    "release": ("serving.pack", "bundles and a snapshot -> a release: all that a server needs, in one folder"),
    "serve": ("serving.server", "answer requests, log what was shown and done, follow the champion"),
    "land": ("serving.land", "logs of servers -> Parquet by day, or PostgreSQL, each record once"),
    "estimate": ("serving.estimate", "what a release would have earned on the log of another (IPS, SNIPS, DR)"),
}
LOOP = {
    "gate": ("pipelines.gate", "may a candidate be promoted? checks, reasons, verdict"),
    "promote": ("pipelines.promote", "put a release into service, or roll back to the one before"),
    "turn": ("pipelines.turn", "one turn of the wheel: feedback to promoted release; goes on where it stopped"),
    "watch": ("pipelines.watch", "turn the wheel on schedule, or when volume or drift says so"),
}
MEASURES = {
    "check": "prove that a snapshot is whole, its ids fit and its layout fits the ranks",
    "throughput": "rows a second that the feed gives on this machine",
}
BENCHMARKS = ("quality", "feed", "spark", "training", "images", "wheel", "off_policy", "drift", "serving", "levers")
EPILOG = (
    "A command's own --help shows its settings; `headrace train --help` those of training.train, and so on. "
    "The Spark jobs, and ranks with --on spark, also take --master, --conf KEY=VALUE and --profile (a file of Spark "
    f"settings, or one of {', '.join(profiles.names())}). README and docs/guide.md tell the rest."
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

    data = steps.add_parser("data", help="fetch a public data set, or pretrained weights")
    data.add_argument("name", help=f"one of: {', '.join(DATA_SETS)}")
    data.add_argument("--to", required=True, help="folder to put its files into")

    for name, summary in JOBS.items():
        job = steps.add_parser(name, help=summary, add_help=False)
        on_ranks.add_spark_options(job)
    for name, summary in on_ranks.PROGRAMS.items():
        ranked = steps.add_parser(name, help=summary, add_help=False)
        on_ranks.add_options(ranked, name)
    steps.add_parser("recommend", help="ten items for one user", add_help=False)
    steps.add_parser("export", help="a run's model as ONNX and torch.export, tables as int8 or bf16", add_help=False)
    steps.add_parser(
        "verify-resume", help="train twice, once killed and gone on with, and compare to the bit", add_help=False
    )
    steps.add_parser("tune", help="search a recipe's settings: trials in parallel, pruned, resumed", add_help=False)
    steps.add_parser("register", help="run -> version of a model in MLflow's registry", add_help=False)
    steps.add_parser("manifest", help="YAML of a Kubeflow job that trains: MPIJob or PyTorchJob", add_help=False)
    for name, (_, summary) in (SERVING | LOOP).items():
        steps.add_parser(name, help=summary, add_help=False)
    for name, summary in MEASURES.items():
        steps.add_parser(name, help=summary, add_help=False)

    benchmark = steps.add_parser("benchmark", help="run a benchmark: one table and one line of JSON", add_help=False)
    benchmark.add_argument("name", choices=BENCHMARKS, help="which")
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
    elif given.step in on_ranks.PROGRAMS:
        return on_ranks.run(given, rest)
    elif given.step == "tune":
        if find_spec("optuna") is None:
            raise UserError("tune searches with Optuna: install headrace[tracking].")
        launch.become("pipelines.tune", rest)
    elif given.step == "verify-resume":
        return launch.program("pipelines.verify_resume", rest)
    elif given.step == "manifest":
        return kubernetes_jobs.main(rest)
    elif given.step in SERVING or given.step in LOOP:
        if given.step in SERVING and find_spec("faiss") is None:
            raise UserError(f"{given.step} needs headrace[serving].")
        launch.become((SERVING | LOOP)[given.step][0], rest)
    elif given.step in MEASURES or given.step in ("recommend", "register", "export"):
        return launch.program(f"training.{given.step}", rest)
    else:
        return launch.program(f"benchmarks.{given.name}", rest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
