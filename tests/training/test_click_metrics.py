"""Metrics of click probabilities: values by hand, scikit-learn's, the same on any number of ranks, and how sure."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from training.bootstrap import METRICS, bootstrap, compare, poisson_weights
from training.click_metrics import (
    LOG_LOSS_EPS,
    Scored,
    arrange,
    calibration_curve,
    click_metrics,
    mixed,
    sorted_by_score,
    weighted_metrics,
)
from training.ranks import OneRank

ALONE = OneRank()
BIT = 1e-12  # what the order of a sum of float64 may change


def rows(probability: Any, label: Any, group: Any = None) -> Scored:
    group = np.zeros(len(label)) if group is None else group
    return Scored(
        probability=np.array(probability, dtype=np.float32),
        label=np.array(label, dtype=np.float32),
        group=np.array(group, dtype=np.int64),
    )


def drawn(seed: int, num_rows: int, *, noise: float = 0.0, users: int = 50, scores: int = 1000) -> Scored:
    """Clicks of a true probability, predicted with noise in the logit; probabilities in `scores` steps."""
    random = np.random.default_rng(seed)
    group, logit = random.integers(0, users, num_rows), random.normal(-1, 1, num_rows)
    label = random.random(num_rows) < 1 / (1 + np.exp(-logit))
    predicted = 1 / (1 + np.exp(-logit - noise * np.random.default_rng(seed + 1).normal(size=num_rows)))
    return rows(np.round(predicted * scores) / scores, label, group * 1_000_003 - 10**9)


class ThreadRanks(OneRank):
    """A rank that is a thread; also holds the ranks to calling the same collective at the same time."""

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(board)
        self._board, self._barrier = board, barrier

    def _everyones(self, value: Any, name: str) -> list[Any]:
        self._board[self.rank] = (name, value)
        self._barrier.wait(timeout=20)
        names, values = zip(*self._board, strict=True)
        self._barrier.wait(timeout=20)
        assert set(names) == {name}
        return list(values)

    def sum(self, values, name):
        return torch.stack(self._everyones(values, name)).sum(0)

    def gather(self, values, name):
        return np.concatenate(self._everyones(values, name))

    def exchange(self, values, rows, name):
        parts = [sent.split(list(to))[self.rank] for sent, to in self._everyones((values, rows), name)]
        return torch.cat(parts), [len(part) for part in parts]


def on_ranks(program: Callable[[Scored, OneRank], Any], shares: list[Scored]) -> list[Any]:
    """What the program gives on each rank; an error of one is raised."""
    board, barrier = [None] * len(shares), threading.Barrier(len(shares))
    with ThreadPoolExecutor(len(shares)) as pool:
        running = [pool.submit(program, share, ThreadRanks(rank, board, barrier)) for rank, share in enumerate(shares)]
        return [each.result() for each in running]


def dealt(scored: Scored, rank_of_row: Any, num_ranks: int) -> list[Scored]:
    return [scored.take(np.flatnonzero(np.asarray(rank_of_row) == rank)) for rank in range(num_ranks)]


# Values by hand.


def test_auc_is_the_share_of_pairs_in_order_and_a_tie_is_half_a_pair():
    # Pairs: .35 over .1, not over .4; .8 over both: 3 of 4.
    assert click_metrics(rows([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]), ALONE)["auc"] == 0.75
    # The click ties with one and beats one: 1.5 of 2.
    assert click_metrics(rows([0.5, 0.5, 0.2], [1, 0, 0]), ALONE)["auc"] == 0.75
    assert click_metrics(rows([0.3] * 5, [1, 0, 0, 1, 0]), ALONE)["auc"] == 0.5


def test_grouped_auc_weights_users_by_rows_and_leaves_out_those_of_one_class():
    # User 7: the four rows above, .75. User 8: two rows, the click below: 0. User 9: clicks only.
    probability, label = [0.1, 0.4, 0.35, 0.8, 0.9, 0.2, 0.5, 0.6], [0, 0, 1, 1, 0, 1, 1, 1]
    found = click_metrics(rows(probability, label, [7, 7, 7, 7, 8, 8, 9, 9]), ALONE)
    assert found["gauc"] == (4 * 0.75 + 2 * 0) / 6
    assert found["gauc_row_share"] == 6 / 8
    assert (found["rows"], found["users"]) == (8, 3)


def test_a_users_auc_counts_ties_with_its_own_rows_only():
    # User 1: a tie and a win, .75. User 2: both clicks lose to .9; the other user's .5 is nothing to them.
    found = click_metrics(rows([0.5, 0.5, 0.2, 0.5, 0.5, 0.9], [1, 0, 0, 1, 1, 0], [1, 1, 1, 2, 2, 2]), ALONE)
    assert found["gauc"] == (3 * 0.75 + 3 * 0) / 6


def test_calibration_is_expected_clicks_over_clicks():
    found = click_metrics(rows([0.25, 0.5, 0.25, 0.5], [0, 1, 0, 0]), ALONE)
    assert (found["calibration"], found["base_rate"]) == (1.5, 0.25)


def test_predicting_the_base_rate_has_normalised_entropy_one():
    found = click_metrics(rows([0.25] * 4, [0, 0, 1, 0]), ALONE)
    assert found["normalised_entropy"] == pytest.approx(1, abs=BIT)
    assert found["log_loss"] == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3), abs=BIT)


def test_a_certain_prediction_that_is_wrong_costs_the_logarithm_of_the_clip():
    assert click_metrics(rows([0, 1], [1, 0]), ALONE)["log_loss"] == pytest.approx(23 * math.log(2), abs=1e-9)


def test_the_calibration_curve_has_bins_of_equal_rows():
    scored = rows([0.75, 0.125, 1.0, 0.25, 0.5, 0.375], [1, 0, 1, 0, 0, 1])
    assert calibration_curve(scored, ALONE, bins=3) == [(0.1875, 0, 2), (0.4375, 0.5, 2), (0.875, 1, 2)]
    # 20 bins of 6 rows: each row alone.
    assert click_metrics(scored, ALONE)["ece"] == (0.25 + 0.125 + 0 + 0.25 + 0.5 + 0.625) / 6


def test_bins_differ_by_one_row_at_most_and_empty_ones_are_left_out():
    sizes = [each.rows for each in calibration_curve(drawn(0, 103), ALONE, bins=20)]
    assert (sum(sizes), sizes.count(5), sizes.count(6)) == (103, 17, 3)
    assert [each.rows for each in calibration_curve(rows([0.5, 0.25], [0, 1]), ALONE, bins=20)] == [1, 1]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_equal_probabilities_that_an_edge_cuts_share_their_mean_label(order):
    # The first bin takes one of three equal rows, which hold one click: a third of a click.
    scored = rows([0.25, 0.5, 0.5, 0.5], [1, 1, 0, 0]).take(np.array(order))
    first, second = calibration_curve(scored, ALONE, bins=2)
    assert first == pytest.approx((0.375, (1 + 1 / 3) / 2, 2))
    assert second == pytest.approx((0.5, 1 / 3, 2))


@pytest.mark.parametrize("label", [0, 1])
def test_with_one_class_only_what_needs_both_is_undefined(label):
    found = click_metrics(rows([0.5, 0.25], [label, label]), ALONE)
    undefined = {name for name, value in found.items() if math.isnan(value)}
    assert undefined == {"auc", "gauc", "normalised_entropy"} | ({"calibration"} if label == 0 else set())


def test_no_rows_at_all_have_undefined_metrics():
    found = click_metrics(rows([], []), ALONE)
    assert (found.pop("rows"), found.pop("users")) == (0, 0)
    assert all(math.isnan(value) for value in found.values())
    assert calibration_curve(rows([], []), ALONE) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=60))
def test_auc_and_log_loss_are_scikit_learns_ties_or_not(drawn_rows):
    steps, label = np.array([step for step, _ in drawn_rows]), np.array([each for _, each in drawn_rows])
    scored = rows(steps / 12, label)
    found = click_metrics(scored, ALONE)
    clipped = np.clip(scored.probability.astype(np.float64), LOG_LOSS_EPS, 1 - LOG_LOSS_EPS)
    assert found["log_loss"] == pytest.approx(log_loss(label, clipped, labels=[0, 1]), abs=BIT)
    if label.any() and not label.all():
        assert found["auc"] == pytest.approx(roc_auc_score(label, scored.probability), abs=BIT)


def test_grouped_auc_is_scikit_learns_user_by_user():
    scored = drawn(11, 2_000, users=200, scores=20)
    each = [scored.take(np.flatnonzero(scored.group == user)) for user in np.unique(scored.group)]
    counted = [user for user in each if 0 < user.label.sum() < len(user.label)]
    aucs, weights = zip(*((roc_auc_score(u.label, u.probability), len(u.label)) for u in counted), strict=True)
    found = click_metrics(scored, ALONE)
    assert len(counted) < len(each)
    assert found["gauc"] == pytest.approx(np.average(aucs, weights=weights), abs=BIT)
    assert found["gauc_row_share"] == sum(weights) / 2_000


# What is refused.


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1.5])
def test_probabilities_that_are_none_are_refused_with_their_number(bad):
    with pytest.raises(ValueError, match="2 probabilities"):
        click_metrics(rows([0.5, bad, bad], [0, 1, 0]), ALONE)
    with pytest.raises(ValueError, match="and 1 labels"):
        calibration_curve(rows([0.5, 0.5], [0, 2]), ALONE)


def test_every_rank_refuses_what_one_rank_holds():
    def refused(scored: Scored, ranks: OneRank) -> str:
        with pytest.raises(ValueError, match="probabilities") as error:
            bootstrap(scored, ranks)
        return str(error.value)

    messages = on_ranks(refused, [rows([0.5], [1]), rows([float("nan")], [1])])
    assert messages[0] == messages[1]
    assert messages[0].startswith("1 probabilities")


def test_a_comparison_of_other_rows_is_refused():
    one = rows([0.5, 0.25], [0, 1], [1, 2])
    for other in (rows([0.5, 0.25], [1, 1], [1, 2]), rows([0.5, 0.25], [0, 1], [1, 3]), rows([0.5], [0], [1])):
        with pytest.raises(ValueError, match="rows differ in label or group"):
            compare(one, other, ALONE)


# On several ranks.


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_any_dealing_of_the_rows_to_ranks_gives_what_one_rank_finds(data):
    num_ranks, num_rows = data.draw(st.integers(2, 5)), data.draw(st.integers(0, 60))
    scored = drawn(data.draw(st.integers(0, 99)), num_rows, users=5, scores=data.draw(st.sampled_from([1, 4, 1000])))
    rank_of_row = data.draw(st.lists(st.integers(0, num_ranks - 1), min_size=num_rows, max_size=num_rows))

    def measured(share: Scored, ranks: OneRank) -> tuple[dict[str, float], Any, Any]:
        curve = calibration_curve(share, ranks, bins=4)
        return click_metrics(share, ranks), curve, bootstrap(share, ranks, resamples=9)

    one, curve, intervals = measured(scored, ALONE)
    for metrics, its_curve, its_intervals in on_ranks(measured, dealt(scored, rank_of_row, num_ranks)):
        assert metrics == pytest.approx(one, abs=BIT, nan_ok=True)
        assert metrics["auc"] == one["auc"] or math.isnan(one["auc"])
        np.testing.assert_allclose(its_curve, curve, atol=BIT)
        assert its_intervals["auc"] == intervals["auc"] or math.isnan(intervals["auc"][0])
        for metric in METRICS:
            np.testing.assert_allclose(its_intervals[metric], intervals[metric], rtol=0, atol=BIT)


def test_auc_stays_exact_where_pairs_are_more_than_a_float64_can_count():
    scored = drawn(9, 60, users=20, scores=10)
    heavy = {group: 2**26 + 2 * place + 1 for place, group in enumerate(np.unique(scored.group).tolist())}

    def auc(share: Scored, ranks: OneRank) -> float:
        def weights(users):
            return [np.array([heavy[user] for user in users.tolist()], dtype=np.int64)]

        return float(weighted_metrics(arrange(share, ranks, "w"), weights, ranks, "w")["auc"][0])

    each = [(p, y, heavy[g]) for p, y, g in zip(scored.probability, scored.label, scored.group.tolist(), strict=True)]
    clicks, others = [[(p, w) for p, y, w in each if y == label] for label in (1, 0)]
    twice_won = sum(w * v * (2 * (p > q) + (p == q)) for p, w in clicks for q, v in others)
    assert twice_won > 2**53
    expected = twice_won / (2 * sum(w for _, w in clicks) * sum(v for _, v in others))
    assert auc(scored, ALONE) == pytest.approx(expected, rel=3e-16)
    dealings = np.random.default_rng(0).integers(0, 5, (20, 60))
    assert {each for to in dealings for each in on_ranks(auc, dealt(scored, to, 5))} == {auc(scored, ALONE)}


def rows_per_rank(scored: Scored, rank_of_row: Any, num_ranks: int) -> list[int]:
    shares = dealt(scored, rank_of_row, num_ranks)
    return [len(mine.label) for mine in on_ranks(lambda *its: sorted_by_score(*its, "sort"), shares)]


def test_sorting_deals_out_rows_evenly_though_one_rank_held_them_all():
    scored = drawn(1, 20_000, scores=10**6)
    for rank_of_row in (np.zeros(20_000), np.arange(20_000) % 4, np.argsort(np.argsort(scored.probability)) // 5_000):
        assert max(rows_per_rank(scored, rank_of_row, 4)) < 1.05 * 5_000


def test_a_score_with_more_than_a_ranks_share_of_the_rows_gets_a_rank_for_itself():
    def with_heavy(low: int, heavy: int, high: int) -> list[int]:
        scores = np.concatenate([np.linspace(0, 0.4, low), np.full(heavy, 0.5), np.linspace(0.6, 1, high)])
        return rows_per_rank(rows(scores, np.zeros(len(scores))), np.arange(len(scores)) % 4, 4)

    assert with_heavy(2_000, 6_000, 2_000)[:3] == [2_000, 6_000, 0]
    assert with_heavy(0, 6_000, 4_000)[1] == 6_000
    assert max(with_heavy(0, 6_000, 4_000)) == 6_000
    # Nothing can part equal scores: all of them go to one rank.
    assert sorted(with_heavy(0, 10_000, 0)) == [0, 0, 0, 10_000]


@pytest.mark.parametrize("num_ranks", [2, 3, 7])
@pytest.mark.parametrize("scores", [2, 3, 5, 10, 50])
def test_a_rank_gets_twice_its_share_at_most_unless_one_score_is_more(num_ranks, scores):
    scored = drawn(2, 10_000, scores=scores)
    most_frequent = int(np.unique(scored.probability, return_counts=True)[1].max())
    most = max(rows_per_rank(scored, np.arange(10_000) % num_ranks, num_ranks))
    assert most <= max(most_frequent, 2.05 * 10_000 / num_ranks)


def test_a_users_rows_meet_on_one_rank_and_none_is_lost():
    scored = drawn(3, 3_000, users=300)
    shares = on_ranks(lambda *its: arrange(*its, "deal").by_user, dealt(scored, np.arange(3_000) % 3, 3))
    users = [np.unique(share.group) for share in shares]
    assert sum(map(len, users)) == len(np.unique(np.concatenate(users))) == len(np.unique(scored.group))
    assert sum(len(share.label) for share in shares) == 3_000
    assert max(map(len, users)) < 130


# Resampling.


def test_the_hash_is_splitmix64():
    golden = 0x9E3779B97F4A7C15
    assert mixed(np.array([0, golden], dtype=np.uint64)).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_weights_are_poisson_and_independent_of_each_other():
    users = np.arange(100_000)
    first, second = poisson_weights(users, resamples=2, seed=5)
    for count in range(6):
        expected = math.exp(-1) / math.factorial(count)
        assert (first == count).mean() == pytest.approx(expected, abs=4 * math.sqrt(expected / len(users)))
    assert (first.mean(), first.var()) == pytest.approx((1, 1), abs=0.02)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.015
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.015


def test_a_users_weight_depends_on_seed_and_resample_only():
    users = np.array([5, -3, 2**62])
    straight, reversed_ = (list(poisson_weights(each, resamples=50, seed=1)) for each in (users, users[::-1]))
    assert np.array_equal(np.array(straight), np.array(reversed_)[:, ::-1])
    assert not np.array_equal(straight, list(poisson_weights(users, resamples=50, seed=2)))


def test_a_weighting_counts_rows_as_if_they_stood_there_so_often():
    scored = drawn(4, 500, users=40, scores=20)
    weighted = weighted_metrics(
        arrange(scored, ALONE, "w"), lambda users: poisson_weights(users, resamples=3, seed=0), ALONE, "w"
    )
    for resample in range(3):
        weight = list(poisson_weights(scored.group, resamples=3, seed=0))[resample]
        repeated = click_metrics(scored.take(np.repeat(np.arange(500), weight)), ALONE)
        for metric in METRICS:
            assert weighted[metric][resample] == pytest.approx(repeated[metric], abs=BIT)


def test_more_rows_of_the_same_kind_from_the_same_users_make_no_interval_narrower():
    scored = drawn(5, 400, users=400)
    tenfold = scored.take(np.repeat(np.arange(400), 10))
    once, tenth = bootstrap(scored, ALONE), bootstrap(tenfold, ALONE)
    for metric in METRICS:
        np.testing.assert_allclose(tenth[metric], once[metric], rtol=0, atol=BIT)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    # A user's rows share one of four probabilities, which is what is predicted: the truth can be written down.
    probabilities = np.array([0.125, 0.25, 0.5, 0.75])
    base = probabilities.mean()
    clicked, other = probabilities / 4 / base, (1 - probabilities) / 4 / (1 - base)
    below = np.concatenate(([0], np.cumsum(other)[:-1]))
    entropy = lambda p: -(p * np.log(p) + (1 - p) * np.log(1 - p))  # noqa: E731
    truth = {
        "auc": float(clicked @ (below + other / 2)),
        "log_loss": float(entropy(probabilities).mean()),
        "normalised_entropy": float(entropy(probabilities).mean() / entropy(base)),
        "calibration": 1.0,
    }
    random, held = np.random.default_rng(0), dict.fromkeys(truth, 0)
    for seed in range(200):
        probability = np.repeat(probabilities[random.integers(0, 4, 100)], 5)
        scored = rows(probability, random.random(500) < probability, np.repeat(np.arange(100), 5))
        intervals = bootstrap(scored, ALONE, resamples=200, seed=seed)
        for metric, value in truth.items():
            held[metric] += intervals[metric][0] <= value <= intervals[metric][1]
    # 95 % of 200, give or take three standard deviations.
    assert all(180 <= count <= 199 for count in held.values()), held


def test_a_better_model_is_told_from_a_worse_one():
    better, worse = drawn(6, 4_000, users=300), drawn(6, 4_000, users=300, noise=1.0)
    found = compare(better, worse, ALONE, resamples=200, seed=0)
    assert found["auc"].difference > 0.02
    assert found["auc"].interval[0] > 0
    assert found["log_loss"].interval[1] < 0
    assert all(found[metric].p_value == pytest.approx(2 / 201) for metric in ("auc", "gauc", "log_loss"))
    metrics = click_metrics(better, ALONE)["auc"] - click_metrics(worse, ALONE)["auc"]
    assert found["auc"].difference == metrics


def test_a_model_and_itself_do_not_differ():
    scored = drawn(7, 500)
    for found in compare(scored, scored, ALONE, resamples=50, seed=0).values():
        assert (found.difference, found.interval, found.p_value) == (0, (0, 0), 1)


def test_what_keeps_the_order_changes_no_auc_but_the_loss():
    scored = drawn(8, 2_000, users=200)
    lower = rows(scored.probability / 2, scored.label, scored.group)
    found = compare(scored, lower, ALONE, resamples=100, seed=0)
    assert (found["auc"].difference, found["auc"].p_value, found["gauc"].p_value) == (0, 1, 1)
    assert found["log_loss"].interval[1] < 0
    assert found["calibration"].difference == pytest.approx(click_metrics(lower, ALONE)["calibration"], rel=1e-6)


def test_two_models_equally_wrong_are_seldom_found_to_differ():
    found_apart = dict.fromkeys(("auc", "log_loss"), 0)
    for seed in range(100):
        scored = drawn(10 * seed, 500, users=100)
        logit = np.log(scored.probability.clip(1e-3, 0.999) / (1 - scored.probability.clip(1e-3, 0.999)))
        one, other = (
            rows(1 / (1 + np.exp(-logit - 0.5 * noise)), scored.label, scored.group)
            for noise in np.random.default_rng(seed).normal(size=(2, 500))
        )
        found = compare(one, other, ALONE, resamples=200, seed=seed)
        for metric in found_apart:
            found_apart[metric] += found[metric].p_value < 0.05
    # 5 % of 100, and three standard deviations.
    assert all(count <= 11 for count in found_apart.values()), found_apart
