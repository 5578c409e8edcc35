"""What a policy would have earned on the log of another one: importance weights, estimators, intervals over users.

A row is an item shown: its reward r, the propensity p with which the logging policy put it there, the probability q
with which the target policy would have, and the user, whose rows resemble each other. With w = q / p:

ips    mean(w r)                        Horvitz and Thompson 1952; unbiased where p is right and no q > 0 has p = 0
snips  sum(w r) / sum(w)                Swaminathan and Joachims 2015; a little biased, of far less variance
dr     mean(V + w (r - rhat))           Dudik et al. 2011; unbiased where p or rhat is right
sndr   mean(V) + sum(w (r - rhat)) / sum(w)   the same, self-normalised

rhat is a reward model of the item shown, V its mean under the target policy. Each estimator is a sum of ratios of
sums over rows, so that a resample of users is a product of two small matrices and no row is touched again.

Legend: N rows, C users, T resamples, S sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_SUMS = ("rows", "reward", "weight", "weighted_reward", "expected", "correction")
ESTIMATORS: dict[str, tuple[tuple[str, str], ...]] = {
    "mean": (("reward", "rows"),),
    "ips": (("weighted_reward", "rows"),),
    "snips": (("weighted_reward", "weight"),),
    "dr": (("expected", "rows"), ("correction", "rows")),
    "sndr": (("expected", "rows"), ("correction", "weight")),
}
"""As numerators over denominators, which are added up; `mean` is what the log itself earned."""
OF_A_MODEL = ("dr", "sndr")
_CELLS_AT_ONCE = 1 << 22
_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a policy makes of the rows of a log; arrays of shape (N,)."""

    weights: Floats
    predicted: Floats | None = None
    """rhat: the reward model's of the item shown."""
    expected: Floats | None = None
    """V: its mean over what the policy would have shown there."""


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """A value, its interval by a bootstrap over users, and the one of a normal distribution as a cross-check.

    Of a single user there is no variance between users: no normal interval, and the other one is a point.
    """

    value: float
    interval: tuple[float, float]
    normal_interval: tuple[float, float] | None


def importance_weights(target_N: ArrayLike, logged_N: ArrayLike, *, clip: float | None = None) -> Floats:
    """q / p; clipped ones are bounded, and make estimates of rewards >= 0 too low by what lies above (Ionides 2008).

    ValueError for a logged propensity that is not above 0: such an item cannot have been shown.
    """
    target, logged = np.asarray(target_N, dtype=np.float64), np.asarray(logged_N, dtype=np.float64)
    if not bool((logged > 0).all()):
        raise ValueError("a logged propensity is not above 0")
    weights = target / logged
    return weights if clip is None else np.minimum(weights, clip)


