"""The tables that end a run: the row ledger, the metrics beside the baselines, and where the artifacts lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from schemas.bundle import RunEvaluation
from schemas.snapshot import Snapshot

SHOWN_METRICS = ("ndcg@10", "recall@10", "hr@10", "mrr@10", "coverage@10")


def read_evaluation(run: Path, split: str) -> RunEvaluation:
    return RunEvaluation.model_validate_json((run / f"evaluation-{split}.json").read_text(encoding="utf-8"))


def rows_trained_on(run: Path) -> list[int]:
    """Rows of each epoch, summed over the ranks."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [int(json.loads(line)["rows"]) for line in lines]


def ledger_table(snapshot: Snapshot, runs: Sequence[Path]) -> Table:
    """From the lines of the log to the rows of every epoch; each sum was checked when it was made."""
    ledger = snapshot.manifest.ledger
    assert ledger.splits is not None
    table = Table(title="Row ledger", title_justify="left")
    table.add_column("where")
    table.add_column("rows", justify="right")
    table.add_column("are", overflow="fold")
    for name, counts in ledger.tables.items():
        table.add_row(
            f"{name}, raw",
            f"{counts.rows:,}",
            f"{counts.accepted:,} accepted + {counts.duplicates:,} duplicates + {counts.quarantined:,} quarantined",
        )
    splits = ledger.splits
    table.add_row(
        "events, accepted",
        f"{splits.accepted:,}",
        " + ".join(f"{count:,} {name}" for name, count in splits.parts().items()),
    )
    for run in runs:
        epochs = rows_trained_on(run)
        table.add_row(
            f"{run.name}, trained",
            f"{sum(epochs):,}",
            f"{len(epochs)} epochs of {epochs[0]:,} rows, each row once, summed over the ranks",
        )
    return table


def metrics_table(evaluations: dict[str, RunEvaluation], *, best: str) -> Table:
    """Models beside popularity; the best one's gain over it below."""
    first = next(iter(evaluations.values()))
    grain = "next item of each held-out event" if first.query_grain == "event" else "held-out items of each user"
    table = Table(title=f"Metrics on {first.split}: {grain}, full ranking, seen items left out", title_justify="left")
    table.add_column("model")
    for name in SHOWN_METRICS:
        table.add_column(name, justify="right")
    assert first.popularity is not None, "the models of this table are retrievers"
    rows = {"popularity": first.popularity.full} | {name: found.model.full for name, found in evaluations.items()}
    for name, values in rows.items():
        table.add_row(
            name, *(f"{values[metric]:.4f}" for metric in SHOWN_METRICS), style="bold" if name == best else ""
        )
    gains = [rows[best][metric] / rows["popularity"][metric] - 1 for metric in SHOWN_METRICS]
    table.add_section()
    table.add_row(f"{best} against popularity", *(f"{gain:+.0%}" for gain in gains))
    return table


def artifacts_table(places: dict[str, Path]) -> Table:
    table = Table(title="Where things lie", title_justify="left")
    table.add_column("what")
    table.add_column("path", overflow="fold")
    for name, path in places.items():
        table.add_row(name, str(path))
    return table


def show(*tables: Table) -> None:
    console = Console(soft_wrap=False)
    for table in tables:
        console.print(table)
