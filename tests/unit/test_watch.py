"""When a watched wheel is turned, and how the watching ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.turning.arrivals import new_events, taken_in_at
from pipelines.turning.beginnings import begin_wheel
from pipelines.turning.drift_since import drifted_share
from pipelines.turning.engine import StepFailed
from pipelines.turning.files import write_model
from pipelines.turning.lock import turning
from pipelines.turning.wheel_folder import WheelFolder
from pipelines.watch import Seen, Stopped, Watch, reason_to_turn, wait_after, watch
from schemas.errors import UserError
from schemas.feedback import FeedbackRules
from schemas.generations import StepRecord, Turn
from schemas.release import Champion
from schemas.wheel import Trigger
from tests.turn_program import PROGRAM
from tests.unit.generations_on_disk import write_release
from tests.unit.test_generations import action, impression, land

HOUR = 3600.0
DAILY = Trigger(every_hours=24, new_events=1000, drifted=0.3)


def seen(**known: object) -> Seen:
    return Seen(**{"now_s": 100 * HOUR, "last_turn_s": 90 * HOUR, **known})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (seen(), None),
        (seen(last_turn_s=None), "it has never been turned"),
        (seen(under_way=True), "a turn is under way"),
        (seen(last_turn_s=76 * HOUR), "the last turn was 24.0 hours ago"),
        (seen(last_turn_s=76.1 * HOUR), None),
        (seen(new_events=999), None),
        (seen(new_events=1000), "1,000 events have come in"),
        (seen(drifted=0.29), None),
        (seen(drifted=0.3), "30% of the columns have drifted"),
    ],
)
def test_the_first_trigger_that_holds_is_the_reason(known, reason):
    assert reason_to_turn(DAILY, known) == reason


def test_a_trigger_that_is_not_set_is_no_reason():
    never = Trigger(every_hours=None)
    assert reason_to_turn(never, seen(last_turn_s=0.0, new_events=10**9, drifted=1.0)) is None


@given(failures=st.integers(1, 40), since=st.floats(0, 7200))
def test_after_failures_nothing_is_tried_before_its_time_which_doubles_up_to_an_hour(failures, since):
    known = seen(under_way=True, failures=failures, last_failure_s=100 * HOUR - since)
    assert (reason_to_turn(DAILY, known) is None) == (since < min(HOUR, 60 * 2 ** (failures - 1)))
    assert wait_after(failures) <= wait_after(failures + 1) <= HOUR


@pytest.fixture
def wheel(tmp_path: Path) -> WheelFolder:
    begin_wheel(tmp_path, "ml-100k")
    return WheelFolder(tmp_path)


def test_a_failing_turn_is_survived_and_tried_again_later_and_later(wheel):
    clock, codes, tries = [0.0], [5, 5, 0], []

    def turn() -> int:
        tries.append(clock[0])
        return codes.pop(0)

    watched = Watch(wheel, turn, clock=lambda: clock[0])
    for _ in range(40):
        watched.look()
        clock[0] += 10
        if not codes:
            break
    assert tries == [0, 60, 180]  # after 60 s, then after 120 s
    assert watched.failures == 0


def test_a_turn_that_found_nothing_new_is_not_begun_again_at_once(wheel):
    clock, tries = [0.0], []
    watched = Watch(wheel, lambda: tries.append(clock[0]) or 0, clock=lambda: clock[0])
    for _ in range(3):
        watched.look()
        clock[0] += 12 * HOUR
    assert tries == [0, 24 * HOUR]


def test_new_events_are_items_shown_or_actions_that_landed_since(wheel):
    land(wheel.landed, "impressions", "2024-03-01", [impression("r1", "1", "abc"), impression("r2", "1", "de")])
    land(wheel.landed, "actions", "2024-03-01", [action(1, "r1", "click")])
    land(wheel.landed, "impressions", "2024-03-02", [impression("r3", "1", "abcd")])
    old = wheel.landed / "impressions" / "day=2024-03-01" / "segment.parquet"
    os.utime(old, (1000, 1000))
    shown = FeedbackRules(event="impression", labels={"x": {"action": "click"}})
    done = FeedbackRules(event="action", labels={"x": {"action": "click"}})
    assert new_events(wheel, shown, 0.0)[0] == 9
    assert new_events(wheel, shown, 2000.0)[0] == 4
    assert new_events(wheel, done, 0.0)[0] == 1


def test_what_a_turn_has_taken_in_is_what_had_landed_by_the_end_of_its_step():
    land_step = StepRecord(name="land", started_at="1970-01-01T01:00:00+00:00", seconds=5.0, code=0)
    assert taken_in_at(Turn(number=1, started_at="1970-01-01T00:59:00+00:00", steps=(land_step,))) == HOUR + 5
    assert taken_in_at(None) == 0.0


def test_while_somebody_else_turns_the_wheel_it_is_left_alone(wheel):
    tries = []
    watched = Watch(wheel, lambda: tries.append(1) or 0, clock=lambda: 0.0)
    with turning(wheel.path):
        watched.look()
    assert (tries, watched.failures) == ([], 0)
    watched.look()
    assert tries == [1]


@pytest.mark.parametrize("error", [StepFailed("drift", 1), UserError("headrace land failed")])
def test_a_look_that_fails_is_survived_and_is_no_turn_that_failed(wheel, monkeypatch, capsys, error):
    failures = []

    def look(self: Watch) -> None:
        failures.append(self.failures)
        if len(failures) == 3:
            raise Stopped
        raise error

    monkeypatch.setattr(Watch, "look", look)
    with pytest.raises(Stopped):
        watch(wheel, every_s=0.001)
    assert failures == [0, 0, 0]
    assert capsys.readouterr().out.count(f"watch: {error}") == 2


def test_a_turn_whose_time_has_come_does_not_wait_for_what_cannot_be_landed(wheel, monkeypatch):
    def fails(wheel: WheelFolder) -> None:
        raise UserError("headrace land failed")

    monkeypatch.setattr("pipelines.watch.land", fails)
    assert wheel.settings().trigger.new_events is not None
    clock, tries = [0.0], []
    watched = Watch(wheel, lambda: tries.append(clock[0]) or 0, clock=lambda: clock[0])
    watched.look()
    clock[0] = 12 * HOUR
    with pytest.raises(UserError):
        watched.look()
    clock[0] = 24 * HOUR
    watched.look()
    assert tries == [0, 24 * HOUR]


def test_drift_is_measured_since_the_last_candidates_events_though_it_was_refused(wheel):
    settings = wheel.settings()
    assert drifted_share(wheel, settings, program=PROGRAM) is None  # never turned
    (wheel.path / "log.txt").write_text("events")
    outcomes = {1: ("promoted", 1000), 2: ("refused", 5000), 3: ("failed", 9000)}
    for number, (outcome, last_event) in outcomes.items():
        folder = wheel.generation(number)
        path = write_release(folder.release, folder.path.name) / "release.json"
        path.write_text(path.read_text().replace('"last_event_time_ms": 0', f'"last_event_time_ms": {last_event}'))
        write_model(folder.path / "turn.json", Turn(number=number, started_at="then", outcome=outcome))
    promoted = Champion(release="generations/0001/release", id="0001", promoted_at="then")
    write_model(wheel.champion, promoted)
    (wheel.path / "lack.drift").touch()  # too little has come in since
    assert drifted_share(wheel, settings, program=PROGRAM) is None
    asked = (wheel.path / "watch" / "log" / "drift.txt").read_text()
    assert "--reference-window ,1970-01-01T00:00:05.001+00:00" in asked
    assert "--current-window 1970-01-01T00:00:05.001+00:00," in asked


@pytest.mark.slow
def test_sigterm_ends_the_watching_and_its_turn(wheel):
    (wheel.path / "raw").mkdir()
    (wheel.path / "log.txt").write_text("events")
    (wheel.path / "sleep.ingest").touch()
    # The turn itself is real; its programs are small ones.
    code = "import sys; from pipelines import watch; from tests.turn_program import TURNING;"
    code += "watch.watch.__kwdefaults__['program'] = TURNING[:-1];"
    code += "sys.exit(watch.main(['--wheel', sys.argv[1], '--every', '1']))"
    command = [sys.executable, "-c", code, str(wheel.path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 30
    while not (wheel.path / "asleep").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    shown, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "it has never been turned" in shown
    assert "watch: stopped" in shown
    pid = int((wheel.path / "asleep").read_text())
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
