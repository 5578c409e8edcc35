"""What the levers of data quality do to the metrics: re-weighting, rows not wanted, varied histories; real data, seeds.

Rankers on KuaiRand-Pure by time (AUC of clicks; propensities are estimated from how often an item was shown, for the
log has none), a retriever on it (NDCG@10 of clicks, and of videos shown in vain: what was shown and left is taught or
not), retrievers on MovieLens 100K by time (NDCG@10, rating by rating). Each lever stands beside the recipe as
it is built in, with the difference to it on the same seed. Models are chosen on valid; the table shows test. What is
done is kept in <to>/results.jsonl, so that a run cut off goes on. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.levers_data import kuairand, ml_100k
from benchmarks.results import Results
from pipelines import launch
from pipelines.report import read_evaluation
from schemas.bundle import RunEvaluation, SliceMetrics
from schemas.errors import UserError
from schemas.storage import absolute

PLAIN = "as built in"
_BY_PROPENSITY = {f"propensity, floor {floor}": [f"loss.propensity={{floor: {floor}}}"] for floor in (0.3, 0.1, 0.03)}
_NEGATIVE_ROWS = {
    "below 4 stars left out": ["loss.negative_rows={below: 4, weight: 0}"],
    "below 4 stars not wanted": ["loss.negative_rows={below: 4, weight: 1}"],
}
_SHOWN_IN_VAIN = {
    "clicks alone": ["loss.negative_rows={below: 1, weight: 0}"],
    "shown in vain not wanted, 0.1": ["loss.negative_rows={below: 1, weight: 0.1}"],
    "shown in vain not wanted, 1": ["loss.negative_rows={below: 1, weight: 1}"],
}
_AUGMENT = {
    "histories cropped": ["model.augment={share: 0.5, crop: 0.6}"],
    "histories masked": ["model.augment={share: 0.5, mask: 0.3}"],
    "histories reordered": ["model.augment={share: 0.5, reorder: 0.6}"],
    "one of the three": ["model.augment={share: 0.5, crop: 0.6, mask: 0.3, reorder: 0.6}"],
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A data set with the recipes and levers that are tried on it."""

    data: str
    recipes: tuple[str, ...]
    levers: Mapping[str, list[str]]
    slice_by: str
    metric: str
    more: tuple[str, ...]


PARTS = {
    "kuairand": Part(
        data="kuairand",
        recipes=("dlrm", "dcn_v2"),
        levers={PLAIN: []} | _BY_PROPENSITY,
        slice_by="propensity",
        metric="auc",
        more=("log_loss", "calibration"),
    ),
    "kuairand-retrieval": Part(
        data="kuairand",
        recipes=("two_tower_new_users",),
        levers={PLAIN: []} | _SHOWN_IN_VAIN,
        slice_by="label",
        metric="ndcg@10",
        more=("recall@10", "coverage@10"),
    ),
    "ml-100k": Part(
        data="ml-100k",
        recipes=("two_tower", "sasrec"),
        levers={PLAIN: []} | _NEGATIVE_ROWS | _AUGMENT,
        slice_by="label",
        metric="ndcg@10",
        more=("recall@10", "coverage@10"),
    ),
}


def measured(part: Part, snapshot: Path, run: Path, recipe: str, settings: Sequence[str]) -> dict[str, float]:
    """Train and evaluate; what stands is kept. The metrics of test, and the first of the lowest and highest slice."""
    words = ["--snapshot", f"{snapshot}", "--recipe", recipe, "--run", f"{run}", "--no-tensorboard"]
    words += [word for setting in settings for word in ("--set", setting)]
    _ok(launch.program("training.train", words))
    _ok(launch.program("training.evaluate", ["--run", f"{run}", "--slice", part.slice_by]))
    return figures(part, read_evaluation(run, "test"))


def figures(part: Part, evaluation: RunEvaluation) -> dict[str, float]:
    found = evaluation.model
    metrics = found.heads["label"] if found.heads else found.full
    lowest, highest = ends(found.slices["label" if found.heads else "full"], part.slice_by)
    of_slices = {"lowest": lowest.metrics.get(part.metric), "highest": highest.metrics.get(part.metric)}
    named = {f"{part.metric}, {end} {part.slice_by}": value for end, value in of_slices.items() if value is not None}
    return {part.metric: metrics[part.metric]} | named | {name: metrics[name] for name in part.more}


def ends(slices: Sequence[SliceMetrics], column: str) -> tuple[SliceMetrics, SliceMetrics]:
    """The first and the last range of a number, as slices are named."""
    ranges = [one for one in slices if one.column == column]
    low = next(one for one in ranges if one.value.startswith("up to ") or one.value == "all")
    above = [one for one in ranges if one.value.startswith("over ")]
    # A range without an upper edge is not there where the last edge is the largest value, as of labels 0 and 1.
    without_end = [one for one in above if " to " not in one.value]
    return low, (without_end or above or [low])[-1]


