"""A log whose truth is known: users who return, a policy that draws slates item by item, another one to judge.

Users are of a few kinds, and some like everything more than others. A slate is drawn without putting back: at each
position in proportion to exp(preference) of the items left (Plackett-Luce). Whether an item is clicked depends on kind,
item and position; with `fatigue` also on the item right above it, as in a cascade.

Legend: R requests, K positions, A items, Z kinds of users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_MOOD = 0.05


@dataclass(frozen=True, kw_only=True)
class World:
    """Clicks and two policies' preferences, shape (Z, A), and by position what share of the clicks is left, (K,)."""

    click: Floats
    logging: Floats
    """Of the policy that shows; the other one is judged."""
    target: Floats
    examined: Floats
    fatigue: float = 0.0
    """What a click loses by an item above whose number is the neighbour's."""

    def clicks(self, kind: NDArray[np.int64], items: NDArray[np.int64]) -> Floats:
        """Probability of a click on each item of slates of shape (R, K), given what stands above it."""
        probability = self.click[kind[:, None], items] * self.examined
        near = np.zeros(items.shape, dtype=bool)
        near[:, 1:] = np.abs(items[:, 1:] - items[:, :-1]) == 1
        return np.where(near, probability * (1 - self.fatigue), probability)

    def value(self, preference_ZA: Floats) -> float:
        """Mean click of an item shown, by adding up over all slates."""
        kinds, items = preference_ZA.shape
        slates = np.array(list(permutations(range(items), len(self.examined))))
        values = []
        for kind in range(kinds):
            of = np.full(len(slates), kind)
            chance = chosen(preference_ZA, of, slates).prod(axis=1)
            values.append(float(chance @ self.clicks(of, slates).mean(axis=1)))
        return float(np.mean(values))


@dataclass(frozen=True, kw_only=True)
class Log:
    """Slates of shape (R, K); `propensity`, `target`: of each item given those above it, by the one or the other."""

    user: NDArray[np.int64]
    kind: NDArray[np.int64]
    items: NDArray[np.int64]
    reward: Floats
    propensity: Floats
    target: Floats


def world(*, fatigue: float = 0.0, seed: int = 7) -> World:
    """Three kinds of users, six items, two positions; the target policy prefers what is clicked, not too strongly."""
    random = np.random.default_rng(seed)
    click_ZA = random.uniform(0.1, 0.6, (3, 6))
    logging_ZA = random.normal(0, 0.5, (3, 6))
    return World(
        click=click_ZA,
        logging=logging_ZA,
        target=logging_ZA * 0.3 + (click_ZA - click_ZA.mean()) * 3,
        examined=np.array([1.0, 0.7]),
        fatigue=fatigue,
    )


def chosen(preference_ZA: Floats, kind: NDArray[np.int64], slates: NDArray[np.int64]) -> Floats:
    """With what probability each item of the slates is drawn, given those above it."""
    strength_RA = np.exp(preference_ZA)[kind]
    strengths = np.take_along_axis(strength_RA, slates, axis=1)
    left = strength_RA.sum(axis=1, keepdims=True) - np.cumsum(strengths, axis=1) + strengths
    return strengths / left


def left_over(preference_ZA: Floats, kind: NDArray[np.int64], slates: NDArray[np.int64], position: int) -> Floats:
    """The policy's distribution over items at a position, given the slate above it, shape (R, A)."""
    strength_RA = np.exp(preference_ZA)[kind].copy()
    np.put_along_axis(strength_RA, slates[:, :position], 0.0, axis=1)
    return strength_RA / strength_RA.sum(axis=1, keepdims=True)


def draw(of: World, *, users: int, requests_per_user: int, random: np.random.Generator) -> Log:
    """One log. Drawn with Gumbel noise (Efraimidis and Spirakis 2006), which is Plackett-Luce."""
    user = np.repeat(np.arange(users), requests_per_user)
    kind = random.integers(0, len(of.click), users)[user]
    noisy = of.logging[kind] + random.gumbel(size=(len(user), of.click.shape[1]))
    items = np.argsort(-noisy, axis=1)[:, : len(of.examined)]
    mood = random.choice((-_MOOD, _MOOD), users)[user]
    reward = random.random(items.shape) < of.clicks(kind, items) + mood[:, None]
    return Log(
        user=user,
        kind=kind,
        items=items,
        reward=reward.astype(np.float64),
        propensity=chosen(of.logging, kind, items),
        target=chosen(of.target, kind, items),
    )


def draws(of: World, *, times: int, users: int, requests_per_user: int, seed: int) -> Iterator[Log]:
    random = np.random.default_rng(seed)
    for _ in range(times):
        yield draw(of, users=users, requests_per_user=requests_per_user, random=random)
