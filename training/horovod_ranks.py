"""The ranks that horovodrun starts, also where they die and come while training goes on. The one home of Horovod."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.ranks import GradientSum, Ranks, RanksChanged, as_half, from_half

_POLL_S = 0.0002


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
        with _together():
            self._hvd.broadcast_parameters(model.state_dict(), root_rank=0)

    def summing(self, model: nn.Module, *, travels_as: torch.dtype = torch.float32) -> GradientSum:
        return _HorovodSum(self._hvd, model, travels_as)

    def sum(self, values: Tensor, name: str) -> Tensor:
        with _together():
            return self._hvd.allreduce(values, op=self._hvd.Sum, name=name)

    def gather(self, values: NDArray[Any], name: str) -> NDArray[Any]:
        with _together():
            gathered: Tensor = self._hvd.allgather(torch.from_numpy(np.ascontiguousarray(values)), name=name)
        return gathered.numpy()

    def exchange(self, values: Tensor, rows: Sequence[int], name: str) -> tuple[Tensor, list[int]]:
        splits = torch.tensor(rows, dtype=torch.int32)
        received, came = _awaited(self._hvd, self._hvd.alltoall_async(values.contiguous(), splits=splits, name=name))
        return received, came.tolist()

    def hosts_changed(self) -> bool:
        return False


class _HorovodSum:
    """Sums, not averages: every rank divides by the global batch's rows, of which it may hold fewer than another."""

    def __init__(self, hvd: Any, model: nn.Module, travels_as: torch.dtype) -> None:
        self._hvd, self._travels_as, self.paused = hvd, travels_as, False
        self._under_way: list[tuple[Any, Tensor, Tensor]] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(partial(self._send, name))

    def _send(self, name: str, parameter: Tensor) -> None:
        if self.paused:
            return
        gradient = parameter.grad
        assert gradient is not None
        sent = gradient if gradient.dtype == self._travels_as else as_half(gradient, self._hvd.size())
        handle = self._hvd.allreduce_async_(sent, op=self._hvd.Sum, name=f"gradient.{name}")
        self._under_way.append((handle, sent, gradient))

    def wait(self) -> None:
        under_way, self._under_way = self._under_way, []
        for handle, sent, gradient in under_way:
            _awaited(self._hvd, handle)
            if sent is not gradient:
                from_half(sent, gradient)


def _awaited(hvd: Any, handle: Any) -> Any:
    """What an exchange gives, waited for asleep: Horovod's own wait spins and takes the cores from the threads that it
    waits for. On two cores and two ranks an epoch of the demo took half the time (docs/log.md)."""
    with _together():
        while not hvd.poll(handle):
            time.sleep(_POLL_S)
        return hvd.synchronize(handle)


@contextmanager
def _together() -> Iterator[None]:
    """An exchange, which ends with RanksChanged where a rank has died."""
    from horovod.common.exceptions import HorovodInternalError

    try:
        yield
    except HorovodInternalError as error:
        raise RanksChanged(f"a rank has died: {error}") from error


class ElasticRanks(HorovodRanks):
    """Ranks of a job that outlives some of them (horovodrun --host-discovery-script).

    Where one dies, Horovod ends the exchanges of the others with an error; they meet again, fewer or with new ones, and
    do their work anew. All that shall be left of it has to lie where any of them finds it: in checkpoints.
    """

    def __init__(self) -> None:
        super().__init__()
        self._news: Any = None

    def carry_out(self, work: Callable[[Ranks], None]) -> None:
        """Do the work, anew whenever the ranks have changed."""
        import horovod.torch.elastic as elastic
        from horovod.common.elastic import State
        from horovod.common.exceptions import HorovodInternalError, HostsUpdatedInterrupt

        class News(State):
            """What Horovod keeps of a job's state in memory: here only news of hosts; numbers, without pickle."""

            def save(self) -> None: ...

            def restore(self) -> None: ...

            def sync(self) -> None: ...

        def from_rank_0(numbers: tuple[int, ...]) -> tuple[int, ...]:
            with _together():
                told = self._hvd.broadcast(torch.tensor(numbers, dtype=torch.int64), root_rank=0, name="hosts_changed")
            return tuple(told.tolist())

        @elastic.run
        def attempt(news: Any) -> None:
            before, self.rank, self.size = self.size, self._hvd.rank(), self._hvd.size()
            if self._news is not None and self.rank == 0:
                print(f"ranks: {before} were, {self.size} are; going on from the last checkpoint", flush=True)
            self._news = news
            try:
                work(self)
            except RanksChanged as changed:
                died = changed.__cause__
                raise died if isinstance(died, HorovodInternalError) else HostsUpdatedInterrupt(False) from None

        attempt(News(from_rank_0, self._hvd.rank))

    def hosts_changed(self) -> bool:
        from horovod.common.exceptions import HostsUpdatedInterrupt

        try:
            self._news.check_host_updates()
        except HostsUpdatedInterrupt:
            return True
        return False