def along_slates(weights_N: Floats, position_N: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """Of each row the product of the weights of its slate down to it, and down to the one above it (1 at the top).

    Rows stand slate by slate, in the order of positions from 0. With these weights a slate counts as the target policy
    would have drawn it from the top (McInerney et al. 2020), not only this one item of it.
    """
    through, before = weights_N.copy(), np.ones(len(weights_N))
    for position in range(1, int(position_N.max(initial=0)) + 1):
        rows = np.flatnonzero(position_N == position)
        before[rows] = through[rows - 1]
        through[rows] *= before[rows]
    return through, before


def effective_rows(weights_N: ArrayLike) -> float:
    """(sum w)^2 / sum w^2 (Kong 1992): how many rows of the policy's own log these are worth; 0 where all are 0."""
    weights = np.asarray(weights_N, dtype=np.float64)
    squares = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def matched_share(weights_N: ArrayLike) -> float:
    """Share of the rows that the policy could have shown."""
    weights = np.asarray(weights_N)
    return float((weights > 0).mean()) if len(weights) else 0.0


def estimate(
    reward_N: ArrayLike, user_N: NDArray[np.generic], policy: Policy, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimated]:
    """By estimator; `dr` and `sndr` where there is a reward model. What no weight supports is left out."""
    sums_CS = user_sums(reward_N, user_N, policy)
    resampled_TS = np.concatenate([counts_TC @ sums_CS for counts_TC in _counts(len(sums_CS), resamples, seed)])
    found = {}
    for name, terms in ESTIMATORS.items():
        if (name in OF_A_MODEL and policy.predicted is None) or not _is_defined(sums_CS, terms):
            continue
        value, influence_C = _value_and_influence(sums_CS, terms)
        found[name] = _estimated(value, _ratios(resampled_TS, terms), influence_C)
    return found


def difference(
    reward_N: ArrayLike,
    user_N: NDArray[np.generic],
    one: Policy,
    other: Policy,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimated]:
    """By estimator, what `one` earns above `other` on the same rows: paired, for both are resampled together."""
    both = [user_sums(reward_N, user_N, policy) for policy in (one, other)]
    resampled = [
        np.concatenate([counts_TC @ sums_CS for counts_TC in _counts(len(sums_CS), resamples, seed)])
        for sums_CS in both
    ]
    has_models = one.predicted is not None and other.predicted is not None
    found = {}
    for name, terms in ESTIMATORS.items():
        if name == "mean" or (name in OF_A_MODEL and not has_models):
            continue
        if not all(_is_defined(sums_CS, terms) for sums_CS in both):
            continue
        (first, first_C), (second, second_C) = (_value_and_influence(sums_CS, terms) for sums_CS in both)
        apart_T = _ratios(resampled[0], terms) - _ratios(resampled[1], terms)
        found[name] = _estimated(first - second, apart_T, first_C - second_C)
    return found


def user_sums(reward_N: ArrayLike, user_N: NDArray[np.generic], policy: Policy) -> Floats:
    """The sums that all estimators are made of, a row a user, shape (C, S)."""
    reward, weights = np.asarray(reward_N, dtype=np.float64), policy.weights
    if not len(reward):
        raise ValueError("there are no rows")
    nothing = np.zeros(len(reward))
    predicted = nothing if policy.predicted is None else policy.predicted
    expected = nothing if policy.expected is None else policy.expected
    columns = (np.ones(len(reward)), reward, weights, weights * reward, expected, weights * (reward - predicted))
    users, place_N = np.unique(user_N, return_inverse=True)
    return np.stack([np.bincount(place_N, weights=column, minlength=len(users)) for column in columns], axis=1)


def _counts(users: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each user counts in each resample, Poisson(1) (Chamandy et al. 2012), in blocks of bounded size."""
    random = np.random.default_rng(seed)
    step = max(1, _CELLS_AT_ONCE // users)
    for start in range(0, resamples, step):
        yield random.poisson(1.0, (min(step, resamples - start), users)).astype(np.float64)


def _ratios(sums_TS: Floats, terms: tuple[tuple[str, str], ...]) -> Floats:
    """The estimator of each row of sums; NaN where a resample has nobody whose weights are above 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sum([sums_TS[:, _SUMS.index(top)] / sums_TS[:, _SUMS.index(below)] for top, below in terms], axis=0)


def _is_defined(sums_CS: Floats, terms: tuple[tuple[str, str], ...]) -> bool:
    return all(sums_CS[:, _SUMS.index(below)].sum() > 0 for _, below in terms)


def _value_and_influence(sums_CS: Floats, terms: tuple[tuple[str, str], ...]) -> tuple[float, Floats]:
    """The estimator, and what each user moves it by to first order (delta method)."""
    value, influence_C = 0.0, np.zeros(len(sums_CS))
    for top, below in terms:
        tops, belows = sums_CS[:, _SUMS.index(top)], sums_CS[:, _SUMS.index(below)]
        ratio = float(tops.sum() / belows.sum())
        value += ratio
        influence_C += (tops - ratio * belows) / belows.sum()
    return value, influence_C


def _estimated(value: float, resampled_T: Floats, influence_C: Floats) -> Estimated:
    defined = resampled_T[np.isfinite(resampled_T)]
    low, high = np.quantile(defined, (0.025, 0.975)) if len(defined) else (value, value)
    users = len(influence_C)
    normal = None
    if users > 1:
        error = math.sqrt(float(np.square(influence_C).sum()) * users / (users - 1))
        normal = (value - _NORMAL_95 * error, value + _NORMAL_95 * error)
    return Estimated(value=value, interval=(float(low), float(high)), normal_interval=normal)
