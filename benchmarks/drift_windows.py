"""Columns in memory, counted as the Spark job counts them: for windows by the thousand, which Spark is too slow for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spark_jobs.drifting.cell_plans import NULL, OTHER, TOP, number_distribution, number_edges
from spark_jobs.drifting.statistics import NUM_GROUPS, Distribution
from spark_jobs.drifting.verdicts import Kind, News, Observed, Of


def observe_numbers(
    column: str,
    reference: NDArray[np.float64],
    current: NDArray[np.float64],
    *,
    users: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    of: Of = "feature",
) -> Observed:
    """A column of numbers in memory, NaN for null."""
    known = [side[~np.isnan(side)] for side in (reference, current)]
    percentiles: list[list[float]] = [
        np.percentile(side, np.arange(101), method="inverted_cdf").tolist() if len(side) else [] for side in known
    ]
    edges = number_edges(percentiles[0], percentiles[1])
    num_cells = len(edges) + 2
    places = []
    for side in (reference, current):
        place = np.searchsorted(np.array(edges), side, side="right")
        places.append(np.where(np.isnan(side), num_cells - 1, place))
    counts_SGC = _counted(places, users, num_cells)
    both, where = np.concatenate([reference, current]), np.concatenate(places)
    sums_C = np.bincount(where, weights=np.nan_to_num(both), minlength=num_cells).astype(np.float64)
    values = number_distribution(edges, counts_SGC, sums_C)
    moments = {"mean": (float(np.nanmean(reference)), float(np.nanmean(current)))}
    moments["std"] = (float(np.nanstd(reference)), float(np.nanstd(current)))
    return Observed(column=column, of=of, kind="numeric", values=values, null_cell=num_cells - 1, figures=moments)


def observe_categories(
    column: str,
    reference: NDArray[np.int64],
    current: NDArray[np.int64],
    *,
    users: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    of: Of = "feature",
    kind: Kind = "categorical",
) -> Observed:
    """A column of values in memory (whole numbers from 0 on that stand for them)."""
    size = int(max(reference.max(), current.max())) + 1
    before, now = np.bincount(reference, minlength=size), np.bincount(current, minlength=size)
    names = np.array([str(value) for value in range(size)])
    order = np.lexsort((names, -(before + now)))
    top = order[:TOP][(before + now)[order[:TOP]] > 0]
    cell = np.full(size, len(top))
    cell[top] = np.arange(len(top))
    counts_SGC = _counted([cell[reference], cell[current]], users, len(top) + 2)
    values = Distribution(cells=(*names[top].tolist(), OTHER, NULL), reference=counts_SGC[0], current=counts_SGC[1])
    new, vanished = (before == 0) & (now > 0), (now == 0) & (before > 0)
    news = News(
        new_share=float(now[new].sum() / len(current)),
        expected_share=_rows_of_lone_values(reference, users[0] if users else None, size) / len(reference),
        num_new=int(new.sum()),
        num_vanished=int(vanished.sum()),
        new_values=tuple(names[[v for v in order if new[v]][:5]].tolist()),
        vanished_values=tuple(names[[v for v in order if vanished[v]][:5]].tolist()),
    )
    return Observed(column=column, of=of, kind=kind, values=values, news=news, null_cell=len(top) + 1)


def _counted(
    places: Sequence[NDArray[np.int64]], users: tuple[NDArray[np.int64], NDArray[np.int64]] | None, num_cells: int
) -> NDArray[np.float64]:
    num_groups = NUM_GROUPS if users is not None else 1
    counted = []
    for side, place in enumerate(places):
        group = users[side] % NUM_GROUPS if users is not None else np.zeros(len(place), dtype=np.int64)
        flat = np.bincount(group * num_cells + place, minlength=num_groups * num_cells)
        counted.append(flat.reshape(num_groups, num_cells).astype(np.float64))
    return np.stack(counted)


def _rows_of_lone_values(values: NDArray[np.int64], users: NDArray[np.int64] | None, size: int) -> float:
    """Rows whose value one user alone has; where there are no users, values that occur once."""
    counts = np.bincount(values, minlength=size)
    if users is None:
        return float((counts == 1).sum())
    pairs = np.unique(np.stack([values, users]), axis=1)
    return float(counts[np.bincount(pairs[0], minlength=size) == 1].sum())
