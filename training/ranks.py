"""The ranks of a training job: what is asked of them, and which launcher's they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class RanksChanged(Exception):
    """A rank has died, or hosts have come or will go: all ranks leave what they do.

    Elastic ones begin anew, from the last checkpoint.
    """


_HALF_SCALE = 2.0**10
# A mean's gradients are small, and below 6e-5 float16 loses digits.


def as_half(gradient: Tensor, ranks: int) -> Tensor:
    """The gradient as it travels: float16, times a thousand, cut where the sum over the ranks would have no number."""
    most = torch.finfo(torch.float16).max / ranks
    return (gradient * _HALF_SCALE).clamp_(-most, most).to(torch.float16)


def from_half(travelled: Tensor, gradient: Tensor) -> None:
    """Put into `gradient` what has come, divided in float32: float16 would lose the digits again."""
    gradient.copy_(travelled).div_(_HALF_SCALE)


class GradientSum(Protocol):
    """The sum of gradients over the ranks, under way while the backward pass goes on.

    While it is `paused`, gradients stay where they are and add up.
    """

    paused: bool

    def wait(self) -> None:
        """Return when every gradient of the last backward pass is the sum over the ranks."""


class Ranks(Protocol):
    """What training asks of its ranks. Methods are collective: every rank calls them, in the same order.

    `name` tells calls apart, so that a rank which has got out of step is found out instead of summing other values.
    """

    rank: int
    size: int

    def start_alike(self, model: nn.Module) -> None:
        """Give every rank the weights of rank 0."""

    def summing(self, model: nn.Module, *, travels_as: torch.dtype = torch.float32) -> GradientSum:
        """From now on every backward pass sends each gradient on its way as soon as it is there."""

    def sum(self, values: Tensor, name: str) -> Tensor:
        """The sum over the ranks, on each of them."""

    def gather(self, values: NDArray[Any], name: str) -> NDArray[Any]:
        """The ranks' arrays one after the other along the first axis, which may differ in length."""

    def exchange(self, values: Tensor, rows: Sequence[int], name: str) -> tuple[Tensor, list[int]]:
        """Send rows of `values` to each rank: the first rows[0] to rank 0, and so on (an alltoall).

        Gives what came, in the order of the ranks that sent it, and how many rows came from each.
        """

    def hosts_changed(self) -> bool:
        """Whether hosts have come or will go, so that RanksChanged is due; alike on every rank."""


class _NothingToSum:
    paused = False

    def wait(self) -> None:
        pass


class OneRank:
    """A process alone; `size` may name the ranks that it only plans for."""

    def __init__(self, size: int = 1) -> None:
        self.rank, self.size = 0, size

    def start_alike(self, model: nn.Module) -> None:
        pass

    def summing(self, model: nn.Module, *, travels_as: torch.dtype = torch.float32) -> GradientSum:
        return _NothingToSum()

    def sum(self, values: Tensor, name: str) -> Tensor:
        return values

    def gather(self, values: NDArray[Any], name: str) -> NDArray[Any]:
        return values

    def exchange(self, values: Tensor, rows: Sequence[int], name: str) -> tuple[Tensor, list[int]]:
        return values, list(rows)

    def hosts_changed(self) -> bool:
        return False


def start_ranks() -> Ranks:
    """Join the job that this process was launched in: horovodrun's, torchrun's, or none."""
    if "HOROVOD_SIZE" in os.environ:
        from training.horovod_ranks import ElasticRanks, HorovodRanks

        return ElasticRanks() if os.environ.get("HOROVOD_ELASTIC") == "1" else HorovodRanks()
    # LOCAL_RANK too: what runs a cluster's containers sets the others for programs that are no ranks.
    if {"WORLD_SIZE", "MASTER_ADDR", "LOCAL_RANK"} <= {*os.environ}:
        from training.torch_ranks import TorchRanks

        return TorchRanks()
    return OneRank()
