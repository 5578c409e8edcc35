"""Drift: false alarms on unshifted windows, shifts found by size, and time for many rows; on generated data.

Windows of one log without a shift, users on both sides, rows of a user alike: how many of 200 reports name any of five
columns, against the promise. Then the same with one column moved. Both also with rows taken for independent, which is
what tests without users do. Then `headrace drift` on two snapshots, two of whose eighteen columns are moved.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.drift_data import MOVED, generate_snapshot
from benchmarks.drift_windows import observe_categories, observe_numbers
from benchmarks.results import Results
from pipelines import launch
from schemas.drift import DRIFT, DriftReport
from schemas.storage import absolute
from spark_jobs.drifting.verdicts import Limits, Observed, judge

USERS = 500
ALIKE = 0.5
"""Share of a row's variance that is its user's."""
ROWS = (500, 5000)
SHIFTS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.8)
"""In standard deviations; 0 is none."""
NO_EFFECT = 1e-9

Run = dict[str, Any]


def window(seed: int, rows: int, shift: float, *, by_user: bool) -> list[Observed]:
    """Three numbers, the first moved, and two categories of two windows that share half of their users."""
    random = np.random.default_rng([seed, rows])
    before, now = (start + random.integers(0, USERS, rows) for start in (0, USERS // 2))
    users = (before, now) if by_user else None
    observed = []
    for column in range(3):
        own = random.normal(size=2 * USERS)
        sides = [math.sqrt(ALIKE) * own[who] + math.sqrt(1 - ALIKE) * random.normal(size=rows) for who in (before, now)]
        observed.append(observe_numbers(f"n{column}", sides[0], sides[1] + shift * (column == 0), users=users))
    for column in range(2):
        liked = random.integers(0, 8, 2 * USERS)
        drawn = [
            np.where(random.random(rows) < ALIKE, liked[who], random.integers(0, 8, rows)) for who in (before, now)
        ]
        observed.append(observe_categories(f"c{column}", drawn[0], drawn[1], users=users))
    return observed


def rates(rows: int, shift: float, windows: int) -> Run:
    """Shares of reports: that name any column falsely, and that name the moved one."""
    by_user = [window(seed, rows, shift, by_user=True) for seed in range(windows)]
    as_rows = [window(seed, rows, shift, by_user=False) for seed in range(windows)]
    found: Run = {}
    for name, pairs, least in (
        ("verdict", by_user, 0.1),
        ("test", by_user, NO_EFFECT),
        ("independent", as_rows, NO_EFFECT),
    ):
        reports = [judge(columns, Limits(min_effect=least)) for columns in pairs]
        named = [{column.column for column in report if column.verdict == "drifted"} for report in reports]
        found[name] = {
            "false": sum(bool(columns - ({"n0"} if shift else set())) for columns in named) / windows,
            "found": sum("n0" in columns for columns in named) / windows if shift else None,
        }
    return found


def in_spark(folder: Path, rows: int) -> Run:
    """`headrace drift` on two generated snapshots: wall time with the start of the JVM, and which columns it names."""
    before, now, out = folder / f"before-{rows}", folder / f"now-{rows}", folder / f"drift-{rows}"
    print(f"generating two snapshots of {rows:,} rows ...", flush=True)
    generate_snapshot(before, rows, seed=1, moved=False)
    generate_snapshot(now, rows, seed=2, moved=True)
    start = time.perf_counter()
    code = launch.spark_submit("drift", ["--reference", f"{before}", "--current", f"{now}", "--out", f"{out}"])
    seconds = time.perf_counter() - start
    if code:
        raise SystemExit(code)
    report = DriftReport.model_validate_json((out / DRIFT).read_text(encoding="utf-8"))
    return {
        "seconds": round(seconds, 1),
        "columns": len(report.columns),
        "drifted": sorted(report.drifted),
        "as_planted": set(report.drifted) == set(MOVED),
    }


def show(measured: list[Run], spark: Run | None, windows: int) -> None:
    console = Console(width=110)
    table = Table(title=f"share of {windows} reports (generated windows, {USERS} users a side, rows half alike)")
    heads = (
        "rows a side",
        "shift",
        "false alarms",
        "found",
        "test alone: false",
        "found",
        "rows alone: false",
        "found",
    )
    for head in heads:
        table.add_column(head, justify="right")
    for run in measured:
        cells = [f"{run['rows']:,}", f"{run['shift']:g} std"]
        for name in ("verdict", "test", "independent"):
            found = run[name]["found"]
            cells += [f"{run[name]['false']:.1%}", "" if found is None else f"{found:.0%}"]
        table.add_row(*cells)
    console.print(table)
    if spark is not None:
        named = f"{', '.join(spark['drifted']) or 'none'}, {'as planted' if spark['as_planted'] else 'NOT as planted'}"
        took = f"{spark['columns']} columns in {spark['seconds']:.0f} s with the start of Spark"
        print(f"{spark['rows']:,} rows a side in Spark (generated): {took}; named {named}")


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(prog="headrace benchmark drift", description=__doc__)
    command.add_argument("--to", default="runs/bench-drift", help="folder for data and results (runs/bench-drift)")
    command.add_argument(
        "--windows", type=int, default=200, help="unshifted reports a row of the table (200), a quarter of moved ones"
    )
    command.add_argument(
        "--rows", type=int, default=10_000_000, help="rows a side in Spark (10,000,000); 0: not at all"
    )
    given = command.parse_args(arguments)
    folder = Path(absolute(given.to))
    results = Results(folder / "results.jsonl")
    measured = []
    for rows in ROWS:
        for shift in SHIFTS:
            windows = given.windows if shift == 0 else max(1, given.windows // 4)
            key = {"tool": "statistics", "rows": rows, "shift": shift, "windows": windows}
            measured.append(results.find(key) or results.add(key, rates(rows, shift, windows)))
    spark = None
    if given.rows:
        key = {"tool": "spark", "rows": given.rows}
        spark = results.find(key) or results.add(key, in_spark(folder, given.rows))
    show(measured, spark, given.windows)
    print(
        json.dumps({"benchmark": "drift", "data": "generated", "promise": 0.05, "statistics": measured, "spark": spark})
    )
    return 0 if spark is None or spark["as_planted"] else 1


if __name__ == "__main__":
    sys.exit(main())
