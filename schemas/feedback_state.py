"""What the feedback job must know of its last run: the files it read, and what each day came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from schemas.event_store import CHECKSUM_MODULUS, SourceFile
from schemas.ledger import ActionLedger, FeedbackLedger, ShownLedger
from schemas.settings import Strict


class ShownFile(SourceFile):
    """A file of impressions; `days` counts responses by the day of their time."""

    items: dict[str, int]
    """Items shown, by day."""


class Delays(Strict):
    """What is known of how long actions take, from items whose window has closed."""

    shown: int = 0
    acted_on: int = 0
    """By an action that makes the first label."""
    delay_sum_ms: int = 0

    def plus(self, other: Delays) -> Delays:
        return Delays(
            shown=self.shown + other.shown,
            acted_on=self.acted_on + other.acted_on,
            delay_sum_ms=self.delay_sum_ms + other.delay_sum_ms,
        )


class ServedDay(Strict):
    """Responses of one UTC day, with the actions on them, whichever day those were of."""

    shown: ShownLedger
    actions: ActionLedger
    checksum: int = 0
    """Sum of the events' hashes modulo CHECKSUM_MODULUS: equal for equal events."""
    first_waiting_ms: int | None = None
    """When the oldest response was answered that waits for its window to close."""
    young: int = 0
    """Weighted events whose window has not landed to its end: their weight changes with what lands."""
    fallback: int = 0
    """Events of responses that the models did not answer."""
    misfits: dict[str, int] = {}
    """By column, values of events that are none of the contract's type; they are null."""
    delays: Delays = Delays()

    @property
    def holds_any(self) -> bool:
        """Whether there is anything to account for: responses of no items may have had actions sent on them."""
        return bool(self.shown.items or self.actions.actions)


class RestOfDay(Strict):
    """Actions of one UTC day that belong to no response of the days that they can be in the window of."""

    late: int = 0
    orphan: int = 0


class FeedbackState(Strict):
    """What the next run must know of this one."""

    as_of_ms: int
    landed_until_ms: int = 0
    """Time of the latest response or action that has landed."""
    impressions: tuple[ShownFile, ...]
    actions: tuple[SourceFile, ...]
    days: dict[str, ServedDay]
    rest: dict[str, RestOfDay]
    delays: Delays = Delays()
    """Of all days."""
    mean_delay_ms: float | None = None
    """Mean of the exponential that was fitted to them; None where too few were known."""

    def seen_until_ms(self, as_of_ms: int) -> int:
        """Up to when it is known by a moment what was done: what has not landed was not seen."""
        return min(as_of_ms, self.landed_until_ms)

    def ledger(self) -> FeedbackLedger:
        """Items and actions of all files, against what the days came to: counts that never met before."""
        shown = _sum(day.shown.model_dump() for day in self.days.values())
        actions = _sum(day.actions.model_dump() for day in self.days.values())
        for rest in self.rest.values():
            actions = _sum([actions, rest.model_dump()])
        shown["items"] = sum(sum(file.items.values()) for file in self.impressions)
        actions["actions"] = sum(sum(file.days.values()) for file in self.actions)
        return FeedbackLedger(shown=ShownLedger(**shown), actions=ActionLedger(**actions))

    @property
    def checksum(self) -> int:
        return sum(day.checksum for day in self.days.values()) % CHECKSUM_MODULUS


def _sum(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts under the same names added up, those by rule too."""
    total: dict[str, Any] = {}
    for one in counts:
        for name, value in one.items():
            by_rule = isinstance(value, dict)
            before = total.get(name, {} if by_rule else 0)
            total[name] = dict(Counter(before) + Counter(value)) if by_rule else before + value
    return total
