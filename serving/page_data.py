"""What the pages show, as models, so that the API's description says what comes back."""

from __future__ import annotations

from pydantic import BaseModel

from schemas.gate import GateVerdict
from schemas.generations import DriftSummary, MetricChange, Outcome, Popularity, ServedSummary, SkewSummary


class ActionKind(BaseModel):
    action: str
    needs_value: bool


class PageSettings(BaseModel):
    """What the page needs to know once."""

    wheel: str | None
    generation: str
    num_users: int
    num_items: int
    actions: list[ActionKind]
    """That feedback rules make labels of; a click where there are no rules."""
    policy: str


class FoundUsers(BaseModel):
    generation: str
    users: list[str]


class Title(BaseModel):
    item_id: str
    title: str


class Titles(BaseModel):
    generation: str
    items: list[Title]


class WatchedTitle(Title):
    action: str | None = None
    """None of what the snapshot knows already."""
    time_ms: int | None = None


class Watched(BaseModel):
    generation: str
    known: bool
    """Whether the release's snapshot has the user."""
    items: list[WatchedTitle]
    """The latest first."""


class LoggedItem(BaseModel):
    item_id: str
    title: str
    position: int
    score: float
    propensity: float
    explored: bool
    actions: list[str]


class LoggedImpression(BaseModel):
    request_id: str
    time_ms: int
    generation: str
    policy: str
    fallback: str | None
    num_candidates: int
    items: list[LoggedItem]


class LoggedImpressions(BaseModel):
    """The user's latest, as they stand in the log."""

    user_id: str
    impressions: list[LoggedImpression]


class GenerationView(BaseModel):
    """What the dashboard draws of `schemas.generations.Generation`."""

    id: str
    started_at: str
    outcome: Outcome
    in_service: bool
    events: int | None
    new_events: int | None
    served_events: int | None
    metrics: list[MetricChange]
    drift: DriftSummary | None
    skew: SkewSummary | None
    verdict: GateVerdict | None
    served: ServedSummary | None
    popularity: Popularity | None
    explored_share: float | None
    amplification: float | None


class GenerationsView(BaseModel):
    wheel: str | None
    champion: str | None
    missing: str | None
    """Why there is nothing to show."""
    generations: list[GenerationView]
    """The oldest first; the last fifty."""
