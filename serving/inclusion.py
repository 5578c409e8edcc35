"""With which probability an item is anywhere in the list that a policy shows: what weights by item are made of.

Legend: P candidates of the pool, by rank; K items shown; A = K + 1 counts of better ones shown before.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from schemas.wheel import Exploration

Floats = NDArray[np.float64]


def is_known(exploration: Exploration) -> bool:
    """Whether it follows from the rank alone; that of Plackett-Luce has no closed form."""
    return exploration.kind in ("none", "epsilon_greedy")


def inclusion(size: int, k: int, exploration: Exploration) -> Floats:
    """Of the item at each rank of a pool of `size`, that it is among the k shown; shape (P,), the sum is k."""
    assert is_known(exploration)
    return _inclusion(size, min(k, size), exploration.epsilon if exploration.kind == "epsilon_greedy" else 0.0)


@lru_cache(maxsize=256)
def _inclusion(size: int, k: int, epsilon: float) -> Floats:
    """Position by position: an item that is not shown yet waits with as many better ones shown as there are."""
    rank_P1, better_A = np.arange(size)[:, None], np.arange(k + 1)
    waits_PA = np.zeros((size, k + 1))
    waits_PA[:, 0] = 1.0
    for shown in range(k):
        left = size - shown
        # Greedy shows the best one left: a better one, as long as there is one.
        better_PA = (1 - epsilon) * (better_A < rank_P1) + epsilon * (rank_P1 - better_A) / left
        worse_PA = epsilon * (size - 1 - rank_P1 - (shown - better_A)) / left
        next_PA = waits_PA * worse_PA
        next_PA[:, 1:] += (waits_PA * better_PA)[:, :-1]
        waits_PA = next_PA
    found: Floats = 1.0 - waits_PA.sum(axis=1)
    found.flags.writeable = False
    return found
