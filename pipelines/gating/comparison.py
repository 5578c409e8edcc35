"""One metric of a candidate against the champion's: which way is better, and whether chance could explain it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.bundle import LOWER_IS_BETTER, SplitMetrics

DEFAULT_TOLERANCE = 0.01
WIDEST = 4.0
"""Times the tolerance that the interval of a difference may reach to either side and still excuse a loss. On little
data chance could explain any loss, and any candidate would pass."""
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """`loss` is by how much the candidate is worse; below 0 it is better."""

    name: str
    candidate: float
    champion: float
    loss: float
    half_width: float | None
    """Of the interval of the difference; None where an interval is not known."""

    def by_chance(self, tolerance: float) -> bool:
        """Whether 0 lies within the interval of the difference, and the interval is narrow enough to say anything."""
        return self.half_width is not None and self.loss <= self.half_width <= WIDEST * tolerance

    def fails(self, tolerance: float) -> bool:
        """Worse by more than may be, and not by chance; a metric that is no number fails."""
        return math.isnan(self.loss) or (self.loss > tolerance and not self.by_chance(tolerance))

    def sentence(self, tolerance: float) -> str:
        values = f"{self.name}: {self.candidate:.4f} against the champion's {self.champion:.4f}"
        if math.isnan(self.loss):
            return f"{values}: one of them is undefined."
        if self.loss <= 0:
            return f"{values}."
        if self.loss <= tolerance:
            return f"{values}, worse by {self.loss:.4f} where {tolerance:g} may be."
        if self.by_chance(tolerance):
            return f"{values}, worse by {self.loss:.4f} where {tolerance:g} may be, but chance could explain it."
        if self.half_width is not None and self.loss <= self.half_width:
            return (
                f"{values}, worse by {self.loss:.4f} where only {tolerance:g} may be; chance could explain it, but at "
                f"+-{self.half_width:.4f} it could explain anything: evaluate on more rows."
            )
        return f"{values}, worse by {self.loss:.4f} where only {tolerance:g} may be."


def compared(
    name: str, metric: str, candidate: float, champion: float, intervals: tuple[Interval | None, Interval | None]
) -> Compared:
    """Hold a metric against the champion's.

    The interval of the difference is that of two independent samples: half widths add in squares. Both were judged on
    the same users, so the true one is narrower, and some candidates pass by chance that a paired test would refuse.
    """
    loss = _badness(metric, candidate) - _badness(metric, champion)
    mine, theirs = intervals
    half = None
    if mine is not None and theirs is not None:
        half = math.hypot((mine[1] - mine[0]) / 2, (theirs[1] - theirs[0]) / 2)
    return Compared(name=name, candidate=candidate, champion=champion, loss=loss, half_width=half)


def _badness(metric: str, value: float) -> float:
    if metric == "calibration":  # sum of probabilities / sum of labels: 1 is right
        return abs(value - 1)
    return value if metric in LOWER_IS_BETTER else -value


def values_of(found: SplitMetrics, metric: str) -> dict[str, float]:
    """The metric of a retriever (by ''), or of each label of a ranker that has it."""
    for listed in (found.full, found.sampled):
        if metric in listed:
            return {"": listed[metric]}
    return {head: values[metric] for head, values in found.heads.items() if metric in values}


def interval_of(intervals: Mapping[str, Interval], metric: str) -> Interval | None:
    found = intervals.get(metric)
    return None if found is None or any(map(math.isnan, found)) else found
