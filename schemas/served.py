"""What serving writes down: every response, and every action that somebody took on it.

A log line is one record as JSON. On the way to Spark the lines lie as Parquet by day, a row a record, in the columns
of `IMPRESSION_COLUMNS` and `ACTION_COLUMNS`; what differs from one release to the next (context, features) stays JSON.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field

from schemas.settings import Strict

Kind = Literal["impressions", "actions"]
KINDS: tuple[Kind, ...] = ("impressions", "actions")

Scalar = str | int | float | bool | None
Encoded = int | float | list[int] | list[float]
"""One feature of one row, as a model takes it."""


class Shown(Strict):
    """One item of a response."""

    item_id: str
    position: int
    """0 is the first."""
    score: float
    """What the items were ordered by: the ranker's probability of the first label, or the retriever's score."""
    propensity: Annotated[float, Field(gt=0, le=1)]
    """With which the policy puts this item here, given the user and the items before it."""
    explored: bool = False
    """Whether chance put it here in place of the best item left."""
    features: dict[str, Encoded] = {}
    """What the ranker saw of the item, beside the request's features."""


class Impression(Strict):
    """One response of `/recommend`."""

    request_id: str
    time_ms: int
    """When the server was asked, UTC epoch."""
    generation: str
    """Release that answered."""
    user_id: str
    policy: str
    """How items were drawn, in words that name its settings: `epsilon_greedy(0.1)`."""
    context: dict[str, Scalar] = {}
    """Columns of events that the caller knows beforehand, raw, by the contract's names."""
    features: dict[str, Encoded] = {}
    """What the models saw of user and request, encoded, by feature."""
    items: tuple[Shown, ...]
    num_candidates: int = 0
    """Items that the policy could have put first."""
    fallback: str | None = None
    """Why the models did not answer, where they did not: the items are popular ones then."""


class Action(Strict):
    """What somebody did with an item that was shown."""

    action_id: str
    """The caller's, or made by the server: the same one again is the same action."""
    request_id: str
    item_id: str
    user_id: str
    action: str
    """click, view, like, rating, ...: the feedback rules say what becomes of which."""
    value: float | None = None
    """Seconds watched, stars given."""
    time_ms: int
    """When the server was told, UTC epoch."""


SHOWN_COLUMNS = pa.struct(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("propensity", pa.float64(), nullable=False),
        pa.field("explored", pa.bool_(), nullable=False),
        pa.field("features", pa.string(), nullable=False),
    ]
)
IMPRESSION_COLUMNS = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("time_ms", pa.int64(), nullable=False),
        pa.field("generation", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("policy", pa.string(), nullable=False),
        pa.field("context", pa.string(), nullable=False),
        pa.field("features", pa.string(), nullable=False),
        pa.field("items", pa.list_(pa.field("element", SHOWN_COLUMNS, nullable=False)), nullable=False),
        pa.field("num_candidates", pa.int32(), nullable=False),
        pa.field("fallback", pa.string()),
    ]
)
ACTION_COLUMNS = pa.schema(
    [
        pa.field("action_id", pa.string(), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("time_ms", pa.int64(), nullable=False),
    ]
)
COLUMNS: dict[Kind, pa.Schema] = {"impressions": IMPRESSION_COLUMNS, "actions": ACTION_COLUMNS}
