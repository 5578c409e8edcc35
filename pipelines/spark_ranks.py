"""Training on the executors of a Spark cluster: which settings its barrier tasks need, and the code that goes along."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipelines import launch, profiles
from schemas.errors import UserError

_NEEDED = {
    # A rank that fails ends all: the same command goes on from the last checkpoint, a second try by Spark would not be
    # seen by anyone.
    "spark.stage.maxConsecutiveAttempts": "1",
    "spark.task.maxFailures": "1",
    "spark.excludeOnFailure.enabled": "false",  # Spark refuses it beside a single try
    # All ranks start at once, so barrier tasks refuse executors that come and go.
    "spark.dynamicAllocation.enabled": "false",
}
# Executors may take a while to come; Spark would look for ten minutes whether there are slots for all ranks.
_LOOKS_FOR_SLOTS = {
    "spark.scheduler.barrier.maxConcurrentTasksCheck.interval": "5s",
    "spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures": "24",
}
_SHIPPED = ("schemas", "training")


def on_spark(
    module: str,
    arguments: Sequence[str],
    *,
    ranks: int,
    master: str | None = None,
    conf: Sequence[str] = (),
    profile: str | None = None,
) -> int:
    """Run `python -m module` on as many ranks as asked, each a barrier task on an executor; give the exit code."""
    given = profiles.settings(profiles.find(profile)) if profile is not None else {}
    given |= dict(setting.split("=", 1) for setting in conf if "=" in setting)
    if given.get("spark.submit.deployMode") == "cluster":
        raise UserError("--on spark shows on this terminal what ranks print: leave spark.submit.deployMode at client.")
    wanted = {key: value for key, value in _LOOKS_FOR_SLOTS.items() if key not in given} | _NEEDED
    with tempfile.TemporaryDirectory(prefix="headrace-") as scratch:
        program = ["--ranks", str(ranks), "--folder", str(Path.cwd())]
        if not launch.is_local(master or given.get("spark.master")):
            program += ["--code", str(launch.zip_of_code(Path(scratch) / "headrace-code.zip", _SHIPPED))]
        settings = [*conf, *(f"{key}={value}" for key, value in wanted.items())]
        program += [module, *arguments]
        return launch.spark_submit("ranks", program, master=master, conf=settings, profile=profile)
