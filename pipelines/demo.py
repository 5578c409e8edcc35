"""The demo: MovieLens 100K from raw log to trained, evaluated model and recommendations; what is done is kept."""

from __future__ import annotations

import time
from pathlib import Path

from pipelines import launch
from pipelines.data import fetch
from pipelines.report import artifacts_table, ledger_table, metrics_table, read_evaluation, show
from schemas.snapshot import open_snapshot

RECIPES = ("two_tower", "matrix_factorisation")
USER = "1"


class StepFailed(Exception):
    """A program ended with an error that it has printed itself."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


def demo(folder: Path, *, ranks: int, master: str | None) -> None:
    """Run every step below `folder`; raises StepFailed where a program fails."""
    began = time.monotonic()
    raw, events, snapshot = folder / "raw", folder / "events", folder / "snapshot"
    runs = {recipe: folder / recipe for recipe in RECIPES}
    _say(1, "the raw log")
    print(fetch("ml-100k", raw))
    _say(2, "ingest: check every row of it against the contract")
    _ok(
        launch.spark_submit("ingest", ["--contract", "ml-100k", "--raw", f"{raw}", "--out", f"{events}"], master=master)
    )
    _say(3, "prepare: split by time, fit on train, write the snapshot")
    _ok(launch.spark_submit("prepare", ["--events", f"{events}", "--out", f"{snapshot}"], master=master))
    _say(4, "check: every file of the snapshot is whole, ids fit, the ledger adds up")
    _ok(launch.program("training.check", [f"{snapshot}", "--ranks", str(ranks)]))
    _say(5, f"train on {ranks} ranks")
    for recipe, run in runs.items():
        arguments = ["--snapshot", f"{snapshot}", "--recipe", recipe, "--run", f"{run}"]
        _ok(launch.on_ranks("training.train", arguments, ranks=ranks))
    _say(6, "evaluate on test, which nothing has looked at so far")
    for run in runs.values():
        _ok(launch.on_ranks("training.evaluate", ["--run", f"{run}"], ranks=ranks))
    _say(7, "the result")
    evaluations = {recipe: read_evaluation(run, "test") for recipe, run in runs.items()}
    show(
        ledger_table(open_snapshot(str(snapshot)), list(runs.values())),
        metrics_table(evaluations, best=RECIPES[0]),
    )
    _ok(launch.program("training.recommend", ["--run", f"{runs[RECIPES[0]]}", "--user", USER]))
    show(
        artifacts_table(
            {
                "raw log": raw,
                "checked events, quarantine": events,
                "snapshot": snapshot,
                **{f"run {recipe}: bundle, metrics, TensorBoard": run for recipe, run in runs.items()},
            }
        )
    )
    print(f"demo: done in {time.monotonic() - began:.0f} s")


def _say(number: int, what: str) -> None:
    print(f"\n[{number}/7] {what}", flush=True)


def _ok(code: int) -> None:
    if code != 0:
        raise StepFailed(code)
