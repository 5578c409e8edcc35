"""Releases in MLflow's registry, from the commands that decide about them."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Literal

from pipelines import launch


def add_options(command: ArgumentParser, what: str) -> None:
    command.add_argument(
        "--track", metavar="URI", help=f"register {what} in MLflow: an address, or env (not registered)"
    )
    command.add_argument("--model", metavar="NAME", help="name of the registered model; --track asks for it")


def check_options(command: ArgumentParser, given: Namespace) -> None:
    if (given.track is None) != (given.model is None):
        command.error("--track and --model belong together")


def register(
    release: Path,
    given: Namespace,
    *,
    alias: Literal["champion", "challenger"],
    verdict: str | Path | None,
    force: str | None = None,
) -> int:
    """Make the release a version of the model, and point the alias at it; give the exit code."""
    arguments = ["--release", str(release), "--track", given.track, "--model", given.model, "--alias", alias]
    arguments += ["--verdict", str(verdict)] if verdict is not None else []
    arguments += ["--forced", force] if force is not None else []
    return launch.program("training.register_release", arguments)
