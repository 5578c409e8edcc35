"""What users did since the release: by the feedback rules, within bounds, once however often it is told."""

from __future__ import annotations

from pathlib import Path

from schemas.feedback import FeedbackRules, LabelRule
from schemas.served import Action, Impression, Shown
from serving.append_log import AppendLog
from serving.recent import Recent
from serving.ties import hash_of

SHOWN = FeedbackRules(event="impression", labels={"clicked": LabelRule(action="click")})
ACTED = FeedbackRules(event="action", labels={"rating": LabelRule(action="rate", take="value")})


def impression(user: str, time_ms: int, *items: str, request: str | None = None) -> Impression:
    shown = tuple(Shown(item_id=item, position=i, score=0.0, propensity=1.0) for i, item in enumerate(items))
    request_id = request or f"{user}-{time_ms}"
    return Impression(
        request_id=request_id, time_ms=time_ms, generation="1", user_id=user, policy="greedy", items=shown
    )


def action(user: str, time_ms: int, item: str, kind: str, request: str = "?", *, value: float | None = 4.0) -> Action:
    return Action(
        action_id=f"{user}{time_ms}", request_id=request, item_id=item, user_id=user, action=kind, time_ms=time_ms,
        value=value,
    )  # fmt: skip


def test_where_each_item_shown_is_an_event_actions_add_none():
    recent = Recent(SHOWN)
    recent.shown(impression("u", 20, "c"))
    recent.shown(impression("u", 10, "a", "b"))
    recent.acted(action("u", 21, "c", "click"))
    assert recent.since("u", 0) == [(10, "a"), (10, "b"), (20, "c")]
    assert recent.since("u", 10) == [(20, "c")]
    assert list(recent.since("v", 0)) == []


def test_where_actions_make_events_those_do_that_spark_counts_at_the_time_of_the_first():
    recent = Recent(ACTED)
    day_ms = 24 * 3_600_000
    recent.shown(impression("u", 10, "a", "b", "c", "d", "e", "f", request="r"))
    recent.acted(action("u", 19, "b", "rate", "r"))
    recent.acted(action("u", 15, "b", "rate", "r"))
    recent.acted(action("u", 16, "c", "view", "r"))  # no label asks for it
    recent.acted(action("u", 17, "d", "rate", "unknown"))
    recent.acted(action("v", 17, "d", "rate", "r"))  # it was not shown to v
    recent.acted(action("u", 18, "x", "rate", "r"))  # x was not shown
    recent.acted(action("u", 18, "e", "rate", "r", value=None))
    recent.acted(action("u", 10 + day_ms + 1, "f", "rate", "r"))  # after the window
    recent.acted(action("u", 10 + day_ms, "a", "rate", "r"))
    assert recent.since("u", 0) == [(15, "b"), (10 + day_ms, "a")]
    assert recent.num_events == 2
    assert list(recent.since("v", 0)) == []


def test_an_action_that_is_read_before_its_response_counts_when_that_comes():
    recent = Recent(ACTED)
    recent.acted(action("u", 15, "a", "rate", "r"))
    assert list(recent.since("u", 0)) == []
    recent.shown(impression("u", 10, "a", request="r"))
    assert recent.since("u", 0) == [(15, "a")]


def test_without_rules_nothing_is_an_event():
    recent = Recent(None)
    recent.shown(impression("u", 10, "a"))
    recent.acted(action("u", 15, "a", "click"))
    assert list(recent.since("u", 0)) == []


def test_what_is_told_twice_counts_once():
    recent = Recent(SHOWN)
    for _ in range(2):
        recent.shown(impression("u", 10, "a"))
    assert recent.since("u", 0) == [(10, "a")]


def test_the_users_who_were_here_last_are_kept_and_the_last_items_of_each():
    recent = Recent(SHOWN, max_users=2, max_items_per_user=3)
    recent.shown(impression("u", 1, "a"))
    recent.shown(impression("v", 2, "a"))
    assert recent.since("u", 0)  # asked for: v is now the one longest away
    recent.shown(impression("w", 3, "a"))
    assert (list(recent.since("v", 0)), len(recent.since("u", 0)), recent.num_users) == ([], 1, 2)
    for time_ms in (14, 10, 13, 11, 12):
        recent.shown(impression("u", time_ms, "a"))
    assert [time_ms for time_ms, _ in recent.since("u", 0)] == [12, 13, 14]


def test_events_are_bounded_in_all_by_forgetting_whole_users():
    recent = Recent(SHOWN, max_events=5)
    for time_ms, user in enumerate("uvw", 1):
        recent.shown(impression(user, time_ms, "a", "b"))
    assert [len(recent.since(user, 0)) for user in "uvw"] == [0, 2, 2]
    assert recent.num_events == 4


def test_a_record_that_cannot_be_taken_is_counted_and_the_others_are_read(tmp_path: Path, capsys):
    """As an id of 19 digits once was: the tie of an int64 has no room for it."""

    def tie(user_id: str, item_id: str, time_ms: int) -> int:
        return hash_of([(user_id, "int64")])

    told = [impression("1", 10, "a"), impression("9999999999999999999", 11, "a"), impression("2", 12, "a")]
    log = AppendLog(tmp_path / "impressions", writer="serve0")
    for one in told:
        log.append(one.model_dump_json().encode()).result()
    log.close()
    recent = Recent(SHOWN, tie)
    recent.refill(tmp_path, 0)
    assert [len(recent.since(user, 0)) for user in ("1", "2")] == [1, 1]
    recent.shown(told[1])  # the service's own way
    assert recent.num_unreadable == 2
    assert "a record of request 9999999999999999999-11 is passed over: error: " in capsys.readouterr().err


def test_it_is_read_again_from_the_logs_of_all_writers(tmp_path: Path):
    told, logs = Recent(ACTED), {}
    for writer in ("serve0", "serve1"):
        for kind in ("impressions", "actions"):
            logs[writer, kind] = AppendLog(tmp_path / kind, writer=writer)
    shown = [impression("u", 10, "a", request="r"), impression("u", 30, "b", request="s")]
    acted = [action("u", 22, "a", "rate", "r"), action("u", 33, "b", "rate", "s"), action("v", 34, "x", "rate")]
    for number, one in enumerate(shown):
        logs[f"serve{number}", "impressions"].append(one.model_dump_json().encode()).result()
        told.shown(one)
    for number, one in enumerate(acted):
        logs[f"serve{number % 2}", "actions"].append(one.model_dump_json().encode()).result()
        told.acted(one)
    logs["serve0", "actions"].close()  # sealed; the others are still open
    for after_ms in (0, 20):
        again = Recent(ACTED)
        again.refill(tmp_path, after_ms)
        for user in ("u", "v"):
            assert list(again.since(user, after_ms)) == list(told.since(user, after_ms))
    with next((tmp_path / "impressions").glob("serve1*")).open("ab") as torn:
        torn.write(b'0000 {"request_id": "torn')
    again = Recent(ACTED)
    again.refill(tmp_path, 0)
    assert list(again.since("u", 0)) == [(22, "a"), (33, "b")]
    for log in logs.values():
        log.close()
