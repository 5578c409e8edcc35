"""Run on ranks by test_click_metrics_on_ranks.py: `... REPORT CASE.npz CASE.npz`; rank 0 writes what it found as JSON.

A case holds probability, other, label and group; rank r of s takes the rows r, r + s, and so on.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from training.bootstrap import bootstrap, bootstrap_curve, compare
from training.click_metrics import Scored, arrange, calibration_curve, click_metrics
from training.ranks import Ranks, start_ranks
from training.slices import Slicer, cut, slice_metrics


def measure(case: Path, ranks: Ranks) -> dict[str, Any]:
    with np.load(case) as stored:
        mine = {name: stored[name][ranks.rank :: ranks.size] for name in stored.files}
    one, other = (
        Scored(probability=mine[name], label=mine["label"], group=mine["group"]) for name in ("probability", "other")
    )
    try:
        metrics = click_metrics(one, ranks)
    except ValueError as error:
        return {"refused": str(error)}
    slicers = [Slicer(name, (), name == "frequent", lambda batch: np.empty(0)) for name in ("frequent", "quartile")]
    values = {"frequent": (mine["group"] % 30).astype(np.float64), "quartile": mine["other"].astype(np.float64)}
    values["quartile"][mine["group"] % 7 == 0] = np.nan
    cuts = [cut(slicer, values[slicer.name], ranks) for slicer in slicers]
    slices = slice_metrics(cuts, one, np.ones(len(mine["label"]), dtype=bool), ranks)
    points, ece = bootstrap_curve(one, ranks, resamples=50)
    dealt = arrange(one, ranks, "program")
    held = np.array([[len(dealt.by_score.label), len(dealt.by_user.label)]])
    return {
        "metrics": metrics,
        "curve": calibration_curve(one, ranks),
        "slices": {
            f"{one.slicer.name} {number} of {one.values.tolist()}": found.metrics | found.intervals
            for one, number, found in slices
        },
        "curve_intervals": [[*(point.interval or ()), point.label] for point in points] + [list(ece or ())],
        "intervals": bootstrap(one, ranks, resamples=50),
        "comparison": {name: asdict(each) for name, each in compare(one, other, ranks, resamples=50).items()},
        "rows_of_ranks": ranks.gather(held, "program.held").tolist(),
    }


def main() -> None:
    report, *cases = map(Path, sys.argv[1:])
    ranks = start_ranks()
    found = {case.stem: measure(case, ranks) for case in cases}
    if ranks.rank == 0:
        report.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
