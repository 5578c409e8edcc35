"""What training shows of itself: gradients and losses of steps, units that never fire, directions that tables span.

Cheap enough for every run: a norm a step, hooks on a few batches of valid, a bounded sample of each table an epoch.

Legend: R sampled rows of a table, D width.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from schemas.features import NUM_RESERVED
from training.embeddings.files import tables_of
from training.embeddings.tables import HeldRows
from training.ranks import Ranks

EXPLODES = 100.0
"""Times the median norm of the steps before."""
_MEDIAN_OF, _FEWEST_STEPS = 50, 20
_WINDOWS_AT_ONCE, _PIECE = 1 << 14, 1 << 20
_STEPS_BETWEEN_RATIOS = 100
_SAMPLED_ROWS, _SAMPLED_BATCHES = 1024, 4
_NEXT_TO_NOTHING = 1e-3  # of the root mean square of the rows' norms


class StepSigns:
    """What the steps of an epoch showed, gradient norms and losses; three numbers a step."""

    def __init__(self) -> None:
        self.norms, self.ratios, self.losses, self.rows = array("d"), array("d"), array("d"), array("d")

    def add(self, gradient_norm: float, update_ratio: float | None, loss: float, rows: int) -> None:
        """The loss is summed over this rank's rows."""
        self.norms.append(gradient_norm)
        self.losses.append(loss)
        self.rows.append(rows)
        if update_ratio is not None:
            self.ratios.append(update_ratio)

    @property
    def wants_ratio(self) -> bool:
        """Whether the next step is to be measured: the epoch's first, and one in a hundred."""
        return len(self.norms) % _STEPS_BETWEEN_RATIOS == 0

    def taken(self) -> StepSigns:
        """What was added since the last call, to be begun anew."""
        before = StepSigns()
        before.__dict__, self.__dict__ = self.__dict__, before.__dict__
        return before

    def explosions(self) -> int:
        """Steps whose norm was far above the median of those before it, of which there must be some."""
        norms = np.asarray(self.norms)
        if len(norms) <= _FEWEST_STEPS:
            return 0
        windows = np.lib.stride_tricks.sliding_window_view(norms, min(_MEDIAN_OF, len(norms) - 1))[:-1]
        # Some at a time: a median copies its windows, which are many times as large as the norms.
        starts = range(0, len(windows), _WINDOWS_AT_ONCE)
        median = np.concatenate([np.median(windows[at : at + _WINDOWS_AT_ONCE], axis=1) for at in starts])
        # Those before a full window are judged by the median of the first one.
        median = np.concatenate([np.full(len(norms) - len(median), median[0]), median])
        return int((norms > EXPLODES * median).sum())

    def thirds(self, ranks: Ranks) -> tuple[float, float] | None:
        """Mean loss of the first and of the last third of the steps, over all ranks; None for too few steps."""
        third = len(self.losses) // 3
        if 3 * third < _FEWEST_STEPS:
            return None
        losses, rows = np.asarray(self.losses), np.asarray(self.rows)
        parts = [losses[:third].sum(), rows[:third].sum(), losses[-third:].sum(), rows[-third:].sum()]
        first, first_rows, last, last_rows = ranks.sum(torch.tensor(parts, dtype=torch.float64), "thirds").tolist()
        return (first / first_rows, last / last_rows) if first_rows and last_rows else None


class Units:
    """Of each ReLU layer, which units gave more than zero for any row of the batches that were looked at."""

    def __init__(self, model: nn.Module) -> None:
        self._alive: dict[str, Tensor] = {}
        self._batches: dict[str, int] = {}
        self._rows = 0
        self._layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.ReLU)}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at the first batches that go through the model meanwhile."""
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self._layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def dead_shares(self, ranks: Ranks) -> dict[str, float]:
        """By layer, the share of units that were zero for every row on every rank; nothing where there were no rows."""
        if not self._layers:
            return {}
        # A rank without rows has seen the layer's width all the same: empty batches go through the model too.
        counts = torch.cat([alive.flatten().cpu().to(torch.int64) for alive in self._alive.values()])
        summed = ranks.sum(torch.cat([counts, torch.tensor([self._rows])]), "units_alive")
        if not int(summed[-1]):
            return {}
        parts = summed[:-1].split([alive.numel() for alive in self._alive.values()])
        return {name: float((part == 0).double().mean()) for name, part in zip(self._alive, parts, strict=True)}

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def look(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if self._batches.get(name, 0) == _SAMPLED_BATCHES:
                return
            self._batches[name] = self._batches.get(name, 0) + 1
            rows = output.detach().reshape(-1, output.shape[-1])
            alive = (rows > 0).any(0)
            self._alive[name] = alive | self._alive[name] if name in self._alive else alive
            self._rows += len(rows)

        return look


@dataclass(frozen=True, kw_only=True)
class TableSigns:
    """A table's sampled rows: their effective rank, the most it could be, and the share next to nothing."""

    effective_rank: float
    most: int
    empty_share: float


def table_signs(model: nn.Module, ranks: Ranks) -> dict[str, TableSigns]:
    """Of every table with rows to look at. Collective: of sharded tables each rank gives a sample of its rows."""
    found: dict[str, TableSigns] = {}
    for tables in tables_of(model):
        for table in tables.placement.tables:
            rows_RD = _learned_rows(tables.held(table.name), ranks.size if table.is_sharded else 1)
            if table.is_sharded:
                rows_RD = ranks.gather(rows_RD, "table_sample")
            if len(rows_RD):
                found[table.name] = signs_of(rows_RD)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings > NUM_RESERVED:
            count = module.num_embeddings - NUM_RESERVED
            rows = NUM_RESERVED + torch.linspace(0, count - 1, min(count, _SAMPLED_ROWS), dtype=torch.float64).long()
            found[name] = signs_of(_at(module.weight.data, rows))
    return found


def signs_of(rows_RD: NDArray[np.float32]) -> TableSigns:
    """The effective rank is exp of the entropy of the singular values divided by their sum (Roy and Vetterli 2007)."""
    norms = np.linalg.norm(rows_RD.astype(np.float64), axis=1)
    size = np.sqrt(np.square(norms).mean())
    empty_share = float((norms <= _NEXT_TO_NOTHING * size).mean())
    values = np.linalg.svd(rows_RD.astype(np.float64), compute_uv=False)
    share = values[values > 0] / values.sum() if values.sum() > 0 else np.ones(1)
    effective_rank = float(np.exp(-(share * np.log(share)).sum()))
    return TableSigns(effective_rank=effective_rank, most=min(rows_RD.shape), empty_share=empty_share)


def _learned_rows(held: HeldRows, ranks: int) -> NDArray[np.float32]:
    """A bounded sample of the rows that had a gradient: others still hold their first values, which are random."""
    most = -(-_SAMPLED_ROWS // ranks)
    # Piece by piece: the numbers of all learned rows would take twice the room of their memory.
    pieces = held.squares.split(_PIECE)
    learned = [_spread(torch.nonzero(piece > 0).flatten(), most) + at * _PIECE for at, piece in enumerate(pieces)]
    return _at(held.weight, _spread(torch.cat(learned), most) if learned else torch.zeros(0, dtype=torch.long))


def _spread(rows: Tensor, most: int) -> Tensor:
    """Rows at even steps, from first to last."""
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most, device=rows.device, dtype=torch.float64).long()]


def _at(weight: Tensor, rows: Tensor) -> NDArray[np.float32]:
    sample: NDArray[np.float32] = weight[rows.to(weight.device)].float().cpu().numpy()
    return sample
