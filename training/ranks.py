"""The ranks of a training job: Horovod's, torchrun's, or one process alone. The one place that imports Horovod."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_POLL_S = 0.0002


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

    def summing(self, model: nn.Module) -> GradientSum:
        """From now on every backward pass sends each gradient on its way as soon as it is there."""

    def sum(self, values: Tensor, name: str) -> Tensor:
        """The sum over the ranks, on each of them."""

    def gather(self, values: NDArray[Any], name: str) -> NDArray[Any]:
        """The ranks' arrays one after the other along the first axis, which may differ in length."""

    def exchange(self, values: Tensor, rows: Sequence[int], name: str) -> tuple[Tensor, list[int]]:
        """Send rows of `values` to each rank: the first rows[0] to rank 0, and so on (an alltoall).

        Gives what came, in the order of the ranks that sent it, and how many rows came from each.
        """


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

    def summing(self, model: nn.Module) -> GradientSum:
        return _NothingToSum()

    def sum(self, values: Tensor, name: str) -> Tensor:
        return values

    def gather(self, values: NDArray[Any], name: str) -> NDArray[Any]:
        return values

    def exchange(self, values: Tensor, rows: Sequence[int], name: str) -> tuple[Tensor, list[int]]:
        return values, list(rows)


class HorovodRanks:
    """The processes that horovodrun started; gloo on CPU, NCCL on GPU."""

    def __init__(self) -> None:
        import horovod.torch as hvd

        hvd.init()
        self._hvd = hvd
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()
        if torch.cuda.is_available():
            torch.cuda.set_device(hvd.local_rank())

    def start_alike(self, model: nn.Module) -> None:
        self._hvd.broadcast_parameters(model.state_dict(), root_rank=0)

    def summing(self, model: nn.Module) -> GradientSum:
        return _HorovodSum(self._hvd, model)

    def sum(self, values: Tensor, name: str) -> Tensor:
        return self._hvd.allreduce(values, op=self._hvd.Sum, name=name)

    def gather(self, values: NDArray[Any], name: str) -> NDArray[Any]:
        gathered: Tensor = self._hvd.allgather(torch.from_numpy(np.ascontiguousarray(values)), name=name)
        return gathered.numpy()

    def exchange(self, values: Tensor, rows: Sequence[int], name: str) -> tuple[Tensor, list[int]]:
        splits = torch.tensor(rows, dtype=torch.int32)
        received, came = _awaited(self._hvd, self._hvd.alltoall_async(values.contiguous(), splits=splits, name=name))
        return received, came.tolist()


class _HorovodSum:
    """Sums, not averages: every rank divides by the global batch's rows, of which it may hold fewer than another."""

    def __init__(self, hvd: Any, model: nn.Module) -> None:
        self._hvd, self.paused = hvd, False
        self._handles: list[Any] = []
        for name, parameter in model.named_parameters():
            parameter.register_post_accumulate_grad_hook(partial(self._send, name))

    def _send(self, name: str, parameter: Tensor) -> None:
        if self.paused:
            return
        self._handles.append(self._hvd.allreduce_async_(parameter.grad, op=self._hvd.Sum, name=f"gradient.{name}"))

    def wait(self) -> None:
        handles, self._handles = self._handles, []
        for handle in handles:
            _awaited(self._hvd, handle)


def _awaited(hvd: Any, handle: Any) -> Any:
    """What an exchange gives, waited for asleep: Horovod's own wait spins and takes the cores from the threads that it
    waits for. On two cores and two ranks an epoch of the demo took half the time (docs/log.md)."""
    while not hvd.poll(handle):
        time.sleep(_POLL_S)
    return hvd.synchronize(handle)


def start_ranks() -> Ranks:
    """Join the job that this process was launched in: horovodrun's, torchrun's, or none."""
    if "HOROVOD_SIZE" in os.environ:
        return HorovodRanks()
    # LOCAL_RANK too: what runs a cluster's containers sets the others for programs that are no ranks.
    if {"WORLD_SIZE", "MASTER_ADDR", "LOCAL_RANK"} <= {*os.environ}:
        from training.torch_ranks import TorchRanks

        return TorchRanks()
    return OneRank()
