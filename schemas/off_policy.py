"""What a policy would have earned on another one's log."""

from __future__ import annotations

from typing import Literal

from schemas.settings import Strict


class Estimate(Strict):
    """Mean reward of an item shown."""

    estimator: str
    """ips, snips or dr."""
    value: float
    interval: tuple[float, float]
    """95 %, by a bootstrap over users."""
    normal_interval: tuple[float, float] | None = None
    """The same from the variance over users: far from the other one, neither is to be trusted."""


class PolicyEstimates(Strict):
    """One policy on a log; `reward` names the action or label."""

    policy: str
    reward: str
    rows: int
    """Items shown."""
    effective_rows: float
    """(sum of weights)^2 / sum of squared weights (Kong 1992): how many rows of its own log they are worth."""
    matched_share: float
    """Rows that the policy could have shown."""
    mean_weight: float | None = None
    """About 1 where the logging policy could have shown all that this one would; below 1 it could not, and ips is too
    low by what it never showed."""
    estimates: tuple[Estimate, ...]


class OffPolicyReport(Strict):
    """`off_policy.json`: candidate and champion on the same log."""

    created_at: str
    logged: Estimate
    """What the logging policy earned: a mean, no estimate."""
    candidate: PolicyEstimates
    champion: PolicyEstimates | None = None
    difference: tuple[Estimate, ...] = ()
    """Candidate minus champion, paired by row."""
    weights: Literal["item", "position"] = "position"
    """Whether a row is weighed by how likely the item is anywhere in the list, or at its position given those above."""
    requests: int = 0
    users: int = 0
    from_ms: int | None = None
    """Requests from this time on were taken."""
    notes: tuple[str, ...] = ()
    """What to bear in mind when reading the figures."""
