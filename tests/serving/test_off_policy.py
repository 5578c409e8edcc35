"""Off-policy estimators: by hand, and on logs whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.off_policy_simulation import World, chosen, draws, left_over, world
from serving.off_policy import (
    Policy,
    along_slates,
    difference,
    effective_rows,
    estimate,
    importance_weights,
    matched_share,
)

SIMULATIONS, USERS, REQUESTS = 500, 150, 4


def test_three_rows_by_hand():
    weights = importance_weights([0.5, 0.2, 0.0], [0.25, 0.4, 0.5])
    assert weights.tolist() == [2.0, 0.5, 0.0]
    policy = Policy(weights=weights, predicted=np.array([0.5, 0.2, 0.4]), expected=np.array([0.6, 0.3, 0.3]))
    found = estimate([1, 0, 1], np.array(["a", "a", "b"]), policy, resamples=50)
    assert found["mean"].value == pytest.approx(2 / 3)
    assert found["ips"].value == pytest.approx(2 / 3)  # (2 + 0 + 0) / 3
    assert found["snips"].value == pytest.approx(0.8)  # 2 / 2.5
    assert found["dr"].value == pytest.approx(1.2 / 3 + 0.9 / 3)  # corrections 2 * 0.5, 0.5 * -0.2, 0
    assert found["sndr"].value == pytest.approx(0.4 + 0.9 / 2.5)
    assert effective_rows(weights) == pytest.approx(2.5**2 / 4.25)
    assert matched_share(weights) == pytest.approx(2 / 3)


def test_the_normal_interval_by_hand():
    # Two users of one row each: the mean of 1 and 0 has the influences 0.25 and -0.25, and 2 / 1 of their squares.
    found = estimate([1, 0], np.array([1, 2]), Policy(weights=np.ones(2)), resamples=50)["mean"]
    assert found.normal_interval == pytest.approx((0.5 - 1.96 * 0.5, 0.5 + 1.96 * 0.5), abs=1e-4)


def test_one_user_alone_has_no_normal_interval():
    assert estimate([1, 0], np.array([7, 7]), Policy(weights=np.ones(2)))["mean"].normal_interval is None


@given(st.integers(1, 200), st.floats(1e-3, 1e3))
def test_equal_weights_are_worth_all_rows_and_unequal_ones_fewer(rows, weight):
    weights = np.full(rows, weight)
    assert effective_rows(weights) == pytest.approx(rows)
    weights[0] *= 2
    assert rows == 1 or effective_rows(weights) < rows


def test_clipping_bounds_weights_and_lowers_an_estimate_of_rewards():
    free, clipped = (importance_weights([1.0, 0.5], [0.1, 0.5], clip=clip) for clip in (None, 4))
    assert (free.tolist(), clipped.tolist()) == ([10.0, 1.0], [4.0, 1.0])
    users = np.arange(2)
    values = [estimate([1, 1], users, Policy(weights=of))["ips"].value for of in (free, clipped)]
    assert values == [5.5, 2.5]


def test_an_item_that_cannot_have_been_shown_is_refused():
    with pytest.raises(ValueError, match="not above 0"):
        importance_weights([0.5], [0.0])


def test_where_no_row_matches_there_is_no_self_normalised_estimate():
    found = estimate([1, 1], np.arange(2), Policy(weights=np.zeros(2)))
    assert set(found) == {"mean", "ips"}
    assert effective_rows(np.zeros(2)) == 0


def test_weights_multiply_down_each_slate():
    through, before = along_slates(np.array([2.0, 3.0, 0.5, 4.0, 0.0]), np.array([0, 1, 0, 1, 2]))
    assert through.tolist() == [2.0, 6.0, 0.5, 2.0, 0.0]
    assert before.tolist() == [1.0, 2.0, 1.0, 0.5, 2.0]


def test_a_policy_against_itself_differs_by_nothing():
    random = np.random.default_rng(0)
    policy = Policy(weights=random.random(40))
    found = difference(random.random(40), np.arange(40) % 7, policy, policy)
    assert {(one.value, one.interval) for one in found.values()} == {(0.0, (0.0, 0.0))}


def test_a_paired_difference_is_narrower_than_two_apart():
    random = np.random.default_rng(1)
    reward, users = random.random(4000) < 0.3, np.arange(4000) % 500
    one = Policy(weights=random.choice([0.5, 1.5], 4000))
    other = Policy(weights=one.weights + random.normal(0, 0.01, 4000))
    low, high = difference(reward, users, one, other)["ips"].interval
    alone_low, alone_high = estimate(reward, users, one)["ips"].interval
    assert high - low < (alone_high - alone_low) / 10


def test_the_simulations_propensities_are_those_of_all_slates():
    small = World(
        click=np.full((1, 3), 0.3),
        logging=np.log(np.array([[1.0, 2.0, 3.0]])),
        target=np.zeros((1, 3)),
        examined=np.ones(2),
    )
    slates = np.array([[2, 1], [0, 1]])
    assert chosen(small.logging, np.zeros(2, dtype=int), slates) == pytest.approx(
        np.array([[1 / 2, 2 / 3], [1 / 6, 2 / 5]])
    )
    assert small.value(small.target) == pytest.approx(0.3)


def simulated(of: World, *, model: str) -> tuple[dict[str, np.ndarray], float]:
    """By estimator, (value, low, high) of each simulated log's top position; and the truth."""
    truth = World(click=of.click, logging=of.logging, target=of.target, examined=of.examined[:1]).value(of.target)
    rhat = {"right": of.click, "wrong": 1 - of.click, "none": None}[model]
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for number, log in enumerate(draws(of, times=SIMULATIONS, users=USERS, requests_per_user=REQUESTS, seed=3)):
        target_NA = left_over(of.target, log.kind, log.items, 0)
        policy = Policy(
            weights=importance_weights(log.target[:, 0], log.propensity[:, 0]),
            predicted=None if rhat is None else rhat[log.kind, log.items[:, 0]],
            expected=None if rhat is None else (target_NA * rhat[log.kind]).sum(1),
        )
        found = estimate(log.reward[:, 0], log.user, policy, resamples=200, seed=number)
        for name, one in found.items():
            rows.setdefault(name, []).append((one.value, *one.interval))
    return {name: np.array(values) for name, values in rows.items()}, truth


