"""How two distributions differ, and how much chance alone would make them differ, for rows that come in clusters.

Rows of one user are alike, so that a test which takes them for independent alarms at nothing. Users are dealt into
groups by a hash of their id; how much the groups differ from each other says how much chance there is in a share
(random groups: Wolter 2007, chapter 2), and the chi-square test is corrected by it (Rao and Scott 1984, second order).
A user who is on both sides is in one group, so that what stays the same of a user counts as neither chance nor drift.

Shape suffixes: G group of users, C fine cell, K merged cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial import distance

Floats = NDArray[np.float64]

NUM_GROUPS = 64
LEAST_EXPECTED = 5.0
"""Effective rows that a cell of a chi-square test needs on either side; smaller ones are merged."""
NUM_BINS = 10
"""Of a number, for its stability index: what the customary limits of 0.1 and 0.25 were set for."""
LEAST_SHARE = 1e-4
"""What an empty cell counts as in a stability index. A constant, so that the index of one shift is one at any rows."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One column on both sides, counted by group of users and cell (G, C); one group where rows are independent."""

    cells: tuple[str, ...]
    reference: Floats
    current: Floats
    centers: Floats | None = None
    """Of a number: the mean of the values in each cell, NaN for that of nulls; cells rise. None for a category."""

    @property
    def rows(self) -> tuple[float, float]:
        return float(self.reference.sum()), float(self.current.sum())

    @property
    def is_clustered(self) -> bool:
        return len(self.reference) > 1

    @property
    def groups(self) -> int:
        """Groups with rows on the side that has fewer of them."""
        return int(min((self.reference.sum(axis=1) > 0).sum(), (self.current.sum(axis=1) > 0).sum()))


@dataclass(frozen=True)
class Chance:
    """What chance does to n x sum of (difference of shares)^2 / share: its mean and variance are set by two traces."""

    trace: float
    trace_of_square: float
    groups: int | None = None
    """None where rows are independent and nothing is estimated."""

    @property
    def freedom(self) -> float:
        return self.trace**2 / self.trace_of_square if self.trace_of_square > 0 else 1.0

    @property
    def scale(self) -> float:
        return max(self.trace, 1e-12)

    def p_value(self, statistic: float) -> float:
        if self.groups is None:
            return float(stats.chi2.sf(statistic, self.freedom))
        return float(stats.f.sf(statistic / self.scale, self.freedom, self.freedom * (self.groups - 1)))

    def critical(self, alpha: float) -> float:
        """What chance exceeds once in 1 / alpha times."""
        if self.groups is None:
            return float(stats.chi2.isf(alpha, self.freedom))
        return self.scale * float(stats.f.isf(alpha, self.freedom, self.freedom * (self.groups - 1)))


def harmonic(rows: tuple[float, float]) -> float:
    """Rows that a difference of two means is worth."""
    return rows[0] * rows[1] / (rows[0] + rows[1])


def stability_index(reference_K: Floats, current_K: Floats) -> float:
    """PSI: sum of (q - p) ln(q / p), each share at least LEAST_SHARE."""
    p = np.maximum(reference_K / reference_K.sum(), LEAST_SHARE)
    q = np.maximum(current_K / current_K.sum(), LEAST_SHARE)
    return float(((q - p) * np.log(q / p)).sum())


def chi_square(reference_K: Floats, current_K: Floats) -> float:
    """Pearson's statistic for two samples of one distribution, with the pooled shares below."""
    rows = (float(reference_K.sum()), float(current_K.sum()))
    pooled = (reference_K + current_K) / sum(rows)
    difference = current_K / rows[1] - reference_K / rows[0]
    held = pooled > 0
    return float(harmonic(rows) * (difference[held] ** 2 / pooled[held]).sum())


def jensen_shannon(reference_K: Floats, current_K: Floats) -> float:
    """The distance, root of the divergence in nats: 0 to 0.83."""
    return float(np.nan_to_num(distance.jensenshannon(reference_K, current_K)))


def kolmogorov_smirnov(reference_C: Floats, current_C: Floats) -> float:
    """Largest difference of the cumulative shares at the ends of the cells."""
    return float(np.abs(_cumulative(current_C) - _cumulative(reference_C)).max(initial=0.0))


def wasserstein(centers_C: Floats, reference_C: Floats, current_C: Floats) -> float:
    """Earth mover's distance between the cells' means, in standard deviations of the reference; nulls left out."""
    known = ~np.isnan(centers_C) & (reference_C + current_C > 0)
    centers, before, now = centers_C[known], reference_C[known], current_C[known]
    if not before.sum() or not now.sum():
        return 0.0
    moved = float(stats.wasserstein_distance(centers, centers, before, now))
    spread = std_of(centers, before)
    return moved / spread if spread > 0 else moved


def std_of(centers_C: Floats, counts_C: Floats) -> float:
    mean = float(np.average(centers_C, weights=counts_C))
    return math.sqrt(max(0.0, float(np.average((centers_C - mean) ** 2, weights=counts_C))))


