"""What the feedback job goes on from, and what time alone changes."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.contract import Contract, read_contract
from schemas.errors import UserError
from schemas.event_store import DayRows, SourceFile, StoreState, TableState
from schemas.feedback import FeedbackRules
from schemas.feedback_state import FeedbackState, ServedDay
from schemas.ledger import ActionLedger, Ledger, ShownLedger
from schemas.manifest import Manifest
from spark_jobs.feedback.standing import due, settings_of, standing_state
from spark_jobs.hadoop_files import FileStatus

VIDEOS = read_contract("kuairand")
STOOD = FeedbackState(
    as_of_ms=0, impressions=(), actions=(SourceFile(url="a", bytes=1, modified_ms=1, days={}),), days={}, rest={}
)
THERE: Any = ([], [FileStatus("a", 1, 1)])
GONE: Any = ([], [])


def published(**more: Any) -> Manifest:
    return Manifest.model_validate(
        {"id": "x", "created_at": "", "code_version": "", "config_digest": "", "ledger": Ledger(tables={})}
        | {"kind": "events", "contract": VIDEOS, "config": {}, "parts": {}}
        | more
    )


def settings(contract: Contract = VIDEOS, *, items: int = 7, **changes: Any) -> dict[str, str | None]:
    """Of rules that copy from items whose rows have this checksum."""
    given = {"event": "impression", "labels": {"is_click": {"action": "click"}}, "from_item": {"duration_ms": "x"}}
    table = TableState(sources=(), days={"none": DayRows(accepted=3, checksum=items)})
    seed = published(store=StoreState(version=1, tables={"items": table}))
    return settings_of(contract, FeedbackRules.model_validate(given | changes), seed)


def goes_on(found: Any, **changes: Any) -> bool:
    standing = published(kind="served", config=settings(), feedback=STOOD)
    return standing_state(standing, settings(**changes), found, rebuild=False) is not None


def test_other_rules_another_contract_and_other_items_that_events_copy_from_build_everything_again():
    assert goes_on(THERE)
    assert not goes_on(THERE, window_hours=2)
    assert not goes_on(THERE, contract=read_contract("ml-100k"))
    assert not goes_on(THERE, items=8)
    assert settings(from_item={}, items=7) == settings(from_item={}, items=8)


def test_where_landed_files_are_gone_other_rules_are_refused_and_other_items_leave_what_stands(
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(UserError, match=r"must be built again \(the rules changed\), and a is gone"):
        goes_on(GONE, window_hours=2)
    assert goes_on(GONE, items=8)
    assert "seed's items changed; a is gone, so days that stand keep what they copied" in capsys.readouterr().out


def test_weights_change_with_what_lands_and_windows_close_by_the_clock():
    of_none = ServedDay(shown=ShownLedger(items=0), actions=ActionLedger(actions=0))
    days = {
        "young": of_none.model_copy(update={"young": 1}),
        "waits": of_none.model_copy(update={"first_waiting_ms": 0}),
    }
    before = STOOD.model_copy(update={"as_of_ms": 1_000, "landed_until_ms": 500, "days": days})
    hour = 3_600_000

    def due_at(as_of_ms: int, young: str, *, came: bool = False, landed_until_ms: int = 500) -> list[str]:
        rules = FeedbackRules.model_validate(
            {"event": "impression", "labels": {"c": {"action": "c"}}, "window_hours": 1, "young": young}
        )
        known = before.model_copy(update={"landed_until_ms": landed_until_ms})
        return due(known, rules, as_of_ms, came=came)

    assert due_at(hour, "weight", came=True) == ["young", "waits"]
    assert due_at(hour, "weight") == ["waits"]
    assert due_at(2_000, "weight", landed_until_ms=3_000) == ["young", "waits"]  # as of more than the last run saw
    assert due_at(hour - 1, "wait", came=True) == []
    assert due_at(hour, "wait") == ["waits"]
