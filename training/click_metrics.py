"""Metrics of predicted click probabilities, exact over the ranks although no rank ever holds all rows.

Rows travel twice: to the rank of their score, where AUC and calibration are counted, and to the rank of their user,
where a user's own AUC is. Either way a rank holds about rows / ranks of them. Every metric is a function of sums over
users, so that it can be had for any weighting of the users at little more cost: training/bootstrap.py does so.

Legend: R rows of a rank, P those with a click and N those without, U users of a rank, T weightings of the users,
S ranks, C summed columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from training.ranks import Ranks

LOG_LOSS_EPS = float(np.finfo(np.float32).eps)
"""Probabilities count as no nearer to 0 and 1 than this in the log loss; scikit-learn's choice for float32."""
ECE_BINS = 20
_TINY = np.finfo(np.float64).tiny  # whose logarithm is finite
# Samples that each rank's range of scores stands on, for each rank that may be off by one of them: 2 % of a range.
_SAMPLES = 64
# splitmix64 (Steele, Lea, Flood 2014).
_GOLDEN, _MIX_1, _MIX_2 = (np.uint64(k) for k in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

Weights = Callable[[NDArray[np.int64]], Iterable[NDArray[np.int64]]]
"""Of given users (U,): how often each counts, shape (U,), once for each weighting; alike on every rank."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One rank's rows: predicted probability and label (0 or 1) of each, and the group (user) it belongs to.

    Each has shape (R,); a rank may hold no rows.
    """

    probability: NDArray[np.float32]
    label: NDArray[np.float32]
    group: NDArray[np.int64]

    def __post_init__(self) -> None:
        assert self.probability.shape == self.label.shape == self.group.shape == (len(self.group),)
        # Ranks exchange raw columns, so all must hold the same type.
        assert (self.probability.dtype, self.label.dtype, self.group.dtype) == (np.float32, np.float32, np.int64)

    def take(self, rows: NDArray[np.intp]) -> Scored:
        return Scored(probability=self.probability[rows], label=self.label[rows], group=self.group[rows])


@dataclass(frozen=True, kw_only=True)
class Arranged:
    """All ranks' rows, dealt out anew: ascending by score over the ranks, and with all rows of a user on one rank.

    Equal scores lie on one rank.
    """

    by_score: Scored
    by_user: Scored


class CalibrationBin(NamedTuple):
    mean_probability: float
    mean_label: float
    rows: int


def click_metrics(scored: Scored, ranks: Ranks) -> dict[str, float]:
    """Every metric over all ranks' rows, on each rank; NaN where one is undefined.

    auc: share of the pairs of a clicked and another row that stand in the right order, ties one half; undefined when
    there is one class only. gauc: mean of the users' AUCs weighted by their rows (Zhou et al. 2018, DIN, section 6.3,
    equation 10), over the users with both classes, who hold gauc_row_share of the rows. log_loss: mean over rows, in
    nats. normalised_entropy: log_loss / entropy of base_rate, and calibration: sum of probabilities / sum of labels
    (He et al. 2014, section 2; the base rate is that of these rows). ece: |mean probability - mean label| of the
    `calibration_curve`'s bins, weighted by rows. Raises ValueError, on every rank, as `arrange` does.
    """
    rows = arrange(scored, ranks, "click_metrics")
    values = weighted_metrics(rows, lambda users: [np.ones(len(users), dtype=np.int64)], ranks, "click_metrics")
    curve = _curve(rows.by_score, ranks, ECE_BINS)
    gaps = [abs(each.mean_probability - each.mean_label) * each.rows for each in curve]
    ece = sum(gaps) / sum(each.rows for each in curve) if curve else float("nan")
    return {name: float(value[0]) for name, value in values.items()} | {"ece": ece}


def calibration_curve(scored: Scored, ranks: Ranks, *, bins: int = ECE_BINS) -> list[CalibrationBin]:
    """Mean probability and mean label of `bins` bins, by ascending probability over all ranks.

    Bins differ by one row at most, those that would be empty are left out. Where an edge cuts a run of equal
    probabilities, either side takes the run's mean label: what any order of the run would give on average, so
    neither the order of the rows nor the ranks that hold them matter. Raises ValueError as `arrange` does.
    """
    return _curve(usable_by_score(scored, ranks, "calibration"), ranks, bins)


def usable_by_score(scored: Scored, ranks: Ranks, name: str) -> Scored:
    """`sorted_by_score`; ValueError, on every rank, where a value cannot be used."""
    _refuse_unusable(scored, ranks, name)
    return sorted_by_score(scored, ranks, name)


def arrange(scored: Scored, ranks: Ranks, name: str) -> Arranged:
    """Deal out the rows by score and by user; ValueError, on every rank, where a value cannot be used.

    Users go to ranks by a hash, in about equal numbers; one with a great part of all rows fills the rank it falls to.
    """
    _refuse_unusable(scored, ranks, name)
    owner = (mixed(scored.group) % np.uint64(ranks.size)).astype(np.intp)
    return Arranged(
        by_score=sorted_by_score(scored, ranks, name), by_user=_moved(scored, owner, ranks, f"{name}.by_user")
    )


def sorted_by_score(scored: Scored, ranks: Ranks, name: str) -> Scored:
    """All ranks' rows by ascending probability, over the ranks and within each; equal ones on one rank (sample sort).

    A rank gets less than about twice its share of the rows, or all rows of one score that is itself more frequent.
    """
    num_rows = int(ranks.sum(torch.tensor([len(scored.label)]), f"{name}.num_rows"))
    # Of sorted rows at even steps, the same on every rank, so that a sample stands for as many rows everywhere.
    step = max(1, num_rows // (_SAMPLES * ranks.size**2))
    samples = np.sort(ranks.gather(np.sort(scored.probability)[step // 2 :: step], f"{name}.samples"))
    to_rank = np.searchsorted(_last_scores(samples, ranks.size), scored.probability, side="left")
    mine = _moved(scored, to_rank, ranks, f"{name}.by_score")
    return mine.take(np.argsort(mine.probability))


def weighted_metrics(rows: Arranged, weights: Weights, ranks: Ranks, name: str) -> dict[str, NDArray[np.float64]]:
    """The metrics of `click_metrics` but ece, each user's rows counted as often as a weighting says; each (T,)."""
    auc_T = _auc(rows.by_score, weights, ranks, name)
    users, totals_UC = _user_totals(rows.by_user)
    totals_TC = np.stack([weight_U @ totals_UC for weight_U in weights(users)])
    summed = ranks.sum(torch.from_numpy(totals_TC), f"{name}.totals").numpy()
    num_users, num_rows, clicks, probabilities, losses, counted, auc_by_rows = summed.T
    base_rate, log_loss = _ratio(clicks, num_rows), _ratio(losses, num_rows)
    # Where there is one class only, entropy is 0, and what is divided by it undefined.
    p, q = np.clip(base_rate, _TINY, 1), np.clip(1 - base_rate, _TINY, 1)
    entropy = -(base_rate * np.log(p) + (1 - base_rate) * np.log(q))
    return {
        "auc": auc_T,
        "gauc": _ratio(auc_by_rows, counted),
        "gauc_row_share": _ratio(counted, num_rows),
        "log_loss": log_loss,
        "normalised_entropy": _ratio(log_loss, entropy),
        "calibration": _ratio(probabilities, clicks),
        "base_rate": base_rate,
        "rows": num_rows,
        "users": num_users,
    }


def mixed(values: NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's next number after each state: a hash in which every bit of the value counts. Same shape."""
    state = values.view(np.uint64) + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


def _refuse_unusable(scored: Scored, ranks: Ranks, name: str) -> None:
    # Summed first, so that all ranks refuse together: one that raised alone would leave the others waiting.
    bad_probability = ~((scored.probability >= 0) & (scored.probability <= 1))  # also where it is NaN
    bad_label = (scored.label != 0) & (scored.label != 1)
    bad = ranks.sum(torch.tensor([int(bad_probability.sum()), int(bad_label.sum())]), f"{name}.unusable").tolist()
    if any(bad):
        raise ValueError(
            f"{bad[0]} probabilities are NaN, infinite or outside [0, 1], and {bad[1]} labels are neither 0 nor 1: "
            "look for a model that diverged, or scores that never went through a sigmoid"
        )


def _last_scores(samples: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """The highest score of each rank but the last, ascending, from the sorted samples; shape (size - 1,)."""
    if len(samples) == 0:
        return samples
    last = samples[np.maximum(np.arange(1, size) * len(samples) // size - 1, 0)]
    # A score that would fill several ranges: the first of them ends just below, so that it gets a rank for itself.
    repeated, first = np.zeros((2, len(last)), dtype=bool)
    repeated[:-1] = last[1:] == last[:-1]
    first[np.unique(last, return_index=True)[1]] = True
    return np.where(repeated & first, np.nextafter(last, np.float32(-1)), last)


def _moved(scored: Scored, to_rank: NDArray[np.intp], ranks: Ranks, name: str) -> Scored:
    """The rows that the ranks send to this one; to_rank, shape (R,), says where each row goes."""
    order = np.argsort(to_rank, kind="stable")
    rows = np.bincount(to_rank, minlength=ranks.size).tolist()
    came = {
        column: ranks.exchange(torch.from_numpy(getattr(scored, column)[order]), rows, f"{name}.{column}")[0].numpy()
        for column in ("probability", "label", "group")
    }
    return Scored(**came)


def _auc(by_score: Scored, weights: Weights, ranks: Ranks, name: str) -> NDArray[np.float64]:
    """AUC under each weighting, shape (T,).

    Counted in int64, exact up to 2**32 weighted rows (twice the pairs are below 2**63), so that the ranks' number
    makes no difference to the last bit.
    """
    click_R = by_score.label > 0
    score_P, score_N = by_score.probability[click_R], by_score.probability[~click_R]
    lower_P, not_higher_P = (np.searchsorted(score_N, score_P, side=side) for side in ("left", "right"))
    users, user_R = np.unique(by_score.group, return_inverse=True)
    user_P, user_N = user_R[click_R], user_R[~click_R]
    counts = []
    for weight_U in weights(users):
        others = np.concatenate(([0], np.cumsum(weight_U[user_N])))
        weight_P = weight_U[user_P]
        twice_won = np.sum(weight_P * (others[lower_P] + others[not_higher_P]))
        counts.append((twice_won, weight_P.sum(), others[-1]))
    counts_ST3 = np.zeros((ranks.size, len(counts), 3), dtype=np.int64)
    counts_ST3[ranks.rank] = counts
    every = ranks.sum(torch.from_numpy(counts_ST3), f"{name}.pairs").numpy()
    twice_won_ST, clicks_ST, others_ST = every[..., 0], every[..., 1], every[..., 2]
    lower_ST = np.cumsum(others_ST, axis=0) - others_ST  # on the ranks before
    twice_won_T = (twice_won_ST + 2 * clicks_ST * lower_ST).sum(axis=0)
    return _ratio(twice_won_T, 2 * clicks_ST.sum(axis=0) * others_ST.sum(axis=0))


def _user_totals(by_user: Scored) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The users, shape (U,), and of each what the metrics sum, shape (U, 7).

    Columns: 1, rows, clicks, probabilities, log losses, and for users with both classes rows and AUC * rows.
    """
    rows = by_user.take(np.lexsort((by_user.probability, by_user.group)))
    click_R, user_starts = rows.label > 0, _changes(rows.group)
    user_R = np.cumsum(user_starts) - 1
    # Runs of equal scores of a user: whoever stands in a run has beaten those before it, and half of those in it.
    run_starts = user_starts | _changes(rows.probability)
    run_P = (np.cumsum(run_starts) - 1)[click_R]
    others = np.concatenate(([0], np.cumsum(~click_R)))
    others_at_run = others[np.append(np.flatnonzero(run_starts), len(click_R))]
    others_at_user = others[np.flatnonzero(user_starts)]
    user_P = user_R[click_R]
    twice_won_P = others_at_run[run_P] + others_at_run[run_P + 1] - 2 * others_at_user[user_P]

    users = rows.group[user_starts]
    probability = rows.probability.astype(np.float64)
    clipped = np.clip(probability, LOG_LOSS_EPS, 1 - LOG_LOSS_EPS)
    loss = -np.log(np.where(click_R, clipped, 1 - clipped))
    num_rows, clicks = (np.bincount(each, minlength=len(users)) for each in (user_R, user_P))
    probabilities, losses = (np.bincount(user_R, each, minlength=len(users)) for each in (probability, loss))
    auc = _ratio(np.bincount(user_P, twice_won_P, minlength=len(users)), 2 * clicks * (num_rows - clicks))
    counted = np.where(np.isnan(auc), 0, num_rows)
    columns = (np.ones(len(users)), num_rows, clicks, probabilities, losses, counted, np.nan_to_num(auc) * num_rows)
    return users, np.stack(columns, axis=1)


def curve_sums(by_score: Scored, weights: Weights, ranks: Ranks, bins: int, name: str) -> NDArray[np.float64]:
    """Rows, probabilities and labels of each bin of the `calibration_curve`, under each weighting; shape (T, 3, bins).

    The bins hold the same rows under every weighting.
    """
    probability, num_rows = by_score.probability.astype(np.float64), len(by_score.label)
    per_rank = torch.zeros(ranks.size, dtype=torch.int64)
    per_rank[ranks.rank] = num_rows
    per_rank = ranks.sum(per_rank, f"{name}.rows_per_rank")
    edges = np.arange(bins + 1) * int(per_rank.sum()) // bins
    mine = np.clip(edges - int(per_rank[: ranks.rank].sum()), 0, num_rows)
    # Summed up to each row; straight lines within runs of equal scores spread a run's labels evenly.
    run_edges = np.append(np.flatnonzero(_changes(by_score.probability)), num_rows)
    users, user_R = np.unique(by_score.group, return_inverse=True)
    sums = []
    for weight_U in weights(users):
        weight_R = weight_U[user_R].astype(np.float64)
        columns_3R = np.stack([weight_R, weight_R * probability, weight_R * by_score.label])
        upto_3R = np.concatenate([np.zeros((3, 1)), np.cumsum(columns_3R, axis=1)], axis=1)[:, run_edges]
        sums.append([np.diff(np.interp(mine, run_edges, upto)) for upto in upto_3R])
    return ranks.sum(torch.from_numpy(np.asarray(sums)), f"{name}.sums").numpy()


def _curve(by_score: Scored, ranks: Ranks, bins: int) -> list[CalibrationBin]:
    ones: Weights = lambda users: [np.ones(len(users), dtype=np.int64)]  # noqa: E731  (a name with its type)
    in_bins = curve_sums(by_score, ones, ranks, bins, "calibration")[0].T.tolist()
    return [CalibrationBin(first / rows, second / rows, round(rows)) for rows, first, second in in_bins if rows]


def _changes(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Whether each value differs from the one before; the first does."""
    differs = np.ones(len(values), dtype=bool)
    differs[1:] = values[1:] != values[:-1]
    return differs


def _ratio(above: NDArray[np.generic], below: NDArray[np.generic]) -> NDArray[np.float64]:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below != 0)
