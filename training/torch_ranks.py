"""Ranks on plain torch.distributed, as torchrun starts them: gloo on CPU, NCCL on GPU."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group: see TorchRanks
from numpy.typing import NDArray
from torch import Tensor, nn

from training.ranks import as_half, from_half


class TorchRanks:
    """What `Ranks` asks for. Calls are told apart by their order alone, so `name` is of no use here."""

    def __init__(self) -> None:
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if on_gpu else "gloo")
        # Its threads must end before the process does, or the process now and then ends with an abort, though all is
        # done. They end with the last that holds the group; torch.distributed.nn, which optimizers import, would hold
        # it as a default argument, had it first been imported from here on.
        atexit.register(dist.destroy_process_group)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = torch.device("cuda" if on_gpu else "cpu")

    def start_alike(self, model: nn.Module) -> None:
        for value in model.state_dict().values():
            dist.broadcast(value, src=0)

    def summing(self, model: nn.Module, *, travels_as: torch.dtype = torch.float32) -> _SumAtTheEnd:
        return _SumAtTheEnd(model, travels_as)

    def sum(self, values: Tensor, name: str) -> Tensor:
        total = values.to(self._device, copy=True)
        dist.all_reduce(total)
        return total.to(values.device)

    def gather(self, values: NDArray[Any], name: str) -> NDArray[Any]:
        mine = torch.from_numpy(np.ascontiguousarray(values)).to(self._device)
        lengths = [torch.zeros(1, dtype=torch.int64, device=self._device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(mine)], device=self._device))
        longest = max(int(length) for length in lengths)
        padded = mine.new_zeros(longest, *mine.shape[1:])
        padded[: len(mine)] = mine
        every = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(every, padded)
        parts = [part[: int(length)] for part, length in zip(every, lengths, strict=True)]
        return torch.cat(parts).cpu().numpy()

    def exchange(self, values: Tensor, rows: Sequence[int], name: str) -> tuple[Tensor, list[int]]:
        sent = torch.tensor(rows, device=self._device)
        came = torch.empty_like(sent)
        dist.all_to_all_single(came, sent)
        counts = came.tolist()
        here = values.to(self._device).contiguous()
        received = here.new_empty(sum(counts), *here.shape[1:])
        dist.all_to_all_single(received, here, output_split_sizes=counts, input_split_sizes=list(rows))
        return received.to(values.device), counts

    def hosts_changed(self) -> bool:
        return False


class _SumAtTheEnd:
    """One exchange of all gradients after the backward pass.

    Under way earlier, each as it is there, they would have to come in one order on every rank, and a rank without rows
    has another: torch.distributed tells calls apart by nothing else. Horovod does by name.
    """

    def __init__(self, model: nn.Module, travels_as: torch.dtype) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._travels_as, self.paused = travels_as, False

    def wait(self) -> None:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        if together.dtype != self._travels_as:
            half = as_half(together, dist.get_world_size())
            dist.all_reduce(half)
            from_half(half, together)
        else:
            dist.all_reduce(together)
        for gradient, part in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
