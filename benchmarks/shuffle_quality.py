"""How far an order of rows is from chance, on rows that lie sorted by their label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ShuffleQuality:
    """Of one epoch's order. A full permutation has 0, 0 and 1, but for chance."""

    rank_correlation: float
    """Of a row's place in the epoch with its place in the files (Spearman)."""
    label_autocorrelation: float
    """Of the batches' mean label with that of the batch after it."""
    batch_label_spread: float
    """Standard deviation of the batches' mean label over that of batches drawn without replacement."""


def shuffle_quality(order: NDArray[np.int64], label: NDArray[np.float32], *, batch_size: int) -> ShuffleQuality:
    """`order[i]` is the place in the files of the epoch's row i; `label` is by place in the files."""
    num_rows = len(order)
    assert np.array_equal(np.sort(order), np.arange(num_rows)), "an epoch gives each row once"
    came = label[order].astype(np.float64)
    num_batches = num_rows // batch_size
    means = came[: num_batches * batch_size].reshape(num_batches, batch_size).mean(axis=1)
    share = came.mean()
    expected = np.sqrt(share * (1 - share) / batch_size * (num_rows - batch_size) / (num_rows - 1))
    return ShuffleQuality(
        rank_correlation=float(np.corrcoef(np.arange(num_rows), order)[0, 1]),
        label_autocorrelation=float(np.corrcoef(means[:-1], means[1:])[0, 1]),
        batch_label_spread=float(means.std() / expected),
    )
