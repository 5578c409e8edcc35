"""What an item earns at a position, from the log alone: the reward model of doubly robust estimates.

A position's mean reward times the item's lift, which is shrunken towards 1 where an item was shown seldom. A user's
rows are judged by what the users of the other folds did, so that no row takes part in its own prediction.

Legend: N rows, F folds, A items, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FOLDS = 5
_PRIOR_ROWS = 20.0


@dataclass(frozen=True, kw_only=True)
class ItemRates:
    """Mean reward by position, shape (F, P), and lift by item, shape (F, A), of the folds other than each."""

    by_position: Floats
    lift: Floats

    def at(self, fold: int, positions_K: Ints, items_M: Ints) -> Floats:
        """Shape (K, M); an item with a number below 0 was never shown, and has the lift 1."""
        lift_M = np.where(items_M >= 0, self.lift[fold, np.maximum(items_M, 0)], 1.0)
        return self.by_position[fold, positions_K][:, None] * lift_M


def fit(reward_N: Floats, item_N: Ints, position_N: Ints, fold_N: Ints) -> ItemRates:
    """From all rows; every fold's rates are those of the rows of the other folds."""
    items, positions = int(item_N.max()) + 1, int(position_N.max()) + 1
    rows_FP = _others(fold_N, position_N, np.ones(len(reward_N)), positions)
    rewards_FP = _others(fold_N, position_N, reward_N, positions)
    overall_F1 = rewards_FP.sum(axis=1, keepdims=True) / np.maximum(rows_FP.sum(axis=1, keepdims=True), 1.0)
    by_position = (rewards_FP + _PRIOR_ROWS * overall_F1) / (rows_FP + _PRIOR_ROWS)
    lift = np.empty((FOLDS, items))
    for fold in range(FOLDS):
        is_other = fold_N != fold
        # What the item's rows would have earned had it been like any other at their positions.
        usual_N = by_position[fold, position_N[is_other]]
        usual_A = np.bincount(item_N[is_other], weights=usual_N, minlength=items)
        earned_A = np.bincount(item_N[is_other], weights=reward_N[is_other], minlength=items)
        prior = _PRIOR_ROWS * float(overall_F1[fold, 0])
        lift[fold] = (earned_A + prior) / (usual_A + prior) if prior > 0 else 1.0
    return ItemRates(by_position=by_position, lift=lift)


def _others(fold_N: Ints, value_N: Ints, weight_N: Floats, values: int) -> Floats:
    """Sums by fold and value over the rows of the other folds."""
    sums = np.bincount(fold_N * values + value_N, weights=weight_N, minlength=FOLDS * values).reshape(FOLDS, values)
    others: Floats = sums.sum(axis=0) - sums
    return others
