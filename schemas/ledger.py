"""The row ledger: every row of a log is accounted for, from the raw line to the split it is trained on."""

from __future__ import annotations

from schemas.errors import LedgerError
from schemas.settings import Strict


class TableLedger(Strict):
    """Where the lines of one raw table went."""

    lines: int
    headers: int
    blanks: int
    accepted: int
    duplicates: int
    quarantined: int
    quarantined_by_rule: dict[str, int] = {}
    """Each quarantined row counts once, under the first rule that it broke."""

    @property
    def rows(self) -> int:
        return self.lines - self.headers - self.blanks

    def check(self, table: str) -> None:
        """Raise LedgerError unless lines - headers - blanks = accepted + duplicates + quarantined."""
        if self.rows != self.accepted + self.duplicates + self.quarantined:
            raise LedgerError(
                f"{table}: the ledger does not add up: {self.rows:,} rows read, but {self.accepted:,} accepted + "
                f"{self.duplicates:,} duplicates + {self.quarantined:,} quarantined = "
                f"{self.accepted + self.duplicates + self.quarantined:,}."
            )
        by_rule = sum(self.quarantined_by_rule.values())
        if by_rule != self.quarantined:
            raise LedgerError(
                f"{table}: the ledger does not add up: {self.quarantined:,} rows quarantined, "
                f"but {by_rule:,} when counted by rule."
            )


class SplitLedger(Strict):
    """Where the accepted events went."""

    accepted: int
    train: int
    valid: int
    test: int

    def check(self) -> None:
        """Raise LedgerError unless accepted = train + valid + test."""
        if self.accepted != self.train + self.valid + self.test:
            raise LedgerError(
                f"the ledger does not add up: {self.accepted:,} events accepted, but train {self.train:,} + "
                f"valid {self.valid:,} + test {self.test:,} = {self.train + self.valid + self.test:,}."
            )


class Ledger(Strict):
    """The ledger of a published folder: the raw tables, and the splits once there are any."""

    tables: dict[str, TableLedger]
    splits: SplitLedger | None = None

    def check(self) -> None:
        """Raise LedgerError at the first sum that does not add up."""
        for name, table in self.tables.items():
            table.check(name)
        if self.splits is not None:
            events = self.tables["events"].accepted
            if events != self.splits.accepted:
                raise LedgerError(
                    f"the ledger does not add up: ingest accepted {events:,} events, "
                    f"prepare was given {self.splits.accepted:,}."
                )
            self.splits.check()


def check_rows_seen(split: str, *, expected_rows: int, rows: int, expected_id_sum: int, id_sum: int) -> None:
    """Raise LedgerError unless an epoch, summed over the ranks, saw each row of the split exactly once.

    The sum of row ids (see `ROW_ID_MODULUS`) tells a lost row made up for by a repeated one from a true epoch.
    """
    if rows != expected_rows:
        raise LedgerError(f"{split}: {rows:,} rows came through the feed, the snapshot holds {expected_rows:,}.")
    if id_sum != expected_id_sum:
        raise LedgerError(
            f"{split}: {rows:,} rows came through the feed as expected, but not each of them once "
            f"(sum of row ids {id_sum}, expected {expected_id_sum})."
        )


ROW_ID_MODULUS = 2**31 - 1
"""Row ids are summed modulo this prime, so that a sum over four billion rows fits into 64 bits."""
