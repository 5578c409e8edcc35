"""The policy: propensities by hand, that they are shares, and that what is drawn follows them."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.wheel import Exploration
from serving.policy import draw, next_propensities, policy_name, propensities

SCORES = np.array([0.2, 0.9, 0.5])  # best first: places 1, 2, 0
explorations = st.one_of(
    st.just(Exploration(kind="none")),
    st.builds(Exploration, kind=st.just("epsilon_greedy"), epsilon=st.floats(0, 1), pool=st.integers(1, 12)),
    st.builds(Exploration, kind=st.just("plackett_luce"), temperature=st.floats(0.01, 100), pool=st.integers(1, 12)),
)
scores_of_candidates = st.lists(st.floats(-5, 5), min_size=1, max_size=12).map(np.array)


def test_epsilon_greedy_by_hand():
    policy = Exploration(kind="epsilon_greedy", epsilon=0.3, pool=3)
    # First the best of three: 0.7 + 0.3 / 3. Then the worst of two left: 0.3 / 2. Then the only one left.
    assert propensities(SCORES, np.array([1, 0, 2]), policy) == pytest.approx([0.8, 0.15, 1.0])


def test_plackett_luce_by_hand():
    policy = Exploration(kind="plackett_luce", temperature=0.5, pool=3)
    weights = np.exp(SCORES / 0.5)
    first = weights[0] / weights.sum()
    second = weights[2] / (weights[1] + weights[2])
    assert propensities(SCORES, np.array([0, 2, 1]), policy) == pytest.approx([first, second, 1.0])


def test_without_exploration_the_best_is_certain_and_all_else_impossible():
    policy = Exploration(kind="none")
    assert propensities(SCORES, np.array([1, 2]), policy).tolist() == [1.0, 1.0]
    # After another item than its own, the policy would go on with the best.
    assert propensities(SCORES, np.array([0, 1]), policy).tolist() == [0.0, 1.0]


def test_what_lies_outside_the_pool_is_never_drawn():
    policy = Exploration(kind="epsilon_greedy", epsilon=1.0, pool=2)
    random = np.random.default_rng(0)
    assert {place for _ in range(100) for place in draw(SCORES, 2, policy, random).places.tolist()} == {1, 2}
    assert propensities(SCORES, np.array([0, 1]), policy)[0] == 0.0


def test_scores_far_apart_do_not_overflow():
    policy = Exploration(kind="plackett_luce", temperature=1e-3, pool=3)
    found = propensities(np.array([1e6, -1e6, 0.0]), np.array([0, 2, 1]), policy)
    assert found.tolist() == [1.0, 1.0, 1.0]


@given(scores=scores_of_candidates, exploration=explorations, k=st.integers(1, 14), seed=st.integers(0, 1000))
def test_what_was_drawn_has_the_propensities_that_it_is_given_and_they_are_shares(scores, exploration, k, seed):
    drawn = draw(scores, k, exploration, np.random.default_rng(seed))
    assert len(drawn.places) == min(k, len(scores))
    assert len(set(drawn.places.tolist())) == len(drawn.places)
    assert drawn.propensities.tolist() == propensities(scores, drawn.places, exploration).tolist()
    assert (drawn.propensities > 0).all()
    assert drawn.num_candidates <= len(scores)
    shares = next_propensities(scores, drawn.places, exploration).sum(axis=1)
    assert shares == pytest.approx(np.ones(len(drawn.places)))


@pytest.mark.parametrize(
    "exploration",
    [
        Exploration(kind="epsilon_greedy", epsilon=0.4, pool=4),
        Exploration(kind="plackett_luce", temperature=0.7, pool=4),
    ],
)
def test_lists_are_drawn_as_often_as_their_propensities_say(exploration):
    scores, random, draws = np.array([0.1, 1.0, 0.4, 0.8]), np.random.default_rng(7), 20_000
    counted = Counter(tuple(draw(scores, 2, exploration, random).places.tolist()) for _ in range(draws))
    for places in permutations(range(4), 2):
        expected = propensities(scores, np.array(places), exploration).prod()
        deviation = (expected * (1 - expected) / draws) ** 0.5
        assert abs(counted[places] / draws - expected) < 4.5 * deviation, places


@given(scores=scores_of_candidates, seed=st.integers(0, 1000))
@settings(max_examples=50)
def test_explored_is_what_is_not_the_best_left(scores, seed):
    drawn = draw(scores, 4, Exploration(kind="epsilon_greedy", epsilon=0.5, pool=12), np.random.default_rng(seed))
    order = np.argsort(-scores, kind="stable").tolist()
    for place, explored in zip(drawn.places.tolist(), drawn.explored.tolist(), strict=True):
        assert explored == (place != order[0])
        order.remove(place)


def test_a_policy_names_its_settings():
    assert policy_name(Exploration(epsilon=0.1, pool=50)) == "epsilon_greedy(0.1, pool=50)"
    assert policy_name(Exploration(kind="plackett_luce", temperature=0.2, pool=5)) == "plackett_luce(0.2, pool=5)"
    assert policy_name(Exploration(kind="none")) == "greedy"
