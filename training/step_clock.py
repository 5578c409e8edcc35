"""Where a step's time goes: a clock that is always in one phase, and ranks whose exchanges it knows of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.ranks import GradientSum, Ranks

Phase = Literal["feed", "forward", "backward", "exchange", "optimizer", "rest"]
PHASES: tuple[Phase, ...] = ("feed", "forward", "backward", "exchange", "optimizer", "rest")


class PhaseClock:
    """Adds up the seconds of each phase; work on a GPU counts where it was asked for, for it is waited for there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self._phase: Phase = "rest"
        self._since = time.perf_counter()

    def turn_to(self, phase: Phase) -> Phase:
        """Begin a phase; give the one that ends."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now, before = time.perf_counter(), self._phase
        self.seconds[before] += now - self._since
        self._phase, self._since = phase, now
        return before

    @contextmanager
    def within(self, phase: Phase) -> Iterator[None]:
        before = self.turn_to(phase)
        yield
        self.turn_to(before)


class ClockedRanks:
    """Ranks whose exchanges count as such, in whatever phase they come."""

    def __init__(self, ranks: Ranks, clock: PhaseClock) -> None:
        self._ranks, self._clock = ranks, clock
        self.rank, self.size = ranks.rank, ranks.size

    def start_alike(self, model: nn.Module) -> None:
        self._ranks.start_alike(model)

    def summing(self, model: nn.Module, *, travels_as: torch.dtype = torch.float32) -> GradientSum:
        return self._ranks.summing(model, travels_as=travels_as)

    def sum(self, values: Tensor, name: str) -> Tensor:
        with self._clock.within("exchange"):
            return self._ranks.sum(values, name)

    def gather(self, values: NDArray[Any], name: str) -> NDArray[Any]:
        with self._clock.within("exchange"):
            return self._ranks.gather(values, name)

    def exchange(self, values: Tensor, rows: Sequence[int], name: str) -> tuple[Tensor, list[int]]:
        with self._clock.within("exchange"):
            return self._ranks.exchange(values, rows, name)

    def hosts_changed(self) -> bool:
        return self._ranks.hosts_changed()


TurnTo = Callable[[Phase], object]
