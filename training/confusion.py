"""Which classes are taken for which: counted exactly over the ranks, and told by the worst of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from schemas.bundle import Confusion
from training.ranks import Ranks

SHOWN = 10


@dataclass(frozen=True)
class Confusions:
    """Rows by class and by the class that they were taken for: pairs that occur, which are far fewer than K x K.

    `label`, `taken_for` and `rows`, all of shape (pairs,), the pairs in order.
    """

    label: NDArray[np.int64]
    taken_for: NDArray[np.int64]
    rows: NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """NaN of no rows."""
        return _share(int(self.rows[self.label == self.taken_for].sum()), int(self.rows.sum()))

    @property
    def balanced_accuracy(self) -> float:
        """The mean over the classes that occur of how many of a class's rows are found."""
        total, found = np.bincount(self.label, self.rows), np.bincount(
            self.label, self.rows * (self.label == self.taken_for)
        )  # fmt: skip
        return float((found[total > 0] / total[total > 0]).mean()) if len(self.rows) else float("nan")

    def most_frequent(self, classes: Sequence[str], count: int = SHOWN) -> tuple[Confusion, ...]:
        """The pairs of different classes with most rows; equal ones in the order of their classes."""
        total = np.bincount(self.label, self.rows)
        wrong = np.flatnonzero(self.label != self.taken_for)
        worst = wrong[np.argsort(-self.rows[wrong], kind="stable")][:count]
        return tuple(
            Confusion(
                label=classes[self.label[pair]],
                taken_for=classes[self.taken_for[pair]],
                rows=int(self.rows[pair]),
                share=float(self.rows[pair] / total[self.label[pair]]),
            )
            for pair in worst
        )


def confusions(label: NDArray[np.int64], taken_for: NDArray[np.int64], num_classes: int, ranks: Ranks) -> Confusions:
    """Of all ranks' rows; collective. What travels is a number and a count for each pair that a rank has."""
    pairs, rows = np.unique(label * num_classes + taken_for, return_counts=True)
    gathered = ranks.gather(np.stack([pairs, rows], axis=1).astype(np.int64), "confusions")
    every, place = np.unique(gathered[:, 0], return_inverse=True)
    counts = np.zeros(len(every), np.int64)
    np.add.at(counts, place, gathered[:, 1])
    return Confusions(every // num_classes, every % num_classes, counts)


def confusion_table(split: str, found: Sequence[Confusion]) -> Table:
    table = Table(title=f"{split}: what is mixed up most often", title_justify="left")
    for name in ("class", "taken for", "rows", "of the class"):
        table.add_column(name, justify="left" if name in ("class", "taken for") else "right")
    for one in found:
        table.add_row(one.label, one.taken_for, f"{one.rows:,}", f"{one.share:.1%}")
    return table


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
