"""How likely a click would have been seen by now, and what an item without one is worth until its window closes.

Chapelle 2014 (Modeling delayed feedback in display advertising, sections 3 and 4): an item is clicked at all with
probability p, and then after a delay that is exponential. Here a click counts within the window W only, so the
exponential is cut off there: of the clicks that will come, F(e) = (1 - exp(-e/m)) / (1 - exp(-W/m)) have come by age e.
p and m are fitted on items whose window has closed.

An item of age e is seen clicked with probability p F(e). One that is not yet clicked never will be with probability
(1 - p) / (1 - p F(e)): that is the importance weight which makes a true negative of it. Clicks count 1, and of those
that will come only F(e) are there; so negatives are scaled by F(e) too, and the weight of an unclicked item is
    w(e) = F(e) (1 - p) / (1 - p F(e)).
Among n items of age e the expected weight of clicks is n p F(e), and that of the others n (1 - p F(e)) w(e), which is
n F(e) (1 - p): the rate of clicks is p at every age, and an item counts by how much of its story is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F

from schemas.feedback_state import Delays

LEAST_CLICKS = 20
"""Fewer than these say nothing of delays: young items wait then."""
_FLAT = 1e-9
_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class DelayModel:
    """Clicks come with probability `rate`, after delays of density exp(-speed * t) on [0, window_ms]."""

    rate: float
    speed: float
    """1 / m, per millisecond; 0 or less where late clicks are no rarer than early ones."""
    window_ms: float

    @property
    def mean_ms(self) -> float | None:
        """m, the mean of the exponential before it is cut off; None where none fits."""
        return 1 / self.speed if self.speed * self.window_ms > _FLAT else None

    def seen_by(self, age_ms: Column) -> Column:
        """F: the share of clicks that have come by this age."""
        share = F.least(F.greatest(age_ms / F.lit(self.window_ms), F.lit(0.0)), F.lit(1.0))
        scaled = self.speed * self.window_ms
        if abs(scaled) <= _FLAT:
            return share
        return F.expm1(share * F.lit(-scaled)) / F.lit(math.expm1(-scaled))

    def weight_of_unclicked(self, age_ms: Column) -> Column:
        seen = self.seen_by(age_ms)
        return seen * F.lit(1 - self.rate) / (F.lit(1.0) - F.lit(self.rate) * seen)


def fit(delays: Delays, *, window_ms: float) -> DelayModel | None:
    """The model of greatest likelihood; None where too few clicks are known, or nothing but clicks."""
    if delays.acted_on < LEAST_CLICKS or delays.acted_on == delays.shown:
        return None
    mean = delays.delay_sum_ms / delays.acted_on / window_ms
    return DelayModel(rate=delays.acted_on / delays.shown, speed=speed_of(mean) / window_ms, window_ms=window_ms)


def speed_of(mean: float) -> float:
    """The speed s at which an exponential cut off at 1 has this mean: 1/s - 1/(exp(s) - 1) = mean, by bisection."""
    low, high = -700.0, 700.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_of(middle) > mean else (low, middle)
    return (low + high) / 2


def mean_of(speed: float) -> float:
    """Mean of an exponential of this speed cut off at 1; it falls from 1 to 0 as the speed rises."""
    if abs(speed) < 1e-4:
        return 0.5 - speed / 12
    return 1 / speed - 1 / math.expm1(speed)
