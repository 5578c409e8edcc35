"""The feedback job, on responses and actions written by hand: events, labels, ledger, late clicks, bots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from schemas.contract import Contract
from schemas.errors import UserError
from schemas.feedback import FeedbackRules
from schemas.ledger import ActionLedger, ShownLedger
from schemas.manifest import Manifest
from spark_jobs.event_store import claim
from spark_jobs.feedback.bots import bots_of
from spark_jobs.feedback.standing import Files
from spark_jobs.jobs import feedback as job
from tests.spark.served import (
    DAY_MS,
    DAYS,
    HOUR_MS,
    MINUTE_MS,
    MONDAY,
    VIDEO_CONTRACT,
    VIDEO_RULES,
    did,
    events_in,
    land,
    run_feedback,
    shown,
)

pytestmark = pytest.mark.slow

ONE = MONDAY + HOUR_MS
AFTERNOON = MONDAY + 14 * HOUR_MS
TV = {"device": "tv", "tab": 3}


def _run(spark: SparkSession, videos: Path, folder: Path, as_of_ms: int = AFTERNOON, **more: object) -> Manifest:
    rules = VIDEO_RULES | {key: more.pop(key) for key in list(more) if key in ("young", "bots", "window_hours")}
    return run_feedback(
        spark, folder, videos / "seed", contract=videos / "contract.yaml", as_of_ms=as_of_ms, rules=rules, **more
    )


def test_shown_items_become_events_with_labels_of_their_actions_and_the_ledger_accounts_for_the_rest(
    spark: SparkSession, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    responses = [
        shown("r1", "u1", ONE, ["1", "2"], context=TV),
        shown("r2", "u2", AFTERNOON - 90 * MINUTE_MS, ["1"], context={"tab": "none"}, fallback="timeout"),
        shown("r3", "u1", AFTERNOON - 30 * MINUTE_MS, ["3"]),
        shown("r4", "robot", ONE, ["1", "3"]),
    ]
    land(tmp_path / "landed", "impressions", "a", responses)
    land(tmp_path / "landed", "impressions", "again", responses[:1])
    late = AFTERNOON - 90 * MINUTE_MS + 61 * MINUTE_MS
    actions = [
        did("1", "r1", "1", "u1", "click", ONE + 10 * MINUTE_MS),
        did("2", "r1", "1", "u1", "watch", ONE + 12 * MINUTE_MS, 30),
        did("3", "r1", "1", "u1", "watch", ONE + 13 * MINUTE_MS, 40.5),
        did("4", "r1", "1", "u1", "click", ONE + 20 * MINUTE_MS),
        did("4", "r1", "1", "u1", "click", ONE + 21 * MINUTE_MS),
        did("5", "r1", "2", "u1", "share", ONE + MINUTE_MS),
        did("6", "r1", "2", "u1", "watch", ONE + MINUTE_MS),
        did("7", "r1", "3", "u1", "click", ONE + MINUTE_MS),
        did("8", "r1", "2", "u2", "click", ONE + MINUTE_MS),
        did("9", "r2", "1", "u2", "click", late),
        did("10", "r3", "3", "u1", "click", AFTERNOON - 20 * MINUTE_MS),
        did("11", "r4", "1", "robot", "click", ONE + MINUTE_MS),
        did("12", "nobody", "1", "u1", "click", ONE),
    ]
    land(tmp_path / "landed", "actions", "a", actions)
    manifest = _run(spark, videos, tmp_path, bots={"users": ["robot"]})
    common = {"device": None, "tab": None}
    r1 = {"user": "u1", "at": ONE, "request_id": "r1", "device": "tv", "tab": 3}
    r2 = {"user": "u2", "at": AFTERNOON - 90 * MINUTE_MS, "request_id": "r2"}
    assert events_in(tmp_path) == [
        r1 | {"video": 1, "clicked": 1, "watched": 70.5, "length": 60, "propensity": 0.5, "position": 0},
        r1 | {"video": 2, "clicked": 0, "watched": 0.0, "length": 70, "propensity": 0.25, "position": 1},
        r2 | common | {"video": 1, "clicked": 0, "watched": 0.0, "length": 50, "propensity": 0.5, "position": 0},
    ]
    assert manifest.ledger.feedback is not None
    assert manifest.ledger.feedback.shown == ShownLedger(
        items=8, events=3, waiting=1, duplicates=2, bots_by_rule={"users": 2}
    )
    assert manifest.ledger.feedback.actions == ActionLedger(
        actions=13,
        joined=2,
        repeated=2,
        waiting=1,
        late=1,
        orphan=1,
        not_shown=2,
        duplicates=1,
        without_rule=1,
        without_value=1,
        bots_by_rule={"users": 1},
    )
    state = manifest.feedback
    assert state is not None
    assert (state.days[DAYS[0]].fallback, state.days[DAYS[0]].misfits) == (1, {"tab": 1})
    said = capsys.readouterr().out
    assert "shown: 8 items = 3 events + 1 waiting + 0 not acted on + 2 duplicates + 2 of bots" in said
    assert "13 actions = 2 joined + 2 repeated + 1 waiting + 1 late + 1 orphan + 2 not shown" in said


def test_a_click_of_a_later_run_corrects_its_day_and_no_other_and_a_run_without_news_changes_nothing(
    spark: SparkSession, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = MONDAY + 4 * DAY_MS
    midnight = MONDAY + DAY_MS
    land(tmp_path / "landed", "impressions", "a", [shown("r1", "u1", ONE, ["1"])])
    land(tmp_path / "landed", "impressions", "b", [shown("r2", "u1", midnight - MINUTE_MS, ["2"])])
    land(tmp_path / "landed", "impressions", "c", [shown("r3", "u1", midnight + 2 * DAY_MS, ["3"])])
    _run(spark, videos, tmp_path, end)
    assert [row["clicked"] for row in events_in(tmp_path)] == [0, 0, 0]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "served" / "events").rglob("*.parquet")}
    late = [
        did("1", "r2", "2", "u1", "click", midnight + MINUTE_MS),
        did("2", "r1", "1", "u1", "click", midnight + MINUTE_MS),
        did("3", "r0", "1", "u1", "click", midnight + MINUTE_MS),
    ]
    land(tmp_path / "landed", "actions", "late", late)
    manifest = _run(spark, videos, tmp_path, end)
    assert [row["clicked"] for row in events_in(tmp_path)] == [0, 1, 0]
    ledger = manifest.ledger.feedback
    assert ledger is not None
    assert (ledger.actions.joined, ledger.actions.late, ledger.actions.orphan) == (1, 1, 1)
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "served" / "events").rglob("*.parquet")}
    kept = {path.parent.name: path for path in now.keys() & files.keys()}
    assert kept.keys() == {f"day={DAYS[3]}"}
    assert len(now) == 2
    stray = tmp_path / "served" / "events" / f"day={DAYS[1]}" / "part-of-a-killed-job.zstd.parquet"
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"")
    capsys.readouterr()
    assert _run(spark, videos, tmp_path, end + DAY_MS) == manifest
    assert "stands already" in capsys.readouterr().out
    assert not stray.exists()


def test_days_wait_for_their_windows_and_become_events_when_time_has_passed(
    spark: SparkSession, videos: Path, tmp_path: Path
) -> None:
    land(tmp_path / "landed", "impressions", "a", [shown("r1", "u1", ONE, ["1"]), shown("r2", "u1", AFTERNOON, ["2"])])
    land(tmp_path / "landed", "actions", "a", [did("1", "r2", "2", "u1", "click", AFTERNOON + MINUTE_MS)])
    _run(spark, videos, tmp_path, AFTERNOON + HOUR_MS - 1)
    assert [row["request_id"] for row in events_in(tmp_path)] == ["r1"]
    manifest = _run(spark, videos, tmp_path, AFTERNOON + HOUR_MS)
    assert [(row["request_id"], row["clicked"]) for row in events_in(tmp_path)] == [("r1", 0), ("r2", 1)]
    assert manifest.ledger.feedback is not None
    assert manifest.ledger.feedback.shown == ShownLedger(items=2, events=2)
    with pytest.raises(UserError, match=r"was judged as of 2024-01-01T15:00:00\+00:00, and --as-of is before that"):
        _run(spark, videos, tmp_path, AFTERNOON)


def test_bots_are_left_out_by_the_rule_that_their_day_breaks(spark: SparkSession, videos: Path, tmp_path: Path) -> None:
    responses = [shown(f"many{i}", "many", ONE + i, ["1"]) for i in range(4)]
    responses += [shown(f"all{i}", "all", ONE + i, ["1"]) for i in range(2)]
    responses += [shown(f"fan{i}", "fan", ONE + i, ["1", "2"]) for i in range(2)]
    responses += [shown("fast", "fast", ONE, ["1", "2", "3"]), shown("one", "one", ONE, ["1"])]
    actions = [did(f"f{i}", "fast", f"{i}", "fast", "click", ONE + i) for i in (1, 2, 3)]
    actions += [did(f"a{i}", f"all{i}", "1", "all", "click", ONE + i * MINUTE_MS) for i in range(2)]
    actions += [did(f"n{i}", f"fan{i}", "1", "fan", "click", ONE + i * MINUTE_MS) for i in range(2)]
    actions += [did("o", "one", "1", "one", "click", ONE)]
    # On the next day the same user behaves.
    responses.append(shown("later", "many", ONE + DAY_MS, ["1"]))
    # A day on which nothing was shown, and something done.
    responses.append(shown("empty", "one", ONE + 2 * DAY_MS, []))
    actions.append(did("e", "empty", "1", "one", "click", ONE + 2 * DAY_MS))
    land(tmp_path / "landed", "impressions", "a", responses)
    land(tmp_path / "landed", "actions", "a", actions)
    bots = {
        "max_requests_per_day": 3,
        "max_actions_per_minute": 2,
        "min_requests_for_click_rate": 2,
        "max_click_rate": 0.9,
    }
    manifest = _run(spark, videos, tmp_path, MONDAY + 3 * DAY_MS, bots=bots)
    ledger = manifest.ledger.feedback
    assert ledger is not None
    by_rule = {"max_requests_per_day": 4, "max_click_rate": 2, "max_actions_per_minute": 3}
    assert ledger.shown == ShownLedger(items=15, events=6, bots_by_rule=by_rule)
    assert ledger.actions == ActionLedger(
        actions=9, joined=3, not_shown=1, bots_by_rule={"max_click_rate": 2, "max_actions_per_minute": 3}
    )
    assert {row["request_id"] for row in events_in(tmp_path)} == {"fan0", "fan1", "one", "later"}


def test_a_bots_actions_are_those_that_count_once_each_and_its_clicks_those_that_make_the_label_one(
    spark: SparkSession,
) -> None:
    raw = VIDEO_RULES | {
        "labels": {"clicked": {"action": "watch", "take": "sum", "at_least": 30}},
        "bots": {"max_actions_per_minute": 1, "min_requests_for_click_rate": 1, "max_click_rate": 0.5},
    }
    rules, base = FeedbackRules.model_validate(raw), Contract.model_validate(VIDEO_CONTRACT)
    shown_columns = "day int, user_id string, request_id string, is_repeated boolean, clicked_ms bigint, "
    items = [
        (0, "autoplay", "r1", False, 1, 5.0),
        (0, "fan", "r2", False, 1, 30.0),
        (0, "busy", "r3", False, None, None),
    ]
    acted_columns = "day int, shown_to string, request_id string, item_id string, action string, action_ms bigint, "
    done = [
        (0, "autoplay", "r1", "1", "watch", at, outcome) for at in (0, 1) for outcome in (None, "late", "not_shown")
    ]
    done += [(0, "busy", "r3", item, "watch", 0, "waiting") for item in ("1", "2")]
    bots = bots_of(
        spark.createDataFrame(items, shown_columns + "taken_clicked double"),
        spark.createDataFrame(done, acted_columns + "outcome string"),
        rules,
        base,
    )
    assert {(row["user_id"], row["rule"]) for row in bots.collect()} == {
        ("fan", "max_click_rate"),
        ("busy", "max_actions_per_minute"),
    }


def test_of_two_jobs_the_one_that_began_last_goes_on(
    spark: SparkSession, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(tmp_path / "landed", "impressions", "a", [shown("r1", "u1", ONE, ["1"])])
    count = job.count_files

    def beginning_another(*given: Any) -> Files:
        claim(spark, str(tmp_path / "served"))
        return count(*given)

    monkeypatch.setattr(job, "count_files", beginning_another)
    with pytest.raises(UserError, match="another job began to write here meanwhile; this one published nothing"):
        _run(spark, videos, tmp_path)
    assert not (tmp_path / "served" / "manifest.json").exists()


def test_rules_that_the_contract_cannot_follow_and_folders_of_others_are_refused_before_anything_is_written(
    spark: SparkSession, videos: Path, tmp_path: Path
) -> None:
    def run(**changes: object) -> None:
        rules = VIDEO_RULES | changes
        contract = videos / "contract.yaml"
        run_feedback(spark, tmp_path, videos / "seed", contract=contract, as_of_ms=AFTERNOON, rules=rules)

    with pytest.raises(UserError, match=r"no column events\.clickd; did you mean 'clicked'"):
        run(labels={"clickd": {"action": "click"}})
    with pytest.raises(UserError, match="nothing says what becomes label watched"):
        run(labels={"clicked": {"action": "click"}})
    value = {"action": "watch", "take": "value"}
    with pytest.raises(UserError, match="watched takes the value of 'watch', and events without one have none"):
        run(labels={"clicked": {"action": "click"}, "watched": value})
    with pytest.raises(UserError, match=r"no impressions at .*run `headrace land` first"):
        run()
    land(tmp_path / "landed", "impressions", "a", [shown("r1", "u1", ONE, ["1"])])
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "mine").write_text("")
    with pytest.raises(UserError, match="is a folder that Headrace did not write"):
        run()
    assert [path.name for path in (tmp_path / "served").iterdir()] == ["mine"]