def chance_of(reference_GK: Floats, current_GK: Floats) -> Chance:
    """What chance does to `chi_square` of these cells; estimated from the groups where there are several."""
    pooled = reference_GK.sum(axis=0) + current_GK.sum(axis=0)
    held = pooled > 0
    cells = int(held.sum())
    if cells < 2:
        return Chance(1.0, 1.0)
    if len(reference_GK) == 1:
        return Chance(cells - 1.0, cells - 1.0)
    rows = (float(reference_GK.sum()), float(current_GK.sum()))
    residual_GK = _residuals(current_GK[:, held]) - _residuals(reference_GK[:, held])
    groups = int(((reference_GK + current_GK).sum(axis=1) > 0).sum())
    covariance = groups / (groups - 1) * residual_GK.T @ residual_GK
    root = np.sqrt(harmonic(rows) / (pooled[held] / sum(rows)))
    scaled = root[:, None] * covariance * root[None, :]
    trace, degrees = float(np.trace(scaled)), groups - 1
    # A covariance of few groups makes its square too large: what a Wishart matrix adds is taken off.
    raw = float((scaled * scaled).sum())
    square = degrees**2 / ((degrees - 1) * (degrees + 2)) * (raw - trace**2 / degrees) if degrees > 1 else raw
    return Chance(trace, min(max(square, trace**2 / (cells - 1)), trace**2), groups)


def design_effect(reference_GC: Floats, current_GC: Floats) -> float:
    """Variance of the shares over that of independent rows, averaged over the cells."""
    chance = chance_of(reference_GC, current_GC)
    cells = int((reference_GC.sum(axis=0) + current_GC.sum(axis=0) > 0).sum())
    return chance.trace / max(1, cells - 1)


def cumulative_design_effect(reference_GC: Floats, current_GC: Floats) -> float:
    """The largest over the middle of the cumulative shares; 1 where rows are independent."""
    if len(reference_GC) == 1:
        return 1.0
    rows = (float(reference_GC.sum()), float(current_GC.sum()))
    pooled_C = _cumulative(reference_GC.sum(axis=0) + current_GC.sum(axis=0))
    middle = (pooled_C > 0.1) & (pooled_C < 0.9)
    if not middle.any():
        return design_effect(reference_GC, current_GC)
    residual_GC = np.cumsum(_residuals(current_GC) - _residuals(reference_GC), axis=1)[:, middle]
    groups = int(((reference_GC + current_GC).sum(axis=1) > 0).sum())
    variance_C = groups / (groups - 1) * (residual_GC**2).sum(axis=0)
    independent_C = pooled_C[middle] * (1 - pooled_C[middle]) / harmonic(rows)
    return float((variance_C / independent_C).max())


def merged_cells(distribution: Distribution) -> list[list[int]]:
    """The fine cells that stand together in the chi-square test, each group large enough for it.

    Of a number neighbours join until they hold a tenth of the rows; of a category the small ones join each other.
    Nulls of a number, which come last, stay alone where there are enough of them.
    """
    reference_C, current_C = distribution.reference.sum(axis=0), distribution.current.sum(axis=0)
    least = LEAST_EXPECTED
    groups = _merged(distribution, reference_C + current_C, min(distribution.rows), least)
    if distribution.is_clustered and len(groups) > 1:
        effect = design_effect(summed(distribution.reference, groups), summed(distribution.current, groups))
        groups = _merged(distribution, reference_C + current_C, min(distribution.rows), least * max(1.0, effect))
    return groups


def summed(counts_GC: Floats, groups: Sequence[Sequence[int]]) -> Floats:
    """The counts of merged cells. Out: (G, K)."""
    return np.stack([counts_GC[:, list(group)].sum(axis=1) for group in groups], axis=1)


def _merged(distribution: Distribution, pooled_C: Floats, fewer_rows: float, least: float) -> list[list[int]]:
    share_C = pooled_C / pooled_C.sum()
    enough = least / fewer_rows
    kept = [cell for cell in range(len(share_C)) if share_C[cell] > 0]
    if distribution.centers is None:
        large = [[cell] for cell in kept if share_C[cell] >= enough]
        small = [cell for cell in kept if share_C[cell] < enough]
        if small and (sum(share_C[small]) >= enough or not large):
            return [*large, small]
        return [*large[:-1], [*large[-1], *small]] if small else large
    nulls = [cell for cell in kept if np.isnan(distribution.centers[cell])]
    numbers = [cell for cell in kept if cell not in nulls]
    wanted = max(1 / NUM_BINS * (1 - 1e-9), enough)
    groups: list[list[int]] = []
    open_group: list[int] = []
    for cell in numbers:
        # A value that holds much stays alone, where what is open is large enough without it.
        if open_group and share_C[cell] >= wanted and sum(share_C[open_group]) >= enough:
            groups.append(open_group)
            open_group = []
        open_group.append(cell)
        if sum(share_C[open_group]) >= wanted:
            groups.append(open_group)
            open_group = []
    if open_group:
        if groups and sum(share_C[open_group]) < max(enough, wanted / 2):
            groups[-1] += open_group
        else:
            groups.append(open_group)
    if nulls and (share_C[nulls].sum() >= enough or not groups):
        return [*groups, nulls]
    return [*groups[:-1], groups[-1] + nulls] if nulls else groups


def _residuals(counts_GC: Floats) -> Floats:
    """What each group adds to the shares beyond its part of the rows; sums to 0 over the groups."""
    rows = counts_GC.sum()
    return (counts_GC - counts_GC.sum(axis=1, keepdims=True) * (counts_GC.sum(axis=0) / rows)) / rows


def _cumulative(counts_C: Floats) -> Floats:
    total = counts_C.sum()
    result: Floats = np.cumsum(counts_C) / total if total else np.zeros_like(counts_C)
    return result
