"""KuaiRand-Pure by time, clicks and long views: DLRM and DCN-v2 beside logistic regression and LightGBM.

The same snapshot and the same features for all; what the others cannot take as it is, is said in `other_learners`.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.results import Results
from benchmarks.training_parts.programs import one_line
from pipelines import launch
from pipelines.report import read_evaluation
from schemas.errors import UserError

HEADS = {"label": "click", "label_long_view": "long view"}
OURS, OTHERS = ("dlrm", "dcn_v2"), ("logistic_regression", "lightgbm")


def measure(results: Results, raw: Path, folder: Path, *, seeds: Sequence[int], console: Console) -> None:
    if not raw.is_dir():
        raise UserError(f"{raw} is not there: KuaiRand-Pure's Parquet files; --kuairand says where they are.")
    snapshot = prepared(raw, folder)
    for seed in seeds:
        for model in (*OURS, *OTHERS):
            key = {"part": "quality", "model": model, "seed": seed}
            if results.find(key) is None:
                console.print(f"quality: {model}, seed {seed}", highlight=False)
                found = ours(snapshot, folder, model, seed) if model in OURS else others(snapshot, folder, model, seed)
                results.add(key, {"auc": found})


def prepared(raw: Path, folder: Path) -> Path:
    events, snapshot = folder / "events", folder / "snapshot"
    sizes = ["--history-length", "20", "--seen-length", "200", "--num-negatives", "20"]
    _ok(launch.spark_submit("ingest", ["--contract", "kuairand", "--raw", f"{raw}", "--out", f"{events}"]))
    where = ["--events", f"{events}", "--out", f"{snapshot}", "--features", "kuairand", *sizes]
    _ok(launch.spark_submit("prepare", where))
    return snapshot


def ours(snapshot: Path, folder: Path, model: str, seed: int) -> dict[str, float]:
    """AUC by head on test, of the epoch that is best on valid."""
    run = folder / f"{model}-{seed}"
    heads = json.dumps(dict.fromkeys(HEADS, 1.0))
    settings = [f"seed={seed}", f"loss.heads={heads}"]
    arguments = ["--snapshot", f"{snapshot}", "--recipe", model, "--run", f"{run}"]
    arguments += [word for setting in settings for word in ("--set", setting)]
    _ok(launch.program("training.train", arguments))
    _ok(launch.program("training.evaluate", ["--run", f"{run}"]))
    return {head: read_evaluation(run, "test").model.heads[head]["auc"] for head in HEADS}


def others(snapshot: Path, folder: Path, model: str, seed: int) -> dict[str, float]:
    words = [sys.executable, "-m", "benchmarks.training_peers.other_learners", "--snapshot", f"{snapshot}"]
    words += ["--model", model, "--seed", str(seed), "--heads", *HEADS]
    found: dict[str, float] = one_line(words, folder / f"{model}.log")["auc"]
    return found


def show(results: Results, console: Console) -> dict[str, Any]:
    table = Table(title="KuaiRand-Pure, test, AUC: mean and spread over seeds", title_justify="left")
    table.add_column("model")
    for name in HEADS.values():
        table.add_column(name, justify="right")
    found: dict[str, Any] = {}
    for model in (*OURS, *OTHERS):
        runs = [run for run in results.runs if run["part"] == "quality" and run["model"] == model]
        if not runs:
            continue
        by_head = {head: [run["auc"][head] for run in runs] for head in HEADS}
        table.add_row(model, *(f"{statistics.mean(v):.4f} ± {_spread(v):.4f}" for v in by_head.values()))
        found[model] = {head: round(statistics.mean(values), 4) for head, values in by_head.items()}
    console.print(table)
    return found


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _ok(code: int) -> None:
    if code != 0:
        raise UserError(f"a step of Headrace ended with code {code}; what it said stands above.")
