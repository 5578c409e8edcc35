"""Feedback rules: how what was shown and done becomes events of the contract."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.settings import Strict, parse_model, read_yaml

Hours = Annotated[float, Field(gt=0)]


class LabelRule(Strict):
    """A label, from the actions of one kind on the item."""

    action: str
    take: Literal["happened", "value", "sum"] = "happened"
    """1 where there was one, else 0; the last one's value; or the sum of values (seconds watched)."""
    at_least: float | None = None
    """The label is 1 where what was taken reaches it, else 0."""


class BotRules(Strict):
    """Whose impressions and actions are left out, as a day's counts show them; each rule names itself in the ledger."""

    max_requests_per_day: Annotated[int, Field(gt=0)] = 10_000
    max_actions_per_minute: Annotated[int, Field(gt=0)] = 2_000
    """Of different kinds or on different items. Their time is the server's, and an app that was offline sends up to
    1,000 actions at once."""
    min_requests_for_click_rate: Annotated[int, Field(gt=0)] = 100
    max_click_rate: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Items clicked (the first label says what a click is) per item shown, of users with so many requests."""
    users: tuple[str, ...] = ()
    """Known ones: monitors, load tests."""


class FeedbackRules(Strict):
    """What makes an event, and what its labels are."""

    event: Literal["impression", "action"]
    """Each item shown is an event; or only those that an action of a label's kind was taken on."""
    labels: Annotated[dict[str, LabelRule], Field(min_length=1)]
    """By the contract's column."""
    window_hours: Hours = 24.0
    """After an impression, in which actions count; those that come later are counted as late and change nothing."""
    young: Literal["wait", "weight"] = "wait"
    """Of impressions whose window is open: no events yet; or events weighted by how likely a click would have been
    seen by now (Chapelle 2014: delays are exponential, their mean fitted on closed windows)."""
    bots: BotRules = BotRules()
    from_item: dict[str, str] = {}
    """Columns of events that are copied from the item's row, by the items' column: `duration_ms: video_duration`."""

    @model_validator(mode="after")
    def _weights_need_what_was_not_acted_on(self) -> Self:
        if self.event == "action" and self.young == "weight":
            raise ValueError(
                "young: weight scales items without a click, and event: action makes no events of those: give "
                "`event: impression` or `young: wait`"
            )
        return self


def read_rules(path: str) -> FeedbackRules:
    """The rules in a file of their own, or under `feedback:` in a wheel.yaml. UserError naming the first fault."""
    file = Path(path) if path.endswith((".yaml", ".yml")) else Path(f"{path}.yaml")
    raw, where = read_yaml(str(file), catalogue=file.parent, what="feedback rules")
    if isinstance(raw, dict) and "feedback" in raw:
        raw, where = raw["feedback"], f"{where}: feedback"
    return parse_model(FeedbackRules, raw, where=where)
