"""Feedback rules that cannot be kept are refused before anything is read."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.contract import Contract, read_contract
from schemas.errors import UserError
from schemas.feedback import BotRules, FeedbackRules
from serving.requests import MAX_ACTIONS
from spark_jobs.feedback.labels import check_rules

RATED = {"rating": {"action": "rate", "take": "value"}}


def films() -> Contract:
    """MovieLens, with ratings that may be unknown."""
    raw = read_contract("ml-100k").model_dump(mode="json")
    for column in raw["events"]["columns"]:
        column["nullable"] = column["nullable"] or column["role"] == "label"
    return Contract.model_validate(raw)


def rules(**given: Any) -> FeedbackRules:
    return FeedbackRules.model_validate({"event": "impression", "labels": RATED} | given)


def test_weights_are_refused_where_only_actions_make_events_for_nothing_is_left_to_weigh():
    with pytest.raises(ValidationError, match="young: weight scales items without a click, and event: action makes no"):
        rules(event="action", young="weight")
    assert rules(event="action").young == "wait"


@pytest.mark.parametrize("take", ["sum", "value"])
def test_weights_are_refused_where_no_single_action_makes_the_first_label_one(take: str):
    watched = {"rating": {"action": "watch", "take": take, "at_least": 30}}
    with pytest.raises(UserError, match="rating, the first label, is 1 by what several 'watch' come to"):
        check_rules(rules(labels=watched, young="weight"), films())
    check_rules(rules(labels=watched), films())
    check_rules(rules(young="weight"), films())


def test_one_upload_of_actions_makes_nobody_a_bot():
    assert BotRules().max_actions_per_minute > MAX_ACTIONS
