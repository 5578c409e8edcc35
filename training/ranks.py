"""The ranks of a training job: Horovod's, or one process alone. The one place that imports Horovod."""

from __future__ import annotations

import os
import time
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_POLL_S = 0.0002


class Ranks(Protocol):
    """What training asks of its ranks. Methods are collective: every rank calls them, in the same order.

    `name` tells calls apart, so that a rank which has got out of step is found out instead of summing other values.
    """

    rank: int
    size: int

    def start_alike(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Give every rank the weights and the optimizer state of rank 0."""

    def summing(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
        """An optimizer whose step sums the gradients over the ranks first."""

    def sum(self, values: Tensor, name: str) -> Tensor:
        """The sum over the ranks, on each of them."""

    def gather(self, values: NDArray[Any], name: str) -> NDArray[Any]:
        """The ranks' arrays one after the other along the first axis, which may differ in length."""


class OneRank:
    """A process alone; `size` may name the ranks that it only plans for."""

    def __init__(self, size: int = 1) -> None:
        self.rank, self.size = 0, size

    def start_alike(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        pass

    def summing(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
        return optimizer

    def sum(self, values: Tensor, name: str) -> Tensor:
        return values

    def gather(self, values: NDArray[Any], name: str) -> NDArray[Any]:
        return values


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

    def start_alike(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        self._hvd.broadcast_optimizer_state(optimizer, root_rank=0)

    def summing(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
        # Sum, not average: every rank divides by the rows of the global batch, of which it may hold fewer than others.
        distributed = self._hvd.DistributedOptimizer(
            optimizer, named_parameters=model.named_parameters(), op=self._hvd.Sum
        )
        distributed.register_step_pre_hook(self._wait_asleep)
        return distributed

    def _wait_asleep(self, optimizer: Any, *_: Any) -> None:
        """Wait for the gradients' exchange before Horovod does: its own wait spins and takes the cores from the
        threads that it waits for. On two cores and two ranks an epoch of the demo took half the time (docs/log.md)."""
        for handle, _context in list(optimizer._handles.values()):
            while handle is not None and not self._hvd.poll(handle):
                time.sleep(_POLL_S)

    def sum(self, values: Tensor, name: str) -> Tensor:
        return self._hvd.allreduce(values, op=self._hvd.Sum, name=name)

    def gather(self, values: NDArray[Any], name: str) -> NDArray[Any]:
        gathered: Tensor = self._hvd.allgather(torch.from_numpy(np.ascontiguousarray(values)), name=name)
        return gathered.numpy()


def start_ranks() -> Ranks:
    """Join the job that this process was launched in."""
    return HorovodRanks() if "HOROVOD_SIZE" in os.environ else OneRank()
