"""What has been landed: each sealed segment of a log once, with where its records went."""

from __future__ import annotations

from schemas.errors import LedgerError
from schemas.served import Kind
from schemas.settings import Strict

LEDGER = "ledger"
"""Folder beside the days: ledger/KIND/SEGMENT.json, written when the segment's rows are all there."""


class Landed(Strict):
    """One segment: records in = rows by day + records that were there already."""

    kind: Kind
    segment: str
    records: int
    xxh3_128: str
    """Of the segment's bytes before its last line."""
    rows: dict[str, int]
    """By UTC day of time_ms."""
    known: int = 0
    """Records whose id another segment had brought; where ids are keys (PostgreSQL)."""
    landed_at: str

    def check(self) -> None:
        """Raise LedgerError unless each record is accounted for."""
        rows = sum(self.rows.values())
        if self.records != rows + self.known:
            raise LedgerError(
                f"{self.kind} {self.segment}: the ledger does not add up: {self.records:,} records in the segment, but "
                f"{rows:,} rows landed + {self.known:,} there already = {rows + self.known:,}."
            )

    def __str__(self) -> str:
        days = [f"{day}: {rows:,}" for day, rows in self.rows.items()]
        known = [f"there already: {self.known:,}"] if self.known else []
        return f"{self.kind} {self.segment}: {self.records:,} records ({', '.join(days + known)})"