def test_estimates_are_unbiased_and_95_of_100_intervals_hold_the_truth():
    found, truth = simulated(world(), model="right")
    for name in ("ips", "snips", "dr", "sndr"):
        values, low, high = found[name].T
        assert values.mean() == pytest.approx(truth, abs=4 * values.std() / np.sqrt(SIMULATIONS)), name
        assert 0.92 <= np.mean((low <= truth) & (truth <= high)) <= 0.97, name
    assert found["dr"][:, 0].std() < 0.9 * found["ips"][:, 0].std()
    assert abs(found["mean"][:, 0].mean() - truth) > 4 * found["mean"][:, 0].std() / np.sqrt(SIMULATIONS)


def test_doubly_robust_with_a_wrong_model_and_right_propensities_stays_unbiased():
    found, truth = simulated(world(), model="wrong")
    values, low, high = found["dr"].T
    assert values.mean() == pytest.approx(truth, abs=4 * values.std() / np.sqrt(SIMULATIONS))
    assert 0.92 <= np.mean((low <= truth) & (truth <= high)) <= 0.97


def test_where_a_click_depends_on_what_stands_above_only_whole_slates_weigh_right():
    of = world(fatigue=0.25)
    truth = of.value(of.target)
    by_item, by_slate = [], []
    for log in draws(of, times=SIMULATIONS, users=USERS, requests_per_user=REQUESTS, seed=4):
        ratios = importance_weights(log.target.ravel(), log.propensity.ravel())
        through, _ = along_slates(ratios, np.tile([0, 1], len(log.user)))
        by_item.append(float((ratios * log.reward.ravel()).mean()))
        by_slate.append(float((through * log.reward.ravel()).mean()))
    close = 4 / np.sqrt(SIMULATIONS)
    assert np.mean(by_slate) == pytest.approx(truth, abs=close * np.std(by_slate))
    assert abs(np.mean(by_item) - truth) > close * np.std(by_item)
