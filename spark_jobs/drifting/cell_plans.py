"""Into which cells a column's values are counted: the same ones on both sides, chosen from what both hold."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from spark_jobs.drifting.statistics import Distribution

TOP = 24
"""Values of a category with a cell of their own; the others share one."""
NULL, OTHER = "null", "other values"
PERCENTS: tuple[int, ...] = (1, *range(2, 100, 2), 99)


def number_edges(reference: Sequence[float], current: Sequence[float]) -> tuple[float, ...]:
    """The edges between fine cells, each of which begins with its lower one: every second percentile of both sides.

    In: the 0th to the 100th percentile of each side, or nothing. A frequent value has a cell of its own.
    """
    held = [side for side in (reference, current) if len(side)]
    return tuple(sorted({float(side[percent]) for side in held for percent in PERCENTS}))


def cell_names(edges: Sequence[float]) -> tuple[str, ...]:
    """One more than edges, and one for nulls."""
    if not edges:
        return ("any", NULL)
    middle = [f"{text(low)} to {text(high)}" for low, high in pairwise(edges)]
    return (f"below {text(edges[0])}", *middle, f"{text(edges[-1])} and more", NULL)


def text(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"


def number_distribution(
    edges: Sequence[float], counts_SGC: NDArray[np.float64], sums_C: NDArray[np.float64]
) -> Distribution:
    """In: rows by side, group and cell, the last for nulls; and the sum of each cell's values."""
    pooled_C = counts_SGC.sum(axis=(0, 1))
    centers_C = np.full(len(pooled_C), np.nan)
    held = pooled_C > 0
    centers_C[held] = sums_C[held] / pooled_C[held]
    centers_C[-1] = np.nan
    # A cell that nothing fell into has no mean; its lower edge keeps the order.
    for cell in np.flatnonzero(~held[:-1]):
        centers_C[cell] = edges[max(0, int(cell) - 1)] if edges else 0.0
    return Distribution(cells=cell_names(edges), reference=counts_SGC[0], current=counts_SGC[1], centers=centers_C)
