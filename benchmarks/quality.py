"""Quality on MovieLens 100K under RecBole's protocol, beside the figures that RecBole publishes for BPR.

Every rating is an implicit positive; a seeded 8:1:1 split per user; full ranking with seen items left out; recall,
NDCG and hit at 10 averaged over users. Models are chosen on valid only; the table shows test, mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines import launch
from pipelines.data import fetch
from pipelines.report import read_evaluation
from schemas.storage import absolute

METRICS = ("recall@10", "ndcg@10", "hr@10")
RECBOLE_BPR = {"recall@10": 0.2368, "ndcg@10": 0.2768, "hr@10": 0.7614}
RECIPES = ("two_tower_user", "matrix_factorisation")
HISTORY_LENGTH = 400

Results = dict[str, dict[int, dict[str, float]]]
"""By recipe and seed: metrics on test; `valid ndcg@10` beside them."""


def quality(folder: Path, *, seeds: list[int], recipes: list[str], ranks: int) -> Results:
    """Prepare, train and evaluate each recipe on each seed below `folder`; what stands is kept."""
    results: Results = {recipe: {} for recipe in recipes}
    raw, events = folder / "raw", folder / "events"
    print(fetch("ml-100k", raw))
    _ok(launch.spark_submit("ingest", ["--contract", "ml-100k", "--raw", f"{raw}", "--out", f"{events}"]))
    for seed in seeds:
        snapshot = folder / f"ratio-{seed}"
        settings = ["--split", "ratio:0.8,0.1,0.1", "--seed", f"{seed}", "--history-length", f"{HISTORY_LENGTH}"]
        _ok(launch.spark_submit("prepare", ["--events", f"{events}", "--out", f"{snapshot}", *settings]))
        for recipe in recipes:
            run = folder / f"{recipe}-{seed}"
            arguments = ["--snapshot", f"{snapshot}", "--recipe", recipe, "--set", f"seed={seed}", "--run", f"{run}"]
            _ok(launch.on_ranks("training.train", arguments, ranks=ranks))
            for split in ("valid", "test"):
                _ok(launch.on_ranks("training.evaluate", ["--run", f"{run}", "--split", split], ranks=ranks))
            found = read_evaluation(run, "test").model.full
            valid = read_evaluation(run, "valid").model.full["ndcg@10"]
            results[recipe][seed] = {**{name: found[name] for name in METRICS}, "valid ndcg@10": valid}
    return results


def mean(by_seed: dict[int, dict[str, float]], metric: str) -> float:
    return statistics.mean(values[metric] for values in by_seed.values())


def show(results: Results, best: str) -> None:
    table = Table(title="MovieLens 100K, seeded 8:1:1 split per user, full ranking, test", title_justify="left")
    columns = (*METRICS, "valid ndcg@10")
    for name in ("model", "seed", *columns):
        table.add_column(name, justify="left" if name == "model" else "right")
    table.add_row("BPR, as RecBole publishes it", "", *(f"{RECBOLE_BPR[name]:.4f}" for name in METRICS), "")
    for recipe, by_seed in results.items():
        table.add_section()
        for seed, values in by_seed.items():
            table.add_row(recipe, str(seed), *(f"{values[name]:.4f}" for name in columns))
        means = [f"{mean(by_seed, name):.4f}" for name in columns]
        table.add_row(f"{recipe}{' (best on valid)' if recipe == best else ''}", "mean", *means, style="bold")
    Console(width=120).print(table)


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="headrace benchmark quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--to", default="runs/quality", help="folder to work in (runs/quality)")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of split and training (0 1 2)")
    command.add_argument("--recipes", nargs="+", default=list(RECIPES), help=f"({' '.join(RECIPES)})")
    command.add_argument("--ranks", type=int, default=2, help="Horovod ranks (2)")
    given = command.parse_args(arguments)
    results = quality(Path(absolute(given.to)), seeds=given.seeds, recipes=given.recipes, ranks=given.ranks)
    best = max(results, key=lambda recipe: mean(results[recipe], "valid ndcg@10"))
    show(results, best)
    means = {recipe: {name: round(mean(found, name), 4) for name in METRICS} for recipe, found in results.items()}
    reached = all(means[best][name] >= RECBOLE_BPR[name] for name in METRICS)
    print(json.dumps({"benchmark": "quality", "best": best, "mean": means, "published": RECBOLE_BPR, "met": reached}))
    return 0 if reached else 1


def _ok(code: int) -> None:
    if code != 0:
        sys.exit(code)


if __name__ == "__main__":
    sys.exit(main())
