"""The epoch plan: which rows every rank sees, in which order and in how many steps, as a pure function of integers.

Rows are laid out in *lanes*. The row groups, in the epoch's random order, stand end to end; this line of rows is cut
into `num_lanes` pieces of equal length, the lanes, and a global batch takes the next rows of all lanes. Lanes are
dealt out to the ranks. So a global batch holds the same rows whatever the number of ranks, a rank reads its own
row groups and few others, rows of as many row groups as there are lanes are mixed, and every rank takes part in the
same number of steps.

Legend: N rows, G row groups, V lanes, W ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from schemas.errors import UserError

_MIN_LANES = 8
_ORDER_OF_ROW_GROUPS, _ORDER_OF_ROWS = 0, 1  # streams of the seed


def default_lanes(world_size: int) -> int:
    """A multiple of the ranks and of 8: the same for 1, 2, 4 and 8 ranks, so these see the same global batches."""
    return math.lcm(world_size, _MIN_LANES)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Rows `start` to `stop` of a row group, counted in the epoch's order of its rows; read for one lane."""

    lane: int
    row_group: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """Which rows each rank trains on in one epoch, and in how many steps; the same number of steps on every rank.

    Files hold unequal rows, and an allreduce waits for all ranks, so steps are counted from global rows. The last
    global batch may be short, and a rank's part of it empty.
    """

    row_group_rows: tuple[int, ...]
    world_size: int
    batch_size_per_rank: int
    epoch: int = 0
    seed: int = 0
    shuffle: bool = True
    num_lanes: int = 0
    """0 stands for `default_lanes(world_size)`; given, it must be at least the ranks."""

    def __post_init__(self) -> None:
        if self.batch_size_per_rank < 1:
            raise UserError(f"a batch of {self.batch_size_per_rank} rows: --batch-size-per-rank must be 1 or more.")
        if self.num_lanes == 0:
            object.__setattr__(self, "num_lanes", default_lanes(self.world_size))
        if self.num_lanes < self.world_size:
            raise UserError(f"{self.num_lanes} lanes cannot feed {self.world_size} ranks: use as many lanes or more.")
        if self.num_rows < self.world_size:
            raise UserError(
                f"{self.num_rows} rows cannot feed {self.world_size} ranks, each needs one: use fewer ranks."
            )

    @cached_property
    def num_rows(self) -> int:
        return sum(self.row_group_rows)

    @property
    def global_batch_size(self) -> int:
        return self.world_size * self.batch_size_per_rank

    @property
    def num_steps(self) -> int:
        return -(-self.num_rows // self.global_batch_size)

    def global_rows(self, step: int) -> int:
        """Rows of a step, summed over the ranks."""
        return min(self.num_rows, (step + 1) * self.global_batch_size) - step * self.global_batch_size

    def lanes_of(self, rank: int) -> range:
        """Dealt out in turn, so that the odd rows, which the first lanes hold, fall to different ranks."""
        return range(rank, self.num_lanes, self.world_size)

    def taken(self, num_global_rows: int) -> NDArray[np.int64]:
        """Rows taken from each lane once the ranks together have taken `num_global_rows`; shape (V,)."""
        lanes = np.arange(self.num_lanes)
        return num_global_rows // self.num_lanes + (lanes < num_global_rows % self.num_lanes)

    def lane_rows(self, step: int) -> NDArray[np.int64]:
        """Rows that a step takes from each lane; shape (V,)."""
        before = step * self.global_batch_size
        return self.taken(before + self.global_rows(step)) - self.taken(before)

    def positions(self, rank: int, step: int) -> NDArray[np.int64]:
        """Where the rank's rows of a step stand in the global batch, lane by lane."""
        rows = self.lane_rows(step)
        starts = np.cumsum(rows) - rows
        lanes = self.lanes_of(rank)
        return np.concatenate([np.arange(starts[lane], starts[lane] + rows[lane]) for lane in lanes])

    def rank_rows(self, rank: int) -> int:
        """Rows of the epoch that are this rank's."""
        lanes = self.lanes_of(rank)
        return int(self.taken(self.num_rows)[lanes.start :: lanes.step].sum())

    def rows_in_order(self, row_group: int) -> NDArray[np.int64]:
        """The epoch's order of a row group's rows."""
        rows = self.row_group_rows[row_group]
        return self._random(_ORDER_OF_ROWS, row_group).permutation(rows) if self.shuffle else np.arange(rows)

    def segments(self, rank: int, *, from_step: int = 0) -> list[Segment]:
        """What the rank reads, in the order in which it needs it, from a step on."""
        done = self.taken(from_step * self.global_batch_size)
        wanted = [(place, segment) for lane in self.lanes_of(rank) for place, segment in self._lane(lane, done[lane])]
        return [segment for _, segment in sorted(wanted, key=lambda pair: pair[0])]

    def _lane(self, lane: int, done: int) -> Iterator[tuple[tuple[int, int], Segment]]:
        """The lane's segments after its first `done` rows, each after its place: (row of the lane, lane)."""
        order, starts = self._line
        lengths = self.taken(self.num_rows)
        begin = int(lengths[:lane].sum())
        first, last = begin + int(done), begin + int(lengths[lane])
        if first >= last:
            return
        index = int(np.searchsorted(starts, first, side="right")) - 1
        while index < len(order) and starts[index] < last:
            start, stop = max(first, int(starts[index])), min(last, int(starts[index + 1]))
            if stop > start:
                offset = int(starts[index])
                segment = Segment(lane=lane, row_group=int(order[index]), start=start - offset, stop=stop - offset)
                yield (start - begin, lane), segment
            index += 1

    @cached_property
    def _line(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The row groups in the epoch's order, shape (G,), and where each starts in the line of rows, (G + 1,)."""
        count = len(self.row_group_rows)
        order = self._random(_ORDER_OF_ROW_GROUPS).permutation(count) if self.shuffle else np.arange(count)
        sizes = np.asarray(self.row_group_rows, dtype=np.int64)[order]
        return order, np.concatenate(([0], np.cumsum(sizes)))

    def _random(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, *stream])