def show(name: str, part: Part, runs: Sequence[Mapping[str, Any]], console: Console) -> dict[str, Any]:
    """Each lever's mean over seeds, with that of its differences to the recipe as it is, and their spread."""
    columns = list(runs[0]["found"])
    table = Table(title=f"{name}, test: mean over seeds, and difference to the recipe ± spread", title_justify="left")
    for column in ("recipe", "lever", *columns):
        table.add_column(column, justify="left" if column in ("recipe", "lever") else "right")
    found: dict[str, Any] = {}
    for recipe in part.recipes:
        plain = {run["seed"]: run["found"] for run in runs if (run["recipe"], run["lever"]) == (recipe, PLAIN)}
        for lever in part.levers:
            mine = {run["seed"]: run["found"] for run in runs if (run["recipe"], run["lever"]) == (recipe, lever)}
            if not mine:
                continue
            shown = [_cell(column, mine, plain if lever != PLAIN else {}) for column in columns]
            table.add_row(recipe, lever, *shown)
            means = {column: round(_mean([one[column] for one in mine.values()]), 4) for column in columns}
            found.setdefault(recipe, {})[lever] = means
        table.add_section()
    console.print(table)
    return found


def _cell(column: str, mine: Mapping[int, Mapping[str, float]], plain: Mapping[int, Mapping[str, float]]) -> str:
    mean = f"{_mean([one[column] for one in mine.values()]):.4f}"
    differences = [mine[seed][column] - plain[seed][column] for seed in mine if seed in plain]
    if not differences:
        return mean
    spread = f" ± {statistics.stdev(differences):.4f}" if len(differences) > 1 else ""
    return f"{mean} ({_mean(differences):+.4f}{spread})"


def _mean(values: Sequence[float]) -> float:
    return statistics.mean(values)


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="headrace benchmark levers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = command.add_argument
    add("--to", default="runs/bench-levers", help="folder for rows, runs and results (runs/bench-levers)")
    add("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="(all)")
    add("--recipes", nargs="+", help="only these")
    add("--levers", nargs="+", help="only those with one of these words in their name, beside the recipe itself")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training (0 1 2)")
    add("--epochs", type=int, help="other epochs than the recipes', for a first look")
    add("--kuairand", default="../shared/data/kuairand", help="its files (../shared/data/kuairand)")
    add("--kuairand-rows", type=int, default=0, help="the first rows of its log, for a first look (0: all)")
    given = command.parse_args(arguments)
    folder, console = Path(absolute(given.to)), Console(stderr=True)
    results = Results(folder / "results.jsonl")
    try:
        for name in given.parts:
            _measure(name, given, folder / PARTS[name].data, results, console)
    except UserError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return 2
    found: dict[str, Any] = {"benchmark": "levers"}
    for name, part in PARTS.items():
        # A first look, on fewer rows or epochs, is not mixed with the rest.
        wanted = {"part": name, **_size(name, given)}
        runs = [run for run in results.runs if all(run[key] == value for key, value in wanted.items())]
        if runs:
            found[name] = show(name, part, runs, Console(width=160))
    print(json.dumps(found))
    return 0


def _measure(name: str, given: argparse.Namespace, folder: Path, results: Results, console: Console) -> None:
    part = PARTS[name]
    if part.data == "kuairand":
        snapshot = kuairand(Path(absolute(given.kuairand)), folder / str(given.kuairand_rows), rows=given.kuairand_rows)
    else:
        snapshot = ml_100k(folder)
    # Seeds in turn: what is cut off has as many of each.
    for seed in given.seeds:
        for recipe in (one for one in part.recipes if not given.recipes or one in given.recipes):
            for number, (lever, settings) in enumerate(part.levers.items()):
                if lever != PLAIN and given.levers and not any(word in lever for word in given.levers):
                    continue
                key = {"part": name, "recipe": recipe, "lever": lever, "seed": seed, **_size(name, given)}
                if results.find(key) is None:
                    console.print(f"levers: {recipe}, {lever}, seed {seed}", highlight=False)
                    epochs = [f"epochs={given.epochs}"] if given.epochs else []
                    run = snapshot.parent / "runs" / f"{recipe}-{number}-{given.epochs or 'all'}-{seed}"
                    words = [f"seed={seed}", *epochs, *settings]
                    results.add(key, {"found": measured(part, snapshot, run, recipe, words)})


def _size(name: str, given: argparse.Namespace) -> dict[str, int | None]:
    return {"epochs": given.epochs, "rows": given.kuairand_rows if PARTS[name].data == "kuairand" else 0}


def _ok(code: int) -> None:
    if code != 0:
        raise UserError(f"a step of Headrace ended with code {code}; what it said stands above.")


if __name__ == "__main__":
    sys.exit(main())
