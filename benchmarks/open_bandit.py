"""Open Bandit Data: two policies of a fashion shop on the same days, each with its own log (Saito et al. 2021).

`random` shows items evenly; `bts` is Bernoulli Thompson sampling, which knows no user. Each row is one item at one of
three positions, with its click. There are no user ids: rows count as users.

Legend: N rows of the random log, A items, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CAMPAIGNS = ("all", "men", "women")
_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """The random log, with what Thompson sampling would have done at each row, and the clicks of its own log."""

    reward: Floats
    propensity: Floats
    item: NDArray[np.int64]
    position: NDArray[np.int64]
    frequency: Floats
    """With which Thompson sampling shows each item at each position, shape (P, A)."""
    own_reward: Floats
    """Of the log of Thompson sampling."""
    log: pa.Table
    items: pa.Table

    @property
    def targets(self) -> Floats:
        """Of each item at each row's position, shape (N, A)."""
        return self.frequency[self.position]

    @property
    def target(self) -> Floats:
        """Of the item shown."""
        return self.frequency[self.position, self.item]


def read_campaign(folder: Path, name: str) -> Campaign:
    """Thompson sampling's propensities are how often its log shows an item at a position.

    The propensities that its log holds are those of the moment, for its policy learns; what it did on average over the
    week is the frequency. (Their mean over the rows of an item is larger: it is shown most when they are high.)
    """
    log, own = (pacsv.read_csv(folder / policy / name / f"{name}.csv") for policy in ("random", "bts"))
    items = pacsv.read_csv(folder / "random" / name / "item_context.csv").sort_by("item_id")
    counts_PA = np.zeros((3, len(items)))
    np.add.at(counts_PA, (_column(own, "position").astype(int) - 1, _column(own, "item_id").astype(int)), 1.0)
    return Campaign(
        reward=_column(log, "click"),
        propensity=_column(log, "propensity_score"),
        item=_column(log, "item_id").astype(np.int64),
        position=_column(log, "position").astype(np.int64) - 1,
        frequency=counts_PA / counts_PA.sum(axis=1, keepdims=True),
        own_reward=_column(own, "click"),
        log=log,
        items=items,
    )


def reward_model(of: Campaign, seed: int = 0) -> Floats:
    """Probability of a click on each item at each row's position, shape (N, A), by models that never saw the row.

    Logistic regression on position, item, the item's features, the user's features, and the user's affinity to the
    item; five folds. Its scores are sums of a row's part and an item's part, so that no row is built for each item.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold

    row_NF = np.hstack([_one_hot(of.log, name) for name in ("position", *(f"user_feature_{n}" for n in range(4)))])
    item_AF = np.hstack(
        [
            np.eye(len(of.items)),
            _column(of.items, "item_feature_0")[:, None],
            *(_one_hot(of.items, f"item_feature_{number}") for number in (1, 2, 3)),
        ]
    )
    affinity_NA = np.stack([_column(of.log, f"user-item_affinity_{n}") for n in range(len(of.items))], axis=1)
    rows, found_NA = np.arange(len(of.reward)), np.zeros((len(of.reward), len(of.items)))
    shown = np.hstack([row_NF, item_AF[of.item], affinity_NA[rows, of.item][:, None]])
    for learn, judge in KFold(_FOLDS, shuffle=True, random_state=seed).split(rows):
        model = LogisticRegression(C=0.1, max_iter=500).fit(shown[learn], of.reward[learn])
        of_row, of_item, of_affinity = np.split(model.coef_[0], [row_NF.shape[1], row_NF.shape[1] + item_AF.shape[1]])
        scores_NA = (row_NF[judge] @ of_row)[:, None] + item_AF @ of_item + affinity_NA[judge] * of_affinity
        found_NA[judge] = 1 / (1 + np.exp(-(scores_NA + model.intercept_)))
    return found_NA


def _column(table: pa.Table, name: str) -> Floats:
    return np.asarray(table[name].to_numpy(), dtype=np.float64)


def _one_hot(table: pa.Table, name: str) -> Floats:
    codes = table[name].combine_chunks().dictionary_encode()
    return np.eye(len(codes.dictionary))[codes.indices.to_numpy(zero_copy_only=False)]
