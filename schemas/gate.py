"""The gate: what must hold before a candidate is promoted, and the verdict with its reasons."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.settings import Strict

Share = Annotated[float, Field(ge=0, le=1)]
Check = Literal["data_quality", "drift", "skew", "metrics", "slices", "calibration", "off_policy"]

REFUSED = 3
"""Exit code of `headrace gate`, and of a turn, whose candidate is not let in."""


class GateRules(Strict):
    """Limits; a report that is missing fails its check, unless the check is named in `waived`."""

    max_quarantined: Share = 0.1
    min_rows: Annotated[int, Field(ge=0)] = 100
    """Of the snapshot's held-out split that metrics are taken from; of a ranker's as many with each label known."""
    max_drifted: Share = 0.25
    """Share of columns that may have drifted since the champion's snapshot."""
    never_drift: tuple[str, ...] = ()
    max_skewed: Share = 0.0
    """Share of features that may be skewed."""
    metrics: dict[str, Annotated[float, Field(ge=0)]] = {}
    """By metric (`ndcg@10`, `auc`, `log_loss`), how much worse than the champion's it may be; where empty, the recipe's
    `chosen_by` with 0.01. Where intervals are known, a loss that chance could explain passes, unless the interval of
    the difference reaches more than 4 times this to either side: so little data excuses nothing."""
    slice_by: tuple[str, ...] = ()
    """Columns by which candidate and champion must have been evaluated (`headrace evaluate --slice`); where empty,
    whatever slices there are count; where there are none, the check fails."""
    max_slice_loss: float = 0.05
    """How much worse the first metric of any slice of at least `min_slice_rows` may be."""
    min_slice_rows: Annotated[int, Field(gt=0)] = 200
    max_calibration_error: Share = 0.05
    max_calibration_loss: Share = 0.01
    """How much above the champion's."""
    min_effective_rows: Annotated[float, Field(gt=0)] = 100.0
    """Of off-policy estimates; with fewer they say nothing, and the check fails."""
    min_users: Annotated[int, Field(gt=0)] = 30
    """Of the log that they are made from: of fewer their intervals are too narrow."""
    waived: tuple[Check, ...] = ()
    """Not asked for; the verdict says so."""


class CheckResult(Strict):
    check: Check
    verdict: Literal["passed", "failed", "waived"]
    reasons: tuple[str, ...]
    """What was found, with figures; of a failed check what to do, too."""
    evidence: tuple[str, ...] = ()
    """Files it was read from."""


class GateVerdict(Strict):
    """`verdict.json`."""

    created_at: str
    candidate: str
    """Release folder."""
    candidate_id: str
    candidate_digest: str | None = None
    """Of its release.json: a release that was made again under the same id is another one, and has no verdict."""
    champion_id: str | None
    """None for the first generation, which has nothing to hold against: checks against a champion are passed then."""
    checks: tuple[CheckResult, ...]
    rules: GateRules

    @property
    def passed(self) -> bool:
        return all(check.verdict != "failed" for check in self.checks)
