"""The epoch plan: which rows every rank sees, in which order and in how many steps, as a pure function of integers.

The row groups, in the epoch's random order, stand end to end; this line of rows is cut into `num_lanes` lanes, and a
global batch takes the next rows of all lanes, from each lane as many in every step. Each rank has as many lanes as the
others, side by side. So a global batch mixes rows of as many places of the data set as there are lanes, holds the same
rows whatever the ranks that share the lanes, and every rank takes part in the same number of steps.

Every other lane goes through its row groups from last to first: then neighbours come to the row group that their border
cuts at the same time, and it is read once (if a batch has a row of each lane or more). An epoch that was stopped and
goes on with other ranks is planned anew over the rows that its earlier *legs* left.

Legend: N rows, G row groups, P pieces of row groups, V lanes, W ranks, B rows of a rank's batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from schemas.errors import UserError

SLAB_ROWS = 1 << 13
"""Rows of a row group are permuted within slabs of this many, and slabs come in random order: what is gathered from
then stays in the processor's cache."""

_FEWEST_LANES, _MOST_LANES, _FEWEST_LANES_PER_RANK = 8, 64, 4
_FIRST_BATCH_BYTES = 1 << 27  # the first batch waits for a row group of each lane: for as long as this takes to read
_ORDER_OF_ROW_GROUPS, _ORDER_OF_ROWS, _ORDER_IN_SLABS = 0, 1, 2  # streams of the seed

Ints = NDArray[np.int64]


