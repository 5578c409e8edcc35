"""Rows of tables as pure functions: their first values, their owners among the ranks, their row-wise optimizer.

Legend: R rows, D width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

_CHUNK = 1 << 20  # numbers made at once: the integers behind them take twice their room
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_STEP = 0x9E3779B97F4A7C15


def first_values(rows_R: Tensor, width: int, *, limit: float, seed: int, out_RD: Tensor) -> None:
    """Fill `out_RD` with numbers uniform in [-limit, limit) that depend on seed and row alone, not on who holds it.

    Each number is a hash of (seed, row, place): SplitMix64 (Steele, Lea and Flood 2014, figure 16).
    """
    if out_RD.is_meta:  # only sizes are wanted
        return
    place_D = torch.arange(width, device=rows_R.device)
    at_once = max(1, _CHUNK // width)
    for start in range(0, len(rows_R), at_once):
        part = rows_R[start : start + at_once]
        mixed = _mixed((part.unsqueeze(1) * width + place_D) ^ (seed * 0x2545F491 % (1 << 62)))
        # 24 bits, all that a float32 in [0, 1) can tell apart.
        out_RD[start : start + at_once] = ((mixed >> 40) & 0xFFFFFF).to(torch.float32) * (limit / (1 << 23)) - limit


def _mixed(numbers: Tensor) -> Tensor:
    mixed = (numbers + 1) * _signed(_STEP)
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        mixed = (mixed ^ _shifted(mixed, shift)) * _signed(multiplier)
    return mixed ^ _shifted(mixed, 31)


def _shifted(numbers: Tensor, by: int) -> Tensor:
    """Shift to the right as unsigned numbers do."""
    return (numbers >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


class RowRule(Protocol):
    """How rows learn, in place, with one number of memory each. A row without gradient stays, and so does its number.

    So a table whose gradient has zeros for the rows that nothing touched learns what one learns that is told of the
    touched rows alone.
    """

    def __call__(
        self, weight_RD: Tensor, squares_R: Tensor, gradient_RD: Tensor, *, learning_rate: float, eps: float
    ) -> None: ...


def adagrad_(weight_RD: Tensor, squares_R: Tensor, gradient_RD: Tensor, *, learning_rate: float, eps: float) -> None:
    """Row-wise Adagrad in place: the mean square of a row's gradient is added to its one number of memory.

    Adagrad (Duchi, Hazan and Singer 2011) with one learning rate a row, as DLRM is trained at scale (Mudigere et al.
    2022, section 4.1.3). A row without gradient stays as it is.
    """
    squares_R += gradient_RD.square().mean(1)
    weight_RD.addcdiv_(gradient_RD, (squares_R.sqrt() + eps).unsqueeze(1), value=-learning_rate)


def adam_(
    weight_RD: Tensor, squares_R: Tensor, gradient_RD: Tensor, *, learning_rate: float, eps: float, beta2: float
) -> None:
    """Row-wise Adam without its first moment, in place: a running mean of the mean square of a row's gradients.

    Adam (Kingma and Ba 2015, algorithm 1) with beta1 = 0 and one second moment a row. The mean begins with the row's
    first square where Adam begins with 0 and corrects for that by the number of steps: either way its expectation is
    that of the squares, but a row needs no count of its own steps, nor is a rare row's first step too large, as it is
    if the steps of all rows are counted instead.
    """
    squares_now_R = gradient_RD.square().mean(1)
    running_R = torch.where(squares_R > 0, beta2 * squares_R + (1 - beta2) * squares_now_R, squares_now_R)
    squares_R.copy_(torch.where(squares_now_R > 0, running_R, squares_R))
    weight_RD.addcdiv_(gradient_RD, (squares_R.sqrt() + eps).unsqueeze(1), value=-learning_rate)
