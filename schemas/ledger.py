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
    past: int = 0
    """Of train's time, and no rows of it: they are in histories, vocabularies and counts alone."""
    train: int
    valid: int
    test: int

    def parts(self) -> dict[str, int]:
        """All that events can have come to, by its name."""
        rows = {"train": self.train, "valid": self.valid, "test": self.test}
        return {"past": self.past, **rows} if self.past else rows

    def check(self) -> None:
        """Raise LedgerError unless accepted = past + train + valid + test."""
        if self.accepted != sum(self.parts().values()):
            parts = " + ".join(f"{name} {count:,}" for name, count in self.parts().items())
            raise LedgerError(
                f"the ledger does not add up: {self.accepted:,} events accepted, but {parts} = "
                f"{sum(self.parts().values()):,}."
            )


class ShownLedger(Strict):
    """Where the items of all responses went."""

    items: int
    """In the responses as they were landed."""
    events: int = 0
    waiting: int = 0
    """Their window is open: they become events later."""
    not_acted_on: int = 0
    """Where only an action makes an event."""
    duplicates: int = 0
    """The same response landed again, or the same item twice in one."""
    bots_by_rule: dict[str, int] = {}
    """Each item under the first rule that its user broke."""

    @property
    def bots(self) -> int:
        return sum(self.bots_by_rule.values())

    def check(self) -> None:
        """Raise LedgerError unless items = events + waiting + not acted on + duplicates + bots."""
        gone = self.events + self.waiting + self.not_acted_on + self.duplicates + self.bots
        if self.items != gone:
            raise LedgerError(
                f"the ledger does not add up: {self.items:,} items shown, but {self.events:,} events + "
                f"{self.waiting:,} waiting + {self.not_acted_on:,} not acted on + {self.duplicates:,} duplicates + "
                f"{self.bots:,} of bots = {gone:,}."
            )


class ActionLedger(Strict):
    """Where the actions went."""

    actions: int
    """As they were landed."""
    joined: int = 0
    """The first of their kind on an item that was shown."""
    repeated: int = 0
    """Those after it, which are taken together with it."""
    waiting: int = 0
    """On items that are no events yet."""
    late: int = 0
    """After the window."""
    orphan: int = 0
    """Of a response that nobody logged."""
    not_shown: int = 0
    """On an item that the response did not show, or by somebody it was not for."""
    duplicates: int = 0
    """The same action landed again."""
    without_rule: int = 0
    """Of a kind that no label asks for."""
    without_value: int = 0
    """Of a kind whose value is asked for, and it had none."""
    bots_by_rule: dict[str, int] = {}

    @property
    def bots(self) -> int:
        return sum(self.bots_by_rule.values())

    def parts(self) -> dict[str, int]:
        """All that actions can have come to, by its name."""
        named = self.model_dump(exclude={"actions", "bots_by_rule"})
        return {name.replace("_", " "): count for name, count in named.items()} | {"of bots": self.bots}

    def check(self) -> None:
        """Raise LedgerError unless the parts make up all actions."""
        if self.actions != sum(self.parts().values()):
            parts = " + ".join(f"{count:,} {name}" for name, count in self.parts().items() if count)
            raise LedgerError(
                f"the ledger does not add up: {self.actions:,} actions, but {parts or 'nothing'} = "
                f"{sum(self.parts().values()):,}."
            )


class FeedbackLedger(Strict):
    """What became of all that was shown and done."""

    shown: ShownLedger
    actions: ActionLedger

    def check(self) -> None:
        self.shown.check()
        self.actions.check()


class Ledger(Strict):
    """The ledger of a published folder: the raw tables, and the splits once there are any; what was shown and done."""

    tables: dict[str, TableLedger]
    splits: SplitLedger | None = None
    feedback: FeedbackLedger | None = None

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
        if self.feedback is not None:
            self.feedback.check()


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
