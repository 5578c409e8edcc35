"""How far click metrics can be trusted: intervals of one model's, and the significance of two models' difference.

A user's rows resemble each other, so users are resampled and not rows. In a Poisson bootstrap (Chamandy et al. 2012)
each user counts Poisson(1) times; a hash of seed, resample and user draws that number, so that ranks which hold rows of
the same user agree without a word.

Legend: U users of a rank, T resamples and before them the rows as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.bundle import CalibrationPoint
from training.click_metrics import (
    ECE_BINS,
    Scored,
    Weights,
    arrange,
    curve_sums,
    mixed,
    usable_by_score,
    weighted_metrics,
)
from training.ranks import Ranks

METRICS = ("auc", "gauc", "log_loss", "normalised_entropy", "calibration")
# Of Poisson(1) up to 18: beyond it lies less than the step of the uniform numbers, 2**-53.
_CUMULATIVE = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(19)])


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric of one model minus that of another, its interval, and the two-sided p-value of there being none."""

    difference: float
    interval: tuple[float, float]
    p_value: float


def bootstrap(
    scored: Scored, ranks: Ranks, *, resamples: int = 200, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """The interval of each metric: what lies between the quantiles of its resamples (percentile method).

    Resamples in which a metric is undefined are left out; (NaN, NaN) if it is in all.
    """
    values = _resampled(scored, ranks, resamples, seed, "bootstrap")
    return {metric: _interval(values[metric][1:], level) for metric in METRICS}


def measured(
    scored: Scored, ranks: Ranks, *, resamples: int = 200, seed: int = 0, level: float = 0.95
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """What `click_metrics` gives but ece, and the intervals of `bootstrap`; what is undefined is left out of both."""
    values = _resampled(scored, ranks, resamples, seed, "measured")
    metrics = {name: float(value[0]) for name, value in values.items() if not math.isnan(value[0])}
    intervals = {name: _interval(values[name][1:], level) for name in METRICS if name in metrics}
    return metrics, {name: interval for name, interval in intervals.items() if not math.isnan(interval[0])}


def bootstrap_curve(
    scored: Scored, ranks: Ranks, *, bins: int = ECE_BINS, resamples: int = 200, seed: int = 0, level: float = 0.95
) -> tuple[list[CalibrationPoint], tuple[float, float] | None]:
    """The `calibration_curve` with the interval of each bin's mean label, and that of ece; None without rows.

    Noise moves bins away from the diagonal, so the ece of a resample is too large by about as much as the rows' own
    is. Its interval is therefore the basic one, 2 ece - quantiles (Davison and Hinkley 1997, section 5.2.1), from 0.
    """
    by_score = usable_by_score(scored, ranks, "curve")
    sums_T3B = curve_sums(by_score, _as_they_are_and_resampled(resamples, seed), ranks, bins, "curve")
    rows_TB, probability_TB, label_TB = sums_T3B.transpose(1, 0, 2)
    points = []
    for place in np.flatnonzero(rows_TB[0]):
        rows_T = rows_TB[:, place]
        means_T = np.divide(label_TB[:, place], rows_T, out=np.full(len(rows_T), np.nan), where=rows_T > 0)
        points.append(
            CalibrationPoint(
                probability=float(probability_TB[0, place] / rows_T[0]),
                label=float(means_T[0]),
                interval=_interval(means_T[1:], level),
                rows=round(rows_T[0]),
            )
        )
    if not points:
        return [], None
    # A resample of few users may hold nobody.
    kept = rows_TB.sum(1) > 0
    ece_T = np.abs(probability_TB - label_TB)[kept].sum(1) / rows_TB[kept].sum(1)
    low, high = _interval(ece_T[1:], level)
    return points, (max(0.0, float(2 * ece_T[0] - high)), max(0.0, float(2 * ece_T[0] - low)))


def compare(
    one: Scored, other: Scored, ranks: Ranks, *, resamples: int = 200, seed: int = 0, level: float = 0.95
) -> dict[str, Difference]:
    """What two models' metrics differ by on the same rows, `one` minus `other`: a paired bootstrap over users.

    Both must hold the same rows in the same order; ValueError, on every rank, where labels or groups differ.
    p_value: twice the share of resamples on the rarer side of 0, where 0 itself is on both sides, counted with one
    more resample that has no difference (Davison and Hinkley 1997, section 4.2), so it is never below
    2 / (resamples + 1).
    """
    _refuse_unequal_rows(one, other, ranks)
    first = _resampled(one, ranks, resamples, seed, "compare.one")
    second = _resampled(other, ranks, resamples, seed, "compare.other")
    found = {}
    for metric in METRICS:
        differences = first[metric] - second[metric]
        found[metric] = Difference(
            difference=float(differences[0]),
            interval=_interval(differences[1:], level),
            p_value=_p_value(differences[1:]),
        )
    return found


def poisson_weights(users: NDArray[np.int64], *, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each user counts in each resample, shape (U,): Poisson(1), a function of seed, resample and user."""
    hashed = mixed(users)
    first = mixed(np.array([seed], dtype=np.int64))
    for key in mixed(np.add(first, np.arange(resamples, dtype=np.uint64))):
        uniform = (mixed(hashed ^ key) >> np.uint64(11)) * 2.0**-53
        yield np.searchsorted(_CUMULATIVE, uniform, side="right")


def _resampled(scored: Scored, ranks: Ranks, resamples: int, seed: int, name: str) -> dict[str, NDArray[np.float64]]:
    """Each metric of the rows as they are and of each resample, shape (T,)."""
    return weighted_metrics(arrange(scored, ranks, name), _as_they_are_and_resampled(resamples, seed), ranks, name)


def _as_they_are_and_resampled(resamples: int, seed: int) -> Weights:
    def weights(users: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        yield np.ones(len(users), dtype=np.int64)
        yield from poisson_weights(users, resamples=resamples, seed=seed)

    return weights


def _refuse_unequal_rows(one: Scored, other: Scored, ranks: Ranks) -> None:
    # Summed first, so that all ranks refuse together.
    if len(one.label) == len(other.label):
        unequal = int(((one.label != other.label) | (one.group != other.group)).sum())
    else:
        unequal = max(len(one.label), len(other.label))
    unequal = int(ranks.sum(torch.tensor([unequal]), "compare.unequal"))
    if unequal:
        raise ValueError(f"{unequal} rows differ in label or group: both models must score the same rows in one order")


def _interval(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        return (float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _p_value(differences: NDArray[np.float64]) -> float:
    defined = differences[~np.isnan(differences)]
    if len(defined) == 0:
        return float("nan")
    rarer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (1 + rarer) / (1 + len(defined)))
