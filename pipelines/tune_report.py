"""What a search found: a table, the trials as CSV and JSON, plots, and the best trial's recipe."""

from __future__ import annotations

import csv
import io
import json
import os
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from pipelines.search import ERROR, FOLDER, finished
from pipelines.tune_space import Dimension

_SHOWN = 10


def ordered(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that are done, the best first, then those that were pruned, then those that failed."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    places = {TrialState.COMPLETE: 0, TrialState.PRUNED: 1, TrialState.FAIL: 2}

    def place(trial: FrozenTrial) -> tuple[int, float, int]:
        return places[trial.state], sign * (trial.value if trial.value is not None else 0.0), trial.number

    return sorted(finished(study), key=place)


def print_table(study: optuna.Study, space: tuple[Dimension, ...], chosen_by: str) -> None:
    """The best trials, one a line."""
    table = Table(title=f"Best trials of {study.study_name} by valid {chosen_by}", title_justify="left")
    for heading in ("trial", chosen_by, "epochs done", "s", *(dimension.key for dimension in space)):
        table.add_column(heading, justify="right", overflow="fold")
    for trial in ordered(study)[:_SHOWN]:
        row = _row(trial, space)
        value = "failed" if row["value"] is None else f"{row['value']:.4f}"
        pruned = " (pruned)" if trial.state == TrialState.PRUNED else ""
        settings = [_shown(row[dimension.key]) for dimension in space]
        table.add_row(row["trial"], value + pruned, str(row["epochs_done"]), f"{row['seconds']:.1f}", *settings)
    Console().print(table)


def write_trials(study: optuna.Study, space: tuple[Dimension, ...], to: Path) -> None:
    """trials.json and trials.csv, in the order of the table."""
    rows = [_row(trial, space) for trial in ordered(study)]
    write(to / "trials.json", json.dumps(rows, indent=1).encode())
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[*rows[0]])
    writer.writeheader()
    writer.writerows(rows)
    write(to / "trials.csv", text.getvalue().encode())


def write_best(recipe: dict[str, Any], study: optuna.Study, chosen_by: str, to: Path) -> Path:
    """The recipe of the best trial, all settings written out; `headrace train --recipe` takes it."""
    best = study.best_trial
    head = f"# Trial {best.user_attrs[FOLDER]} of {study.study_name}: valid {chosen_by} {best.value:.4f}.\n"
    body = yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=120)
    return write(to / "best.yaml", (head + body).encode())


def write_plots(study: optuna.Study, to: Path, say: Callable[[str], None]) -> None:
    """PNGs under plots/; what cannot be drawn of these trials is said and left out."""
    import matplotlib  # only here: it is slow to import, and most of a search is without it

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    (to / "plots").mkdir(exist_ok=True)
    drawn: dict[str, Callable[..., Any]] = {
        "history": plots.plot_optimization_history,
        "importance": plots.plot_param_importances,
        "parallel-coordinates": plots.plot_parallel_coordinate,
        "slice": plots.plot_slice,
    }
    for name, draw in drawn.items():
        with warnings.catch_warnings(), pyplot.rc_context({"figure.figsize": (10, 6)}):
            warnings.simplefilter("ignore")  # the module says of itself that it is experimental
            try:
                draw(study)
            except (ValueError, RuntimeError) as error:
                say(f"no plot of {name}: {str(error).splitlines()[0]}")
                continue
            image = io.BytesIO()
            pyplot.savefig(image, format="png", dpi=120, bbox_inches="tight")
            pyplot.close("all")
        write(to / "plots" / f"{name}.png", image.getvalue())


def write(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return draft.rename(path)


def _row(trial: FrozenTrial, space: tuple[Dimension, ...]) -> dict[str, Any]:
    seconds = trial.duration.total_seconds() if trial.duration is not None else 0.0
    fixed = {
        "trial": trial.user_attrs[FOLDER],
        "state": trial.state.name.lower(),
        "value": trial.value,
        "epochs_done": len(trial.intermediate_values),
        "seconds": round(seconds, 3),
        "error": trial.user_attrs.get(ERROR, ""),
    }
    settings = {dimension.key: dimension.value(trial.params[dimension.key]) for dimension in space}
    return {**fixed, **settings}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
