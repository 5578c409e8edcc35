"""The feed: Parquet rows as torch batches, each row exactly once an epoch, on any number of ranks, from any step on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from schemas.errors import LedgerError, UserError
from training.batch import Batch, num_rows
from training.blocks import Block, Blocks
from training.plan import EpochPlan, Leg, default_lanes
from training.read_ahead import in_background, read_ahead
from training.row_groups import ParquetRows
from training.to_device import allocator, moved

MEMORY_BYTES = 1 << 30
_BLOCK_ROWS = 1 << 17
_BLOCKS_AT_ONCE = 3  # one is used up, one waits, one is being gathered
_STATE_VERSION = 1


class Feed:
    """The batches of one rank, epoch after epoch: `for batch in feed` gives what is left of the current epoch.

    `state_dict()` says in a few numbers where the feed is: after the last batch that was taken. A feed that loads it
    goes on with the next batch, on the same number of ranks with the very batches that would have come; on another
    number, or with batches of another size, with each row that is left exactly once.

    `workers` threads read and decode ahead of one more that gathers batches; 0 does all of it in the caller's thread.
    `memory_bytes` bounds what the rank holds of decoded rows, and with it how many places of the data set are mixed:
    `num_lanes`, over all ranks (plan.default_lanes). Rows stand in a batch lane by lane, so a batch is mixed as a
    whole: do not take its halves for batches. With a `device` that is a GPU, batches arrive there by asynchronous
    copies from page-locked memory.
    """

    def __init__(
        self,
        rows: ParquetRows,
        *,
        batch_size_per_rank: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        workers: int = 1,
        memory_bytes: int = MEMORY_BYTES,
        num_lanes: int | None = None,
        device: torch.device | str = "cpu",
    ):
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} of {world_size} ranks: ranks count from 0 to world_size - 1.")
        self.rows, self.rank, self.world_size = rows, rank, world_size
        self.batch_size_per_rank, self.drop_last = batch_size_per_rank, drop_last
        self.seed, self.shuffle = seed, shuffle
        self.workers, self.memory_bytes, self.device = workers, memory_bytes, torch.device(device)
        self._wanted_lanes = num_lanes
        self._epoch, self._step = 0, 0
        self._legs: tuple[Leg, ...] = ()
        self._num_lanes = self._default_lanes()
        self._plan = self.plan()

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to, or that the last one ended."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        self._epoch, self._step, self._legs, self._num_lanes = epoch, 0, (), self._default_lanes()
        self._plan = self.plan()

    def plan(self) -> EpochPlan:
        """The plan of the current epoch, or of what other ranks left of it."""
        return EpochPlan(
            row_group_rows=tuple(row_group.num_rows for row_group in self.rows.row_groups),
            world_size=self.world_size,
            batch_size_per_rank=self.batch_size_per_rank,
            num_lanes=self._num_lanes,
            epoch=self._epoch,
            seed=self.seed,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            legs=self._legs,
        )

    def __len__(self) -> int:
        """Batches left in the current epoch, the same number on every rank."""
        return self._plan.num_steps - self._step

    def __iter__(self) -> Iterator[Batch]:
        """The rank's batches to the end of the epoch, as many as every other rank's; the last may be short or empty.

        Raises SnapshotDamaged naming file, row group and column for what cannot be read, and LedgerError if the rows
        that came are not the rows of the plan. Another iterator over the same feed ends this one's claim to its state.
        """
        plan, from_step, rows_given = self._plan, self._step, 0
        for block in self._blocks(plan, from_step):
            for step, columns in enumerate(block.batches(), start=block.first_step):
                positions = plan.positions(self.rank, step)
                rows_given += num_rows(columns)  # of the tensors that came, not of the plan
                self._step = step + 1
                yield Batch(
                    columns=columns,
                    positions=torch.arange(positions.start, positions.stop, device=self.device),
                    global_rows=plan.global_rows(step),
                    step=step,
                )
        planned = plan.rank_rows(self.rank, from_step=from_step)
        if rows_given != planned:
            raise LedgerError(f"{self.rows.name}: rank {self.rank} got {rows_given:,} rows, the plan says {planned:,}.")
        self.set_epoch(self._epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Where the feed is, as numbers that JSON can hold; the same on every rank."""
        return {
            "version": _STATE_VERSION,
            "rows": self._layout(),
            "seed": self.seed,
            "shuffle": self.shuffle,
            "epoch": self._epoch,
            "step": self._step,
            "num_lanes": self._num_lanes,
            "global_batch_size": self._plan.global_batch_size,
            "legs": [[leg.num_lanes, leg.global_batch_size, leg.steps] for leg in self._legs],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where another feed of the same rows was, which may have had other ranks and batches.

        Raises UserError if its rows, seed or shuffle were others.
        """
        ours = {"version": _STATE_VERSION, "rows": self._layout(), "seed": self.seed, "shuffle": self.shuffle}
        for name, value in ours.items():
            if state.get(name) != value:
                raise UserError(
                    f"{self.rows.name}: this state cannot be resumed here: its {name} is {state.get(name)!r}, "
                    f"the feed's is {value!r}."
                )
        step, lanes, global_rows = int(state["step"]), int(state["num_lanes"]), int(state["global_batch_size"])
        self._epoch = int(state["epoch"])
        self._legs = tuple(Leg(num_lanes=v, global_batch_size=rows, steps=steps) for v, rows, steps in state["legs"])
        goes_on = lanes % self.world_size == 0 and global_rows == self.world_size * self.batch_size_per_rank
        if goes_on and self._fits_memory(lanes):
            self._step, self._num_lanes = step, lanes
            self._plan = self.plan()
            return
        of_state = replace(self._plan, world_size=1, batch_size_per_rank=global_rows, num_lanes=lanes)
        self._legs = replace(of_state, epoch=self._epoch, legs=self._legs).after(step)
        self._step, self._num_lanes = 0, self._default_lanes()
        self._plan = self.plan()

    def memory_estimate(self) -> int:
        """About how many bytes of decoded rows this rank holds at most."""
        return self._memory(self._num_lanes)

    def _blocks(self, plan: EpochPlan, from_step: int) -> Iterator[Block]:
        reads = plan.reads(self.rank, from_step=from_step)
        arriving = read_ahead(
            self.rows.read,
            [read.row_group for read in reads],
            [self.rows.row_groups[read.row_group].decoded_bytes for read in reads],
            threads=self.workers,
            max_bytes=self._lanes_bytes(plan.num_lanes),
        )
        blocks = Blocks(
            plan, self.rank, reads, arriving, self.rows.empty(),
            block_rows=self._block_rows(), allocate=allocator(self.device),
        ).from_step(from_step)  # fmt: skip
        blocks = moved(blocks, self.device)
        return iter(in_background(blocks, depth=1)) if self.workers else blocks

    def _default_lanes(self) -> int:
        row_group = self._row_group_bytes()
        if not self._fits_memory(1):
            raise UserError(
                f"{self.rows.name}: its largest row group takes {row_group / 1e6:,.0f} MB; reading one while another "
                f"is used takes {self._memory(1) / 1e6:,.0f} MB, and the feed may have "
                f"{self.memory_bytes / 1e6:,.0f} MB: raise memory_bytes, read fewer columns, or write smaller groups."
            )
        if self._wanted_lanes is not None:
            if not self._fits_memory(self._wanted_lanes):
                raise UserError(
                    f"{self.rows.name}: {self._wanted_lanes} lanes of row groups of {row_group / 1e6:,.0f} MB do not "
                    f"fit the feed's {self.memory_bytes / 1e6:,.0f} MB: raise memory_bytes or use fewer lanes."
                )
            return self._wanted_lanes
        in_memory = (self.memory_bytes - _BLOCKS_AT_ONCE * self._block_bytes()) // (2 * row_group)
        return default_lanes(
            self.world_size,
            row_group_bytes=row_group,
            # Where memory holds all row groups twice, there may be more lanes than row groups.
            lanes_in_memory=in_memory if in_memory < len(self.rows.row_groups) else 1 << 30,
            batch_size_per_rank=self.batch_size_per_rank,
            shuffle=self.shuffle,
        )

    def _fits_memory(self, num_lanes: int) -> bool:
        return self._memory(num_lanes) <= self.memory_bytes

    def _memory(self, num_lanes: int) -> int:
        """The lanes' row groups, as many that are read ahead, and the blocks."""
        return 2 * self._lanes_bytes(num_lanes) + _BLOCKS_AT_ONCE * self._block_bytes()

    def _lanes_bytes(self, num_lanes: int) -> int:
        lanes = min(-(-num_lanes // self.world_size), max(1, len(self.rows.row_groups)))
        return lanes * self._row_group_bytes()

    def _row_group_bytes(self) -> int:
        """Of the largest row group, decoded."""
        return max((row_group.decoded_bytes for row_group in self.rows.row_groups), default=1) or 1

    def _bytes_per_row(self) -> float:
        return sum(row_group.decoded_bytes for row_group in self.rows.row_groups) / max(1, self.rows.num_rows)

    def _block_rows(self) -> int:
        """At most a sixteenth of the memory and the rows that there are, at least a batch."""
        in_memory = int(self.memory_bytes / 16 / max(1.0, self._bytes_per_row()))
        return max(self.batch_size_per_rank, min(_BLOCK_ROWS, in_memory, self.rows.num_rows // self.world_size))

    def _block_bytes(self) -> int:
        return int(self._block_rows() * self._bytes_per_row())

    def _layout(self) -> str:
        """A digest of the row groups' rows: a plan means the same rows only for the same layout."""
        rows = ",".join(str(row_group.num_rows) for row_group in self.rows.row_groups)
        return hashlib.sha256(rows.encode()).hexdigest()[:16]


class FeedDataset(IterableDataset):
    """A feed as PyTorch's IterableDataset, for Lightning and `DataLoader(FeedDataset(feed), batch_size=None)`.

    The feed has threads of its own, so `num_workers=0` is the fast choice. With worker processes (say how many here
    too) each is a rank of its own: what is left of the feed's epoch comes, each row once, in batches of the same size.
    The feed in this process does not move on by what its workers did: call `set_epoch` before each epoch.
    """

    def __init__(self, feed: Feed, *, num_workers: int = 0):
        self.feed, self.num_workers = feed, num_workers

    def set_epoch(self, epoch: int) -> None:
        self.feed.set_epoch(epoch)

    def __len__(self) -> int:
        if not self.num_workers:
            return len(self.feed)
        return self.num_workers * len(self._share(0, self.num_workers))

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        if worker is None:
            yield from self.feed
            return
        if worker.num_workers != self.num_workers:
            raise UserError(
                f"the DataLoader has {worker.num_workers} workers and the FeedDataset was made for {self.num_workers}: "
                f"FeedDataset(feed, num_workers={worker.num_workers}), or num_workers=0 in both, which is faster."
            )
        yield from self._share(worker.id, worker.num_workers)

    def _share(self, worker: int, num_workers: int) -> Feed:
        feed = self.feed
        share = Feed(
            feed.rows,
            batch_size_per_rank=feed.batch_size_per_rank,
            rank=feed.rank * num_workers + worker,
            world_size=feed.world_size * num_workers,
            seed=feed.seed,
            shuffle=feed.shuffle,
            drop_last=feed.drop_last,
            workers=feed.workers,
            memory_bytes=feed.memory_bytes // num_workers,
        )
        share.load_state_dict(feed.state_dict())
        return share
