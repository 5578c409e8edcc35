"""Weights by item: with which probability an item is anywhere in a list, and what is estimated with it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.wheel import Exploration
from serving.inclusion import inclusion
from serving.off_policy import Policy, effective_rows, estimate
from serving.policy import draw, propensities


def greedy(epsilon: float) -> Exploration:
    return Exploration(kind="epsilon_greedy", epsilon=epsilon, pool=12)


def test_two_items_of_three_by_hand():
    # First 0.8, 0.1 and 0.1; then the best left with 0.85 and the other one with 0.15.
    second = 0.1 + 0.8 * 0.85 + 0.1 * 0.15
    third = 0.1 + 0.8 * 0.15 + 0.1 * 0.15
    assert inclusion(3, 2, greedy(0.3)) == pytest.approx([2 - second - third, second, third])
    assert 2 - second - third == pytest.approx(1 - 2 * 0.1 * 0.15)


@given(st.integers(1, 40), st.integers(1, 12), st.floats(0, 1))
def test_as_many_are_shown_as_there_are_places_and_better_ones_sooner(size, k, epsilon):
    found = inclusion(size, k, Exploration(kind="epsilon_greedy", epsilon=epsilon, pool=50))
    assert found.sum() == pytest.approx(min(k, size))
    assert (np.diff(found) <= 1e-9).all()
    assert inclusion(size, k, Exploration(kind="none")).tolist() == [1.0] * min(k, size) + [0.0] * max(0, size - k)


def test_lists_hold_items_as_often_as_is_said():
    random, counts, times = np.random.default_rng(0), np.zeros(12), 4000
    for _ in range(times):
        counts[draw(-np.arange(12.0), 4, greedy(0.4), random).places] += 1
    assert counts / times == pytest.approx(inclusion(12, 4, greedy(0.4)), abs=0.03)


def test_where_clicks_depend_on_the_item_alone_weights_by_item_find_the_truth_with_far_more_effective_rows():
    random, k, requests = np.random.default_rng(1), 4, 4000
    logging, target = -np.arange(12.0), -np.array([1.0, 4, 0, 2, 3, 7, 5, 6, 9, 8, 10, 11])
    click = 0.1 + 0.06 * np.arange(12)
    rank_of_logged = np.arange(12)
    rank_of_target = np.argsort(np.argsort(-target))
    of_list = inclusion(12, k, greedy(0.2))
    rows = [draw(logging, k, greedy(0.2), random) for _ in range(requests)]
    shown = np.concatenate([one.places for one in rows])
    reward = (random.random(len(shown)) < click[shown]).astype(float)
    by_item = of_list[rank_of_target[shown]] / of_list[rank_of_logged[shown]]
    by_position = np.concatenate([propensities(target, one.places, greedy(0.2)) / one.propensities for one in rows])
    truth = float((of_list[rank_of_target] * click).sum()) / k
    found = estimate(reward, np.repeat(np.arange(requests), k), Policy(weights=by_item), resamples=200)
    for name in ("ips", "snips"):
        assert found[name].interval[0] <= truth <= found[name].interval[1]
        assert reward.mean() < found[name].interval[0], "the log's own list earns less"
    assert by_item.mean() == pytest.approx(1.0, abs=0.03)
    assert effective_rows(by_item) > 5 * effective_rows(by_position)
