"""Random numbers of a row: a function of the run's seed, the epoch and the row's id, whatever batch and rank it is in.

So a run that goes on, or goes on on other ranks, draws what it would have drawn.

Legend: B rows of a batch, C numbers of each.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def uniform(row_id_B: Tensor, count: int, *, seed: int, epoch: int, salt: int) -> Tensor:
    """Float64 in [0, 1), shape (B, C), on the rows' device; what is drawn for other ends has another `salt`."""
    (base,) = np.random.SeedSequence([seed, epoch, salt]).generate_state(1, np.uint64).view(np.int64)
    row_B1 = _mixed(row_id_B.long() ^ int(base)).unsqueeze(1)
    number_C = _mixed(torch.arange(count, device=row_id_B.device))
    return _shifted(_mixed(row_B1 ^ number_C), 11).double() * 2.0**-53


def _mixed(state: Tensor) -> Tensor:
    """splitmix64 (Steele, Lea and Flood 2014): int64 that stands for unsigned numbers, whose products wrap around."""
    state = state + -0x61C8864680B583EB
    state = (state ^ _shifted(state, 30)) * -0x40A7B892E31B1A47
    state = (state ^ _shifted(state, 27)) * -0x6B2FB644ECCEEE15
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in: torch brings in the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
