"""What drift and skew found, as data: the pages and the gate read it."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

from schemas.settings import Strict

DRIFT, DRIFT_PAGE = "drift.json", "drift.html"
SKEW, SKEW_PAGE = "skew.json", "skew.html"

Verdict = Literal["ok", "drifted", "not_enough_rows"]


class Measure(Strict):
    """One measure of how two distributions differ."""

    name: str
    """psi, jensen_shannon, kolmogorov_smirnov, wasserstein, unseen_share, null_share, mean; those of a list's length
    begin with `length_`."""
    value: float
    threshold: float | None = None
    """What value the verdict asks for at these numbers of rows: chance alone stays below it, and so does what is too
    small to matter. None where the measure is told and decides nothing."""
    p_value: float | None = None

    @property
    def exceeds(self) -> bool:
        return self.threshold is not None and self.value > self.threshold


class Bin(Strict):
    """A value or an interval, and the share of the rows in it before and now."""

    name: str
    reference: float
    current: float


class ColumnDrift(Strict):
    column: str
    of: Literal["feature", "label", "prediction"]
    kind: Literal["categorical", "numeric", "list"]
    verdict: Verdict
    measures: tuple[Measure, ...] = ()
    bins: tuple[Bin, ...] = ()
    """The largest, for a picture."""
    new_values: tuple[str, ...] = ()
    vanished_values: tuple[str, ...] = ()
    """The most frequent of them, at most a few."""
    num_new: int = 0
    num_vanished: int = 0
    figures: dict[str, tuple[float, float]] = {}
    """Before and now: rows (elements of lists), null_share; of numbers mean and std."""
    design_effect: float = 1.0
    """Rows of independent draws that one row is worth, inverted: 3 where rows of a user are so alike that three of them
    say as much as one of a stranger."""

    @property
    def effect(self) -> float:
        """The largest of what is measured against what is asked for; above 1 the column drifted."""
        asked = [measure for measure in self.measures if measure.threshold is not None]
        return max((m.value / m.threshold for m in asked if m.threshold), default=0.0)


class DriftReport(Strict):
    """`drift.json`."""

    created_at: str
    reference: str
    current: str
    reference_rows: int
    current_rows: int
    false_alarms: float
    """Share of reports on unshifted windows that may name any column (family-wise)."""
    min_effect: float = 0.1
    """Population stability index below which a difference is too small to matter."""
    columns: tuple[ColumnDrift, ...]
    """The worst first."""
    left_out: dict[str, str] = {}
    """Columns that cannot be compared, and why."""

    @property
    def drifted(self) -> tuple[str, ...]:
        return tuple(column.column for column in self.columns if column.verdict == "drifted")


class Difference(Strict):
    """A feature of one logged request that the batch features give another value."""

    request_id: str
    user_id: str
    time_ms: int
    served: str
    batch: str


class FeatureSkew(Strict):
    feature: str
    compared: int
    different: int
    largest: float | None = None
    """Of the absolute differences of a number; None where values are lists of unequal lengths only."""
    examples: tuple[Difference, ...] = ()

    @property
    def share(self) -> float:
        return self.different / self.compared if self.compared else 0.0

    @property
    def least_share(self) -> float:
        """What the share is at least, at 95 %: Wilson's lower bound with its correction for whole numbers (Newcombe
        1998), for few values say little of all."""
        rows, share, z = self.compared, self.share, NormalDist().inv_cdf(0.95)
        if not self.different:
            return 0.0
        root = math.sqrt(z**2 - 2 - 1 / rows + 4 * share * (rows * (1 - share) + 1))
        return max(0.0, (2 * rows * share + z**2 - 1 - z * root) / (2 * (rows + z**2)))


class SkewReport(Strict):
    """`skew.json`: replayed requests feature by feature, and the distributions of both sides."""

    created_at: str
    generation: str
    requests: int
    """Replayed."""
    tolerance: float
    max_share: float
    features: tuple[FeatureSkew, ...]
    """The worst first."""
    distributions: tuple[ColumnDrift, ...] = ()
    """Of features that differ anywhere; the batch is the reference."""
    left_out: dict[str, str] = {}
    """Features that cannot be compared, and why."""

    @property
    def skewed(self) -> tuple[str, ...]:
        """Features more of whose values differ than may, and not by the chance of the sample."""
        return tuple(feature.feature for feature in self.features if feature.least_share > self.max_share)
