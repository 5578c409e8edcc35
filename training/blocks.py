"""From row groups to blocks: the rows of a few steps of one rank, gathered from its lanes into one piece of memory.

Gathering for several steps at once makes the calls few and long; the batches of a block are views of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from training.batch import Column, Ragged
from training.gather import Columns, gather
from training.plan import EpochPlan, Read, Segment
from training.row_groups import RowGroupColumns

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]


@dataclass(frozen=True, kw_only=True)
class Block:
    """The rank's rows of steps `first_step` to `first_step + num_steps`, `batch_rows` rows a step."""

    first_step: int
    num_steps: int
    batch_rows: int
    columns: dict[str, Column]

    def batches(self) -> Iterator[dict[str, Column]]:
        """The columns of each step: views of the block's."""
        if self.batch_rows == 0:
            yield from (dict(self.columns) for _ in range(self.num_steps))
            return
        names = list(self.columns)
        split: list[Sequence[Column]] = [column.split(self.batch_rows) for column in self.columns.values()]
        for columns in zip(*split, strict=True):
            yield dict(zip(names, columns, strict=True))


class _Arrived:
    """A row group that is in memory for as long as a segment of it is not yet used up."""

    def __init__(self, read: Read, columns: RowGroupColumns, order: np.ndarray):
        self.columns, self.order = columns, order
        self.rows_left = sum(segment.num_rows for segment in read.segments)


class Blocks:
    """Turns the row groups of `reads`, which arrive in that order, into blocks of about `block_rows` rows."""

    def __init__(
        self, plan: EpochPlan, rank: int, reads: list[Read], arriving: Generator[RowGroupColumns, None, None],
        nothing: RowGroupColumns, *, block_rows: int, allocate: Allocate,
    ):  # fmt: skip
        self._plan, self._reads = plan, reads
        self._arriving, self._nothing, self._allocate = arriving, nothing, allocate
        self._steps_per_block = max(1, block_rows // plan.batch_size_per_rank)
        self._arrived: dict[int, _Arrived] = {}
        self._num_arrived = 0
        self._lanes: dict[int, deque[tuple[Segment, int]]] = {lane: deque() for lane in plan.lanes_of(rank)}
        places = [(segment, number) for number, read in enumerate(reads) for segment in read.segments]
        for segment, number in sorted(places, key=lambda one: one[0].place):
            self._lanes[segment.lane].append((segment, number))
        self._taken: dict[int, int] = dict.fromkeys(self._lanes, 0)  # rows of each lane's first segment

    def from_step(self, step: int) -> Iterator[Block]:
        full_steps = self._plan.num_full_steps
        with closing(self._arriving):  # its threads end here, whatever happens
            while step < full_steps:
                num_steps = min(self._steps_per_block, full_steps - step)
                yield self._block(step, num_steps)
                step += num_steps
            if step < self._plan.num_steps:
                yield self._block(step, 1)

    def _block(self, first_step: int, num_steps: int) -> Block:
        lane_rows = self._plan.lane_rows(first_step)
        batch_rows = int(lane_rows[list(self._lanes)].sum())
        num_rows = batch_rows * num_steps
        targets = {
            name: self._allocate((num_rows, *array.shape[1:]), _torch_type(array.dtype))
            for name, array in self._nothing.fixed.items()
        }
        into = Columns({name: target.numpy() for name, target in targets.items()})
        pieces: list[tuple[dict[str, pa.Array], np.ndarray]] = []
        offset = 0
        for lane in self._lanes:
            run_rows = int(lane_rows[lane])
            for columns, order, first_row in self._take(lane, run_rows * num_steps):
                if into:
                    gather(columns.fixed, into, order, first_row, run_rows, batch_rows, offset)
                if columns.ragged:
                    batch, in_run = np.divmod(np.arange(first_row, first_row + len(order)), run_rows)
                    picked = {name: array.take(pa.array(order)) for name, array in columns.ragged.items()}
                    pieces.append((picked, batch * batch_rows + in_run + offset))
            offset += run_rows
        found: dict[str, Column] = {**targets, **self._ragged(pieces)}
        together = {name: found[name] for name in self._nothing.names}
        return Block(first_step=first_step, num_steps=num_steps, batch_rows=batch_rows, columns=together)

    def _take(self, lane: int, num_rows: int) -> Iterator[tuple[RowGroupColumns, np.ndarray, int]]:
        """The lane's next rows: columns, which rows of them, and how many rows of the block's share came before."""
        waiting, given = self._lanes[lane], 0
        while given < num_rows:
            segment, number = waiting[0]
            arrived = self._wait_for(number)
            start = segment.start + self._taken[lane]
            rows = min(num_rows - given, segment.stop - start)
            yield arrived.columns, arrived.order[start : start + rows], given
            given += rows
            self._taken[lane] += rows
            arrived.rows_left -= rows
            if not arrived.rows_left:
                del self._arrived[number]
            if start + rows == segment.stop:
                waiting.popleft()
                self._taken[lane] = 0

    def _wait_for(self, number: int) -> _Arrived:
        while number not in self._arrived:
            read = self._reads[self._num_arrived]
            order = self._plan.rows_in_order(read.row_group)
            self._arrived[self._num_arrived] = _Arrived(read, next(self._arriving), order)
            self._num_arrived += 1
        return self._arrived[number]

    def _ragged(self, pieces: list[tuple[dict[str, pa.Array], np.ndarray]]) -> dict[str, Ragged]:
        if not self._nothing.ragged:
            return {}
        places = np.concatenate([places for _, places in pieces]) if pieces else np.empty(0, dtype=np.int64)
        back = np.empty(len(places), dtype=np.int64)
        back[places] = np.arange(len(places))
        found = {}
        for name, nothing in self._nothing.ragged.items():
            rows = pa.concat_arrays([nothing, *(picked[name] for picked, _ in pieces)]).take(pa.array(back))
            found[name] = Ragged.of(rows)
        return found


def _torch_type(dtype: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype=dtype)).dtype
