"""Ranks killed again and again while a model trains: the same rows, and a loss like that of runs left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.results import Results
from pipelines import launch
from pipelines.elastic import names_of_here
from schemas.errors import UserError

_RANKS = 3
_POLL_S = 0.1


def measure(
    results: Results, snapshot: Path, folder: Path, *, kills: int, seeds: Sequence[int], rows: int, console: Console
) -> None:
    """Undisturbed runs that differ by their seed, and one in which random ranks are killed."""
    for seed in seeds:
        key = {"part": "faults", "rows": rows, "kills": 0, "seed": seed}
        if results.find(key) is None:
            console.print(f"faults: undisturbed, seed {seed}", highlight=False)
            run = folder / f"undisturbed-{seed}"
            code = launch.on_ranks("training.train", arguments(snapshot, run, seed), ranks=_RANKS)
            if code != 0:
                raise UserError(f"training ended with code {code}; what it said stands above.")
            results.add(key, outcome(run))
    key = {"part": "faults", "rows": rows, "kills": kills, "seed": seeds[0]}
    if results.find(key) is None:
        console.print(f"faults: {kills} kills -9 on {_RANKS} ranks", highlight=False)
        results.add(key, killed(snapshot, folder, kills, seeds[0], console))


def arguments(snapshot: Path, run: Path, seed: int) -> list[str]:
    settings = [f"seed={seed}", "batch_size_per_rank=128", "epochs=2", "patience=2", "model.tables=sharded"]
    words = ["--snapshot", str(snapshot), "--recipe", "dlrm", "--run", str(run), "--checkpoint-every", "100"]
    return [*words, *(word for setting in settings for word in ("--set", setting))]


def killed(snapshot: Path, folder: Path, kills: int, seed: int, console: Console) -> dict[str, Any]:
    """One elastic job: when its ranks are all there and a checkpoint has been written since, one of them is killed.

    A dead rank's host is gone for good; a new one, by a name not seen before, takes its place.
    """
    run, hosts, script = folder / "killed", folder / "hosts", folder / "discover.sh"
    names = iter(names_of_here(_RANKS + kills))
    there = [next(names) for _ in range(_RANKS)]
    shutil.rmtree(run, ignore_errors=True)  # kills are counted in this call
    script.write_text(f"#!/bin/sh\ncat {hosts}\n")
    script.chmod(stat.S_IRWXU)
    _say_hosts(hosts, there)
    elastic = ["--ranks", str(_RANKS), "--min-ranks", "1", "--max-ranks", str(_RANKS), "--discover", str(script)]
    command = [sys.executable, "-m", "pipelines.cli", "train", *arguments(snapshot, run, seed)]
    began, done, chance, last = time.monotonic(), 0, random.Random(seed), None
    with (folder / "killed.log").open("w") as log:
        job = subprocess.Popen(
            [*command, *elastic, "--interfaces", "lo"],
            stdout=log,
            stderr=log,
            env=launch.environment(),
            cwd=launch.ROOT,
        )
        try:
            while job.poll() is None:
                time.sleep(_POLL_S)
                found = sorted(path.name for path in (run / "checkpoints").glob("epoch-*"))
                ranks = _ranks_of(job)
                if done < kills and found and found[-1] != last and len(ranks) == _RANKS:
                    host = chance.choice(sorted(ranks))
                    with suppress(ProcessLookupError):
                        os.kill(ranks[host], signal.SIGKILL)
                    there[there.index(host)] = next(names)
                    _say_hosts(hosts, there)
                    done, last = done + 1, found[-1]
                    console.print(f"    kill {done} after {last}", highlight=False)
        finally:
            if job.poll() is None:
                job.terminate()
                job.wait()
    if job.returncode != 0:
        raise UserError(
            f"the job that was killed at ended with code {job.returncode}: {folder / 'killed.log'} says why."
        )
    if done < kills:
        raise UserError(f"{done} of {kills} kills came before the run was over: give more --rows, or fewer --kills.")
    return {**outcome(run), "killed": done, "seconds": round(time.monotonic() - began, 1)}


def outcome(run: Path) -> dict[str, Any]:
    """Rows of each epoch, whose ids the ledger has compared, and the loss and metrics of the last."""
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    label = epochs[-1]["valid"]["heads"]["label"]
    return {
        "rows_of_epochs": [epoch["rows"] for epoch in epochs],
        "loss": [round(epoch["loss"], 6) for epoch in epochs],
        "valid_log_loss": round(label["log_loss"], 6),
        "valid_auc": round(label["auc"], 6),
    }


def _ranks_of(job: subprocess.Popen[bytes]) -> dict[str, int]:
    """Process by host, of the ranks that run."""
    found = {}
    with suppress(psutil.Error):
        for one in psutil.Process(job.pid).children(recursive=True):
            with suppress(psutil.Error):
                # The check before the job is the same program, on no host of Horovod's.
                host = one.environ().get("HOROVOD_HOSTNAME")
                if one.cmdline()[1:3] == ["-m", "training.train"] and host is not None:
                    found[host] = one.pid
    return found


def _say_hosts(file: Path, names: Sequence[str]) -> None:
    draft = file.with_suffix(".draft")
    draft.write_text("".join(f"{name}:1\n" for name in names))
    draft.rename(file)


def show(results: Results, console: Console, *, rows: int) -> dict[str, Any]:
    runs = [run for run in results.runs if run["part"] == "faults" and run["rows"] == rows]
    table = Table(title=f"{_RANKS} ranks, DLRM, ranks killed with SIGKILL", title_justify="left")
    for name in ("kills", "seed", "rows of epochs", "loss of the last", "valid log loss", "valid AUC", "s"):
        table.add_column(name, justify="right")
    for run in runs:
        counts = ", ".join(f"{count:,}" for count in run["rows_of_epochs"])
        cells = [str(run.get("killed", 0)), str(run["seed"]), counts, f"{run['loss'][-1]:.5f}"]
        table.add_row(*cells, f"{run['valid_log_loss']:.5f}", f"{run['valid_auc']:.5f}", f"{run.get('seconds', '')}")
    console.print(table)
    alone = [run["valid_log_loss"] for run in runs if not run["kills"]]
    disturbed = [run for run in runs if run["kills"]]
    if not (alone and disturbed):
        return {}
    return {
        "killed": disturbed[0]["killed"],
        "valid_log_loss": disturbed[0]["valid_log_loss"],
        "undisturbed": [min(alone), max(alone)],
        "every_row_of_every_epoch": all(run["rows_of_epochs"] == runs[0]["rows_of_epochs"] for run in runs),
    }
