"""What was measured, period by period: a panel a measure, a line an arm, a band over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def draw(results: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]], path: Path, measures: Sequence[str]) -> None:
    import matplotlib  # only here: it is slow to import

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(measures), figsize=(4.2 * len(measures), 3.6), constrained_layout=True)
    for panel, measure in zip(np.atleast_1d(panels), measures, strict=True):
        for arm, by_seed in results.items():
            values_SP = np.array([[row[measure] for row in rows] for rows in by_seed.values()])
            periods = np.arange(values_SP.shape[1])
            (line,) = panel.plot(periods, values_SP.mean(axis=0), marker="o", markersize=3, label=arm)
            panel.fill_between(
                periods, values_SP.min(axis=0), values_SP.max(axis=0), color=line.get_color(), alpha=0.15
            )
        panel.set_title(measure)
        panel.set_xlabel("period")
    panels_flat = np.atleast_1d(panels)
    panels_flat[0].legend(fontsize="small")
    figure.suptitle("Replay: reactions are known only for items that users really met")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