def default_lanes(
    world_size: int, *, row_group_bytes: int, lanes_in_memory: int, batch_size_per_rank: int, shuffle: bool = True
) -> int:
    """As many lanes as 128 MB of row groups, from 8 to 64, and at least 4 a rank.

    Fewer where a rank's memory holds fewer, or where its batches have fewer rows. The same for as many ranks as find 4
    lanes each, which then see the same global batches. Unshuffled, each rank has one lane, and one rank gets the rows
    in the order of the files.
    """
    if not shuffle:
        return world_size
    wanted = max(_FEWEST_LANES, min(_MOST_LANES, _power_of_two(_FIRST_BATCH_BYTES // row_group_bytes)))
    per_rank = max(wanted // world_size, _FEWEST_LANES_PER_RANK)
    return world_size * min(per_rank, _power_of_two(lanes_in_memory), _power_of_two(batch_size_per_rank))


@dataclass(frozen=True, kw_only=True)
class Leg:
    """A stretch of an epoch that is over: with these lanes and global batches it went `steps` steps far."""

    num_lanes: int
    global_batch_size: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Rows `start` to `stop` of a row group, counted in the epoch's order of its rows; one lane takes them.

    The first is taken by step `first_step`, the last one by `last_step`.
    """

    lane: int
    place: int
    """Of its first row in the lane."""
    row_group: int
    start: int
    stop: int
    first_step: int
    last_step: int

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Read:
    """A row group to be read once, and the segments that it serves."""

    row_group: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """Which rows each rank trains on in one epoch, and in how many steps; the same number of steps on every rank.

    Files hold unequal rows, and an allreduce waits for all ranks, so steps are counted from global rows. The last
    global batch may be short, and a rank's part of it empty; `drop_last` leaves it out.
    """

    row_group_rows: tuple[int, ...]
    world_size: int
    batch_size_per_rank: int
    num_lanes: int
    epoch: int = 0
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    legs: tuple[Leg, ...] = ()
    """The epoch's earlier legs; their rows are done."""

    def __post_init__(self) -> None:
        if self.batch_size_per_rank < 1:
            raise UserError(f"a batch of {self.batch_size_per_rank} rows: --batch-size-per-rank must be 1 or more.")
        if self.seed < 0 or self.epoch < 0:
            raise UserError(f"seed {self.seed} and epoch {self.epoch}: both count from 0.")
        if self.world_size < 1 or self.num_lanes < 1 or self.num_lanes % self.world_size:
            raise UserError(
                f"{self.num_lanes} lanes cannot be shared out to {self.world_size} ranks: use a multiple of the ranks."
            )
        if not any(self.row_group_rows):
            raise UserError("there are no rows for an epoch: the files hold none, or the filter lets none through.")
        if self.drop_last and not self.legs and not self.num_steps:
            raise UserError(
                f"{self.num_rows:,} rows cannot fill one step of {self.world_size} ranks x "
                f"{self.batch_size_per_rank:,} rows: lower --batch-size-per-rank, use fewer ranks, keep the last batch."
            )

    @cached_property
    def num_rows(self) -> int:
        """Rows that this leg finds, those of a dropped last batch included."""
        return int(self._begins[-1])

    @property
    def global_batch_size(self) -> int:
        return self.world_size * self.batch_size_per_rank

    @property
    def num_full_steps(self) -> int:
        return self.num_rows // self.global_batch_size

    @property
    def num_steps(self) -> int:
        return self.num_full_steps if self.drop_last else -(-self.num_rows // self.global_batch_size)

    def global_rows(self, step: int) -> int:
        """Rows of a step, summed over the ranks."""
        return min(self.num_rows, (step + 1) * self.global_batch_size) - step * self.global_batch_size

    def lanes_of(self, rank: int) -> range:
        lanes_per_rank = self.num_lanes // self.world_size
        return range(rank * lanes_per_rank, (rank + 1) * lanes_per_rank)

    def lane_rows(self, step: int) -> Ints:
        """Rows that a step takes from each lane: the same in all steps but a short last one; shape (V,)."""
        return _shared_out(self.global_rows(step), self.num_lanes)

    def positions(self, rank: int, step: int) -> range:
        """Where the rank's rows of a step stand in the global batch, which goes lane by lane."""
        rows, lanes = self.global_rows(step), self.lanes_of(rank)
        return range(lanes.start * rows // self.num_lanes, lanes.stop * rows // self.num_lanes)

    def rank_rows(self, rank: int, *, from_step: int = 0) -> int:
        """Rows of this leg that are this rank's, from a step on."""
        rows = max(0, self.num_full_steps - from_step) * self.batch_size_per_rank
        if from_step <= self.num_full_steps < self.num_steps:
            rows += len(self.positions(rank, self.num_full_steps))
        return rows

    def rows_in_order(self, row_group: int) -> NDArray[np.int32]:
        """The epoch's order of a row group's rows, shape (rows,): slab after slab, the rows of each permuted.

        Drawing a permutation for each slab would take a sixth of the feed's time. Full slabs share the epoch's one,
        each through an affine permutation of its own, i -> factor * i + shift, of which there are 2^25.
        """
        num_rows = self.row_group_rows[row_group]
        if not self.shuffle:
            return np.arange(num_rows, dtype=np.int32)
        random = self._random(_ORDER_OF_ROWS, row_group)
        num_full, odd_rows = divmod(num_rows, SLAB_ROWS)
        factor, shift = random.integers(0, SLAB_ROWS, (2, num_full, 1), dtype=np.int32)
        within = (np.arange(SLAB_ROWS, dtype=np.int32) * (factor | 1) + shift) & (SLAB_ROWS - 1)
        full = self._order_in_slabs[within] + (np.arange(num_full, dtype=np.int32) * SLAB_ROWS)[:, np.newaxis]
        slabs = [*full, random.permutation(odd_rows).astype(np.int32) + np.int32(num_full * SLAB_ROWS)]
        return np.concatenate([slabs[slab] for slab in random.permutation(len(slabs))])

    def reads(self, rank: int, *, from_step: int = 0) -> list[Read]:
        """What the rank reads from a step on, in the order in which its steps need it.

        Segments of one row group that are needed at the same time share a read.
        """
        segments = [segment for lane in self.lanes_of(rank) for segment in self._segments(lane, from_step)]
        served: list[tuple[int, list[Segment]]] = []
        open_reads: dict[int, tuple[list[Segment], int]] = {}  # by row group, with the last step that needs it
        for segment in sorted(segments, key=lambda segment: (segment.first_step, segment.lane, segment.place)):
            sharing, needed_until = open_reads.get(segment.row_group, ([], -1))
            if needed_until < segment.first_step:
                sharing = []
                served.append((segment.row_group, sharing))
            sharing.append(segment)
            open_reads[segment.row_group] = sharing, max(needed_until, segment.last_step)
        return [Read(row_group, tuple(sharing)) for row_group, sharing in served]

    def after(self, steps: int) -> tuple[Leg, ...]:
        """The legs behind a plan for the rows that are left after `steps` steps of this one."""
        if self.drop_last and steps >= self.num_full_steps:
            steps = self.num_full_steps + 1  # what it drops does not come back
        leg = Leg(num_lanes=self.num_lanes, global_batch_size=self.global_batch_size, steps=steps)
        return (*self.legs, leg) if steps else self.legs

    def _segments(self, lane: int, from_step: int) -> Iterator[Segment]:
        """The lane's segments, those rows left out that steps before `from_step` took, or that no step takes."""
        per_step, full_steps = int(self._rows_per_step[lane]), self.num_full_steps
        done = min(from_step, full_steps) * per_step
        planned = full_steps * per_step if self.drop_last else int(self._lane_lengths[lane])
        if from_step > full_steps:
            return
        place = 0  # of the next row in the lane
        for row_group, start, stop in _lane(lane, self._line, self._lane_starts, self._begins):
            first, last = max(place, done), min(place + stop - start, planned)
            if first < last:
                in_full = full_steps * per_step  # rows of the lane that full steps take
                yield Segment(
                    lane=lane,
                    place=first,
                    row_group=row_group,
                    start=start + first - place,
                    stop=start + last - place,
                    first_step=first // per_step if first < in_full else full_steps,
                    last_step=(last - 1) // per_step if last <= in_full else full_steps,
                )
            place += stop - start

    @cached_property
    def _line(self) -> _Line:
        """The pieces of row groups that are left, end to end."""
        rows = np.asarray(self.row_group_rows, dtype=np.int64)
        count = len(rows)
        order = self._random(_ORDER_OF_ROW_GROUPS).permutation(count) if self.shuffle else np.arange(count)
        order = order[rows[order] > 0]
        line: _Line = (order, np.zeros(len(order), dtype=np.int64), rows[order])
        for leg in self.legs:
            line = _left_by(leg, line)
        return line

    @cached_property
    def _order_in_slabs(self) -> NDArray[np.int32]:
        return self._random(_ORDER_IN_SLABS).permutation(SLAB_ROWS).astype(np.int32)

    @cached_property
    def _begins(self) -> Ints:
        return _begins(self._line)

    @cached_property
    def _rows_per_step(self) -> Ints:
        return _shared_out(self.global_batch_size, self.num_lanes)

    @cached_property
    def _lane_lengths(self) -> Ints:
        return _lane_lengths(self.num_rows, self.num_lanes, self.global_batch_size)

    @cached_property
    def _lane_starts(self) -> Ints:
        return np.concatenate(([0], np.cumsum(self._lane_lengths)))

    def _random(self, *stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64([self.seed, self.epoch, *stream]))


_Line = tuple[Ints, Ints, Ints]  # of each piece: row group, start, stop; shapes (P,)


def _power_of_two(number: int) -> int:
    """The largest that is not above it; 1 for 0."""
    return 1 << (max(1, number).bit_length() - 1)


def _shared_out(rows: int, num_lanes: int) -> Ints:
    """Rows shared out evenly over the lanes, and over any run of lanes that is a rank's; shape (V,)."""
    return np.diff(np.arange(num_lanes + 1) * rows // num_lanes)


def _lane_lengths(num_rows: int, num_lanes: int, global_batch_size: int) -> Ints:
    full_steps, short = divmod(num_rows, global_batch_size)
    return _shared_out(global_batch_size, num_lanes) * full_steps + _shared_out(short, num_lanes)


def _begins(line: _Line) -> Ints:
    """Where each piece begins in the line, and where the last one ends; shape (P + 1,)."""
    return np.concatenate(([0], np.cumsum(line[2] - line[1])))


def _lane(lane: int, line: _Line, lane_starts: Ints, begins: Ints) -> list[tuple[int, int, int]]:
    """The lane's pieces in its order: row group, start, stop; odd lanes go from the last piece to the first."""
    first, last = int(lane_starts[lane]), int(lane_starts[lane + 1])
    if first == last:
        return []
    pieces = slice(int(np.searchsorted(begins, first, side="right")) - 1, int(np.searchsorted(begins, last)))
    starts = line[1][pieces] + np.maximum(first - begins[pieces], 0)
    stops = line[2][pieces] - np.maximum(begins[pieces.start + 1 : pieces.stop + 1] - last, 0)
    cut = list(zip(line[0][pieces].tolist(), starts.tolist(), stops.tolist(), strict=True))
    return cut[::-1] if lane % 2 else cut


def _left_by(leg: Leg, line: _Line) -> _Line:
    """The line that a leg leaves: the rests of its lanes, end to end."""
    begins = _begins(line)
    lengths = _lane_lengths(int(begins[-1]), leg.num_lanes, leg.global_batch_size)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    full_steps = int(begins[-1]) // leg.global_batch_size
    done = _shared_out(leg.global_batch_size, leg.num_lanes) * leg.steps if leg.steps <= full_steps else lengths
    left: list[tuple[int, int, int]] = []
    for lane in range(leg.num_lanes):
        to_skip = int(done[lane])
        for row_group, start, stop in _lane(lane, line, starts, begins):
            skipped = min(to_skip, stop - start)
            to_skip -= skipped
            if start + skipped < stop:
                left.append((row_group, start + skipped, stop))
    pieces = np.asarray(left, dtype=np.int64).reshape(-1, 3)
    return pieces[:, 0], pieces[:, 1], pieces[:, 2]
