"""The feed: a part of a snapshot as torch batches, each row exactly once an epoch, whatever the number of ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from schemas.errors import LedgerError, SnapshotDamaged
from schemas.features import HistoryFeature, IndicesFeature
from schemas.manifest import DataFile
from schemas.snapshot import Snapshot
from training.batch import Batch, Column, joined, num_rows, sliced, to_columns
from training.plan import EpochPlan
from training.reader import read_row_groups


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Batches of one part for one rank.

    `columns` names what is read; `list_lengths` the list columns that become matrices. `workers` threads read ahead.
    """

    name: str
    urls: Sequence[str]
    files: Sequence[DataFile]
    columns: Sequence[str]
    rank: int
    world_size: int
    batch_size_per_rank: int
    list_lengths: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    shuffle: bool = True
    workers: int = 1

    @cached_property
    def row_group_rows(self) -> tuple[int, ...]:
        return tuple(rows for file in self.files for rows in file.row_groups)

    def plan(self, epoch: int) -> EpochPlan:
        return EpochPlan(
            row_group_rows=self.row_group_rows,
            world_size=self.world_size,
            batch_size_per_rank=self.batch_size_per_rank,
            epoch=epoch,
            seed=self.seed,
            shuffle=self.shuffle,
        )

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The rank's batches of an epoch, as many as every other rank's; the last ones may be short or empty.

        Raises LedgerError if the rows that came are not the rows of the plan.
        """
        plan = self.plan(epoch)
        lanes = _Lanes(plan, self.rank, self._arriving(plan))
        rows_given = 0
        for step in range(plan.num_steps):
            columns = lanes.take(plan.lane_rows(step))
            rows_given += num_rows(columns)  # of the tables that came, not of the plan
            yield Batch(
                columns=columns,
                positions=torch.from_numpy(plan.positions(self.rank, step)),
                global_rows=plan.global_rows(step),
                step=step,
            )
        if rows_given != plan.rank_rows(self.rank):
            raise LedgerError(
                f"{self.name}: rank {self.rank} got {rows_given:,} rows, the plan says {plan.rank_rows(self.rank):,}."
            )

    def _arriving(self, plan: EpochPlan) -> Iterator[tuple[int, dict[str, Column]]]:
        """The rank's segments as they are needed, each with its lane, its rows in the epoch's order."""
        segments = plan.segments(self.rank)
        reads = [segment.row_group for segment in segments]
        tables = read_row_groups(self.urls, self.files, self.columns, reads, workers=self.workers)
        for segment, table in zip(segments, tables, strict=True):
            if table.num_rows != plan.row_group_rows[segment.row_group]:
                raise SnapshotDamaged(
                    f"{self.name}: row group {segment.row_group} holds {table.num_rows:,} rows, the manifest says "
                    f"{plan.row_group_rows[segment.row_group]:,}."
                )
            rows = plan.rows_in_order(segment.row_group)[segment.start : segment.stop]
            yield segment.lane, to_columns(table.take(pa.array(rows)), self.list_lengths)


class _Lanes:
    """The rows that have arrived for each lane and are not yet taken: about one row group a lane."""

    def __init__(self, plan: EpochPlan, rank: int, arriving: Iterator[tuple[int, dict[str, Column]]]) -> None:
        self._arriving = arriving
        self._waiting: dict[int, deque[dict[str, Column]]] = {lane: deque() for lane in plan.lanes_of(rank)}
        self._no_rows: dict[str, Column] = {}

    def take(self, rows_per_lane: NDArray[np.int64]) -> dict[str, Column]:
        """The next rows of every lane, lane after lane."""
        pieces = [piece for lane in self._waiting for piece in self._take(lane, int(rows_per_lane[lane]))]
        if not pieces:  # the last step of a rank whose lanes are through; the first step is never empty
            return self._no_rows
        self._no_rows = sliced(pieces[0], 0, 0)
        return joined(pieces)

    def _take(self, lane: int, need: int) -> Iterator[dict[str, Column]]:
        waiting = self._waiting[lane]
        while need:
            while not waiting:
                arrived_for, columns = next(self._arriving)
                self._waiting[arrived_for].append(columns)
            head = waiting.popleft()
            have = num_rows(head)
            if have > need:
                waiting.appendleft(sliced(head, need, have))
                head, have = sliced(head, 0, need), need
            need -= have
            yield head


def part_feed(
    snapshot: Snapshot, part: str, *, columns: Sequence[str], rank: int, world_size: int, batch_size_per_rank: int,
    seed: int = 0, shuffle: bool = True, workers: int = 1,
) -> Feed:  # fmt: skip
    """The feed of a snapshot's part, its fixed-length lists known from the features."""
    features = snapshot.transform.features
    lists = {f.name: f.length for f in features if isinstance(f, HistoryFeature | IndicesFeature)}
    return Feed(
        name=f"{snapshot.url}/{part}",
        urls=[snapshot.file_url(file) for file in snapshot.files(part)],
        files=snapshot.files(part),
        columns=columns,
        list_lengths=lists,
        rank=rank,
        world_size=world_size,
        batch_size_per_rank=batch_size_per_rank,
        seed=seed,
        shuffle=shuffle,
        workers=workers,
    )
