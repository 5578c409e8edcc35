"""A wheel: one recommender that learns from what it serves, as one folder with one file of settings.

wheel.yaml          what this module describes; everything else is made by the commands
logs/               what servers append: impressions/ and actions/, segments
landed/             the same as Parquet by day
seed/               event store of the log that the wheel began with
served/             events made of impressions and actions, Parquet by day of the impression
contract.yaml       the contract of both together
events/             event store of both together
generations/0001/   snapshot/ retriever/ ranker/ drift/ skew/ off_policy.json release/ verdict.json turn.json
champion.json       the release in service
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.feedback import FeedbackRules
from schemas.gate import GateRules
from schemas.settings import Strict, parse_model, read_yaml

WHEEL, CHAMPION = "wheel.yaml", "champion.json"


class Exploration(Strict):
    """How chance takes part in what is shown, so that a log says something of what a model would not have shown."""

    kind: Literal["none", "epsilon_greedy", "plackett_luce"] = "epsilon_greedy"
    epsilon: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Epsilon-greedy: at each position, with this probability a candidate that is drawn evenly from those left."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Plackett-Luce: at each position a candidate in proportion to exp(score / temperature)."""
    pool: Annotated[int, Field(gt=0)] = 50
    """Best candidates that chance may choose among."""


class ServingSettings(Strict):
    """What a release answers with, beside its models."""

    candidates: Annotated[int, Field(gt=0)] = 200
    """Items that the retriever hands to the ranker."""
    exploration: Exploration = Exploration()
    exclude_seen: bool = True
    max_items: Annotated[int, Field(gt=0, le=1000)] = 100
    """Of one response."""
    timeout_ms: Annotated[int, Field(gt=0)] = 200
    """After which popular items are the answer."""
    queue: Annotated[int, Field(gt=0)] = 64
    """Requests that may wait; more are refused at once (503, with Retry-After)."""
    index: Literal["auto", "flat", "hnsw", "ivf"] = "auto"
    """Of the retriever's items: exact up to 50,000 of them where `auto`, then HNSW."""


class LearnerSettings(Strict):
    recipe: str
    set: tuple[str, ...] = ()
    """Overrides, KEY=VALUE, as `headrace train --set` takes them."""


class Trigger(Strict):
    """When `headrace watch` turns the wheel; the first that holds does."""

    every_hours: Annotated[float, Field(gt=0)] | None = 24.0
    new_events: Annotated[int, Field(gt=0)] | None = None
    drifted: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of columns."""


class Registry(Strict):
    """Where candidates and promoted releases become versions of a model."""

    track: str
    """MLflow's address, or `env`: MLFLOW_TRACKING_URI. Without a password: that belongs into the environment."""
    model: str
    """Name of the registered model."""


class WheelSettings(Strict):
    """`wheel.yaml`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    contract: str
    """Of the log it begins with: built-in name, or path."""
    raw: str
    """Folder of that log and of the tables of items and users."""
    feedback: FeedbackRules
    features: str | None = None
    """Feature set: built-in name, or path."""
    prepare: dict[str, str | int | float] = {}
    """Options of `headrace prepare` by their names: `split`, `history-length`, ..."""
    retriever: LearnerSettings = LearnerSettings(recipe="two_tower")
    ranker: LearnerSettings | None = None
    warm_start: bool = True
    train_days: Annotated[float, Field(gt=0)] | None = None
    """Where all models go on from the champion's weights, they learn from the events of the last so many days of train,
    and of all since the champion's; what is older is in histories, vocabularies and counts alone. For a split by time.
    None: from all events, each generation."""
    past_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Of the older events, which they go over again, another sample each generation."""
    serving: ServingSettings = ServingSettings()
    gate: GateRules = GateRules()
    trigger: Trigger = Trigger()
    registry: Registry | None = None
    ranks: Annotated[int, Field(gt=0)] = 1
    keep_generations: Annotated[int, Field(ge=2)] = 10
    """Folders of older ones that are not in service lose their snapshots and runs; verdicts and pages stay."""

    @model_validator(mode="after")
    def _days_are_the_turns_affair(self) -> WheelSettings:
        if own := {"train-days", "train-since", "past-share"} & {*self.prepare}:
            raise ValueError(f"prepare.{min(own)} would hold where models begin anew, too: set train_days instead")
        if self.train_days is not None and not str(self.prepare.get("split", "time:")).startswith("time:"):
            raise ValueError(f"train_days needs a split by time, and prepare.split is {self.prepare['split']}")
        return self


def read_wheel(folder: Path) -> WheelSettings:
    """UserError naming the place of the first fault."""
    raw, where = read_yaml(str(folder / WHEEL), catalogue=folder, what="wheel")
    return parse_model(WheelSettings, raw, where=where)
