"""The planner: which embedding tables every rank holds whole, and which are shared out by rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Policy = Literal["auto", "replicated", "sharded"]
_NUMBER_BYTES = 4
_ID_BYTES = 8
# What a replicated row costs beside its trip: its gradient is cleared, written, and read by the optimizer with the
# row and its accumulator, whether a batch touched it or not.
_PASSES_PER_ROW = 4
# What an id of a batch costs a sharded table: it is sorted to find the different ones, then looked up and updated.
_PASSES_PER_ID = 6
# What three exchanges a step cost whatever they carry, as bytes moved in the same time. They serve all tables by rows
# together, so that one small table does not pay for them. Measured with gloo (docs/log.md); NCCL's are quicker, and so
# is its memory.
_EXCHANGES_BYTES = 16_000_000


@dataclass(frozen=True, kw_only=True)
class TablePlacement:
    """One table, and what a step with it moves on one rank, placed the one way and the other."""

    name: str
    rows: int
    bytes: int
    replicated_bytes: int
    """Moved a step and rank where every rank holds the table: its gradient, touched or not."""
    sharded_bytes: int
    """Moved a step and rank where rows are shared out: the batch's different rows and their gradients."""
    is_sharded: bool


@dataclass(frozen=True)
class Placement:
    """Where each table lies."""

    tables: tuple[TablePlacement, ...]
    world_size: int

    @property
    def replicated(self) -> dict[str, int]:
        """Rows by table."""
        return {table.name: table.rows for table in self.tables if not table.is_sharded}

    @property
    def sharded(self) -> dict[str, int]:
        return {table.name: table.rows for table in self.tables if table.is_sharded}

    @property
    def bytes_per_rank(self) -> int:
        """Weights and accumulators."""
        return sum(table.bytes // (self.world_size if table.is_sharded else 1) for table in self.tables)

    def lines(self) -> list[str]:
        """The plan as a person reads it, the largest tables first."""
        wide = max(len(table.name) for table in self.tables) if self.tables else 0
        shown = [f"{'table':<{wide}} {'rows':>13} {'MB':>9}  {'placed':<11} {'MB a step: whole':>16} {'by rows':>9}"]
        for table in sorted(self.tables, key=lambda table: -table.rows):
            placed = "by rows" if table.is_sharded else "whole"
            size, whole, by_rows = map(_mb, (table.bytes, table.replicated_bytes, table.sharded_bytes))
            shown.append(f"{table.name:<{wide}} {table.rows:>13,} {size:>9}  {placed:<11} {whole:>16} {by_rows:>9}")
        shown.append(f"{_mb(self.bytes_per_rank)} MB of tables on each of {self.world_size} rank(s)")
        return shown


def place_tables(
    rows: Mapping[str, int], *, width: int, ids_per_step: Mapping[str, int], world_size: int, policy: Policy = "auto"
) -> Placement:
    """Place each table where a step moves fewer bytes; `ids_per_step` are a rank's look-ups in each table.

    A replicated table pays for all of its rows in every step, a sharded one for the rows that the batch asks for, of
    which there are at most as many as look-ups; and the first sharded one brings the exchanges. A table's result is the
    same either way.
    """
    moved = {
        name: _moved_bytes(count, width, ids_per_step[name], world_size=world_size) for name, count in rows.items()
    }
    saved = {name: whole - by_rows for name, (whole, by_rows) in moved.items()}
    # One process exchanges nothing.
    exchanges = _EXCHANGES_BYTES if world_size > 1 else 0
    pays = sum(max(0, bytes_) for bytes_ in saved.values()) > exchanges
    tables = [
        TablePlacement(
            name=name,
            rows=count,
            bytes=count * (width * _NUMBER_BYTES + _NUMBER_BYTES),
            replicated_bytes=moved[name][0],
            sharded_bytes=moved[name][1],
            is_sharded=policy == "sharded" or (policy == "auto" and pays and saved[name] > 0),
        )
        for name, count in rows.items()
    ]
    return Placement(tuple(tables), world_size)


def _moved_bytes(rows: int, width: int, ids: int, *, world_size: int) -> tuple[int, int]:
    """What a step with a table moves on a rank: whole, and by rows."""
    away = (world_size - 1) / world_size  # the share of a table, or of a batch's rows, that other ranks hold
    row_bytes = width * _NUMBER_BYTES
    touched = min(rows, ids)
    whole = int(rows * row_bytes * (2 * away + _PASSES_PER_ROW))
    by_rows = int(touched * (_ID_BYTES + 2 * row_bytes) * away)
    by_rows += int(ids * _ID_BYTES * _PASSES_PER_ID + touched * row_bytes * _PASSES_PER_ROW)
    return whole, by_rows


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f}"
