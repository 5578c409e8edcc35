"""What was measured, period by period: a panel a measure, a line an arm, a band over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Results = Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]
"""By arm and seed: what was measured in each period."""


def draw(results: Results, path: Path, measures: Sequence[str]) -> None:
    import matplotlib  # only here: it is slow to import

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [(measure, results) for measure in measures]
    if "frozen" in results:  # periods differ in how hard they are, which hides how the arms part
        shown.insert(1, (f"{measures[0]} over frozen's", over(results, "frozen", measures[0])))
    columns = -(-len(shown) // 2)
    figure, grid = pyplot.subplots(2, columns, figsize=(3.8 * columns, 6), constrained_layout=True)
    panels = grid.ravel()
    for unused in panels[len(shown) :]:
        unused.remove()
    for panel, (title, arms) in zip(panels, shown, strict=False):
        for arm, by_seed in arms.items():
            values_SP = np.array([[row[title] for row in rows] for rows in by_seed.values()])
            periods = np.arange(values_SP.shape[1])
            (line,) = panel.plot(periods, values_SP.mean(axis=0), marker="o", markersize=3, label=arm)
            panel.fill_between(
                periods, values_SP.min(axis=0), values_SP.max(axis=0), color=line.get_color(), alpha=0.15
            )
        panel.set_title(title, fontsize="medium")
        panel.set_xlabel("period")
    panels[0].legend(fontsize="small")
    figure.suptitle("Replay: reactions are known only for items that users really met")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def over(results: Results, base: str, measure: str) -> Results:
    """Each arm's measure over the base's on the same seed and period."""
    named = f"{measure} over {base}'s"
    return {
        arm: {
            seed: [
                {named: row[measure] / of_base[measure]} for row, of_base in zip(rows, results[base][seed], strict=True)
            ]
            for seed, rows in by_seed.items()
        }
        for arm, by_seed in results.items()
    }
