"""The policy that shows items: the best by score, and as much chance as is asked for, with the exact propensities.

The propensity of a position is that of its item given the items before it. A pool of P candidates are the best by
score; chance draws among them alone, without replacement.

Legend: N candidates, P of the pool, K positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.wheel import Exploration

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Drawn:
    """What stands at each of K positions."""

    places: Ints
    """Among the candidates."""
    propensities: Floats
    explored: NDArray[np.bool_]
    """Whether it is another than the best one left."""
    num_candidates: int
    """Candidates that could have stood first."""


def pool_of(scores_N: Floats, k: int, exploration: Exploration) -> Ints:
    """Places of the candidates that chance may choose among, best first; ties by place. At least k where there are."""
    size = k if exploration.kind == "none" else max(k, exploration.pool)
    return np.argsort(-scores_N, kind="stable")[:size]


def draw(scores_N: Floats, k: int, exploration: Exploration, random: np.random.Generator) -> Drawn:
    """Choose min(k, N) of the candidates."""
    pool_P = pool_of(scores_N, k, exploration)
    k = min(k, len(pool_P))
    if exploration.kind == "plackett_luce":
        # The order of scores with Gumbel noise is that of draws without replacement (Yellott 1977).
        noisy_P = scores_N[pool_P] / exploration.temperature + random.gumbel(size=len(pool_P))
        places_K = pool_P[np.argsort(-noisy_P, kind="stable")[:k]]
    elif exploration.kind == "epsilon_greedy":
        places_K = _epsilon_greedy(pool_P, k, exploration.epsilon, random)
    else:
        places_K = pool_P[:k]
    best_K = _best_left(pool_P, places_K)
    return Drawn(
        places=places_K,
        propensities=propensities(scores_N, places_K, exploration),
        explored=places_K != best_K,
        num_candidates=len(pool_P) if _draws(exploration) else min(1, len(pool_P)),
    )


def propensities(scores_N: Floats, places_K: Ints, exploration: Exploration) -> Floats:
    """With which the policy, given these scores, puts each item after those before it; 0 for what it never would.

    Used on what the policy itself drew, and on what another one showed.
    """
    pool_P = pool_of(scores_N, len(places_K), exploration)
    next_KP = next_propensities(scores_N, places_K, exploration)
    is_it_KP = pool_P == np.asarray(places_K)[:, None]
    return np.where(is_it_KP, next_KP, 0.0).sum(axis=1)


def next_propensities(scores_N: Floats, places_K: Ints, exploration: Exploration) -> Floats:
    """Shape (K, P): at each position that of every candidate of the pool, given the items before; 0 for those taken."""
    pool_P = pool_of(scores_N, len(places_K), exploration)
    taken_KP = (pool_P == np.asarray(places_K)[:, None]).cumsum(axis=0).astype(bool)
    left_KP = np.ones_like(taken_KP)
    left_KP[1:] = ~taken_KP[:-1]
    num_left_K1 = left_KP.sum(axis=1, keepdims=True)
    if exploration.kind == "plackett_luce":
        logits_KP = np.where(left_KP, scores_N[pool_P] / exploration.temperature, -np.inf)
        top_K1 = logits_KP.max(axis=1, keepdims=True, initial=-np.inf)
        weights_KP = np.exp(logits_KP - np.where(np.isfinite(top_K1), top_K1, 0.0))
        return _shares(weights_KP)
    first_KP = left_KP & (left_KP.cumsum(axis=1) == 1)
    if exploration.kind == "none":
        return first_KP.astype(np.float64)
    even_KP = left_KP / np.maximum(num_left_K1, 1)
    return exploration.epsilon * even_KP + (1 - exploration.epsilon) * first_KP


def policy_name(exploration: Exploration) -> str:
    if exploration.kind == "epsilon_greedy":
        return f"epsilon_greedy({exploration.epsilon:g}, pool={exploration.pool})"
    if exploration.kind == "plackett_luce":
        return f"plackett_luce({exploration.temperature:g}, pool={exploration.pool})"
    return "greedy"


def _epsilon_greedy(pool_P: Ints, k: int, epsilon: float, random: np.random.Generator) -> Ints:
    by_chance_K, which_K = random.random(k) < epsilon, random.random(k)
    left = pool_P.tolist()
    chosen = []
    for by_chance, which in zip(by_chance_K.tolist(), which_K.tolist(), strict=True):
        chosen.append(left.pop(int(which * len(left)) if by_chance else 0))
    return np.array(chosen, dtype=np.int64)


def _best_left(pool_P: Ints, places_K: Ints) -> Ints:
    """At each position the best candidate that was not shown before."""
    taken_KP = (pool_P == places_K[:, None]).cumsum(axis=0).astype(bool)
    left_KP = np.ones_like(taken_KP)
    left_KP[1:] = ~taken_KP[:-1]
    return pool_P[left_KP.argmax(axis=1)] if len(pool_P) else places_K


def _draws(exploration: Exploration) -> bool:
    return exploration.kind == "plackett_luce" or (exploration.kind == "epsilon_greedy" and exploration.epsilon > 0)


def _shares(weights: Floats) -> Floats:
    total = weights.sum(axis=1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
