"""The state of a versioned folder of events: which files it was made of, and what each day of it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from schemas.evolution import Change
from schemas.ledger import TableLedger
from schemas.settings import Strict

NO_DAY = "none"
"""Where rows without a sound event time go, and all rows of a table without event times."""

CHECKSUM_MODULUS = 2**61 - 1
"""Row hashes are summed modulo this prime: whatever their order, the same rows give the same number."""


class SourceFile(Strict):
    """A raw file that was read, as it was then; a file with another size or time of change is another file."""

    url: str
    bytes: int
    modified_ms: int
    headers: int = 0
    blanks: int = 0
    days: dict[str, int]
    """Rows by the day of their event time, bad rows and repetitions too."""

    @property
    def lines(self) -> int:
        return self.headers + self.blanks + sum(self.days.values())


class DayRows(Strict):
    """Where the rows of one day went."""

    accepted: int = 0
    duplicates: int = 0
    quarantined_by_rule: dict[str, int] = {}
    """Each quarantined row once, under the first rule that it broke."""
    broken_by_rule: dict[str, int] = {}
    """Each row under every rule that it broke; repetitions of a key under duplicate_key."""
    checksum: int = 0
    """Sum of the accepted rows' hashes modulo CHECKSUM_MODULUS."""
    last_event_time_ms: int | None = None

    @property
    def quarantined(self) -> int:
        return sum(self.quarantined_by_rule.values())

    @property
    def rows(self) -> int:
        return self.accepted + self.duplicates + self.quarantined

    def plus(self, other: DayRows) -> DayRows:
        """The two together, for rows that were added to a day."""
        times = [time for time in (self.last_event_time_ms, other.last_event_time_ms) if time is not None]
        return DayRows(
            accepted=self.accepted + other.accepted,
            duplicates=self.duplicates + other.duplicates,
            quarantined_by_rule=dict(Counter(self.quarantined_by_rule) + Counter(other.quarantined_by_rule)),
            broken_by_rule=dict(Counter(self.broken_by_rule) + Counter(other.broken_by_rule)),
            checksum=(self.checksum + other.checksum) % CHECKSUM_MODULUS,
            last_event_time_ms=max(times, default=None),
        )


class TableState(Strict):
    """One table of the store."""

    sources: tuple[SourceFile, ...]
    days: dict[str, DayRows]

    def total(self) -> DayRows:
        return total(self.days.values())

    def ledger(self) -> TableLedger:
        """The lines of all files against the rows of all days: two counts that never met before."""
        rows = self.total()
        return TableLedger(
            lines=sum(file.lines for file in self.sources),
            headers=sum(file.headers for file in self.sources),
            blanks=sum(file.blanks for file in self.sources),
            accepted=rows.accepted,
            duplicates=rows.duplicates,
            quarantined=rows.quarantined,
            quarantined_by_rule=rows.quarantined_by_rule,
        )


class CheckResult(Strict):
    """One rule, the rows that broke it in this run, and whether that may be."""

    table: str
    rule: str
    broken: int
    of: int
    threshold: float | None = None
    verdict: Literal["ok", "quarantined", "failed"]
    detail: str = ""

    @property
    def share(self) -> float:
        return self.broken / self.of if self.of else 0.0


class StoreState(Strict):
    """What the next run must know of this one."""

    version: int
    tables: dict[str, TableState]
    checks: tuple[CheckResult, ...] = ()
    evolution: tuple[Change, ...] = ()


def total(days: Iterable[DayRows]) -> DayRows:
    rows = DayRows()
    for day in days:
        rows = rows.plus(day)
    return rows
