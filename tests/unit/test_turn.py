"""A turn's steps: each once, in order, on from where it was killed; what ends a turn, and what is kept of it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipelines.turn import turn
from pipelines.turning.beginnings import begin_wheel
from pipelines.turning.cleaning import clean
from pipelines.turning.engine import Engine
from pipelines.turning.lock import turning
from pipelines.turning.steps import STEPS, Site
from pipelines.turning.wheel_folder import WheelFolder
from pipelines.turning.work import Needless, Work
from schemas.errors import UserError
from schemas.generations import Generations, Turn
from schemas.release import Champion
from tests.snapshots import make_snapshot
from tests.turn_program import PROGRAM, TURNING
from tests.unit.test_generations import impression, land

ALL = ["ingest", "ingest", "prepare", "train", "evaluate", "release", "gate", "promote"]
"""Commands of a first turn without anything served, by this wheel's one learner."""


@pytest.fixture
def wheel(tmp_path: Path) -> WheelFolder:
    folder = tmp_path / "wheel"
    begin_wheel(folder, "ml-100k")
    text = (folder / "wheel.yaml").read_text()
    (folder / "wheel.yaml").write_text(text.replace(", off_policy]", "]"))
    (folder / "raw").mkdir()
    (folder / "log.txt").write_text("first events")
    make_snapshot(folder / "ready", [[40]])
    return WheelFolder(folder)


def run(wheel: WheelFolder, **options: object) -> int:
    return turn(wheel, program=PROGRAM, **options)  # type: ignore[arg-type]


def ran(wheel: WheelFolder) -> list[str]:
    """Commands since the last call."""
    path = wheel.path / "ran.txt"
    found = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def turn_of(wheel: WheelFolder, number: int) -> Turn:
    found = wheel.generation(number).turn()
    assert found is not None
    return found


def started(wheel: WheelFolder) -> subprocess.Popen[bytes]:
    """A turn in a process of its own, as far as its sleeping step."""
    process = subprocess.Popen([*TURNING, str(wheel.path)])
    until = time.monotonic() + 30
    while not (wheel.path / "asleep").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    return process


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_first_turn_runs_every_step_in_order_and_says_why_some_are_not_needed(wheel, capsys):
    assert run(wheel) == 0
    assert ran(wheel) == ALL
    found = turn_of(wheel, 1)
    assert [step.name for step in found.steps] == list(STEPS)
    assert (found.outcome, found.champion, found.events) == ("promoted", None, "first events")
    assert {step.name for step in found.steps if step.skipped} == {"land", "drift", "skew", "ranker", "estimate"}
    assert {step.code for step in found.steps} == {0}
    shown = capsys.readouterr().out
    assert "turn 1: [5/14] prepare ..." in shown
    assert "turn 1: [6/14] drift ... not needed: no release is in service yet" in shown
    assert "generation 0001 is in service" in shown


def test_without_new_events_there_is_no_generation_and_with_new_ones_there_is(wheel, capsys):
    run(wheel)
    ran(wheel)
    assert run(wheel) == 0
    assert ran(wheel) == []  # seed and events stand: their inputs are the same
    assert "nothing is new since turn 1" in capsys.readouterr().out
    assert [folder.number for folder in wheel.generations()] == [1]
    (wheel.path / "log.txt").write_text("more events")
    (wheel.path / "raw" / "more.inter").write_text("a line")
    assert run(wheel) == 0
    assert ran(wheel) == [*ALL[:3], "drift", "train", "evaluate", "evaluate", "release", "gate", "promote"]
    second = turn_of(wheel, 2)
    assert (second.outcome, second.champion, second.events) == ("promoted", "0001", "more events")
    trained = json.loads((wheel.generation(2).run("retriever") / "bundle" / "bundle.json").read_text())
    assert trained["--snapshot"] == str(wheel.generation(2).snapshot)


def test_another_recipe_is_something_new_and_another_trigger_is_not(wheel):
    run(wheel)
    text = wheel.wheel.read_text()
    wheel.wheel.write_text(text.replace("every_hours: 24", "every_hours: 1"))
    run(wheel)
    assert len(wheel.generations()) == 1
    wheel.wheel.write_text(text.replace("epochs=8", "epochs=3"))
    run(wheel)
    assert len(wheel.generations()) == 2


def test_an_edited_recipe_of_the_wheels_own_is_something_new(wheel):
    recipe = wheel.path / "mine.yaml"
    recipe.write_text("epochs: 3")
    wheel.wheel.write_text(wheel.wheel.read_text().replace("recipe: two_tower_new_users", "recipe: mine.yaml"))
    run(wheel)
    run(wheel)
    assert len(wheel.generations()) == 1
    recipe.write_text("epochs: 4")
    run(wheel)
    assert len(wheel.generations()) == 2


def test_a_turn_that_goes_on_with_more_events_says_that_it_took_those_in(wheel):
    (wheel.path / "fail.prepare").touch()
    run(wheel)
    (wheel.path / "fail.prepare").unlink()
    (wheel.path / "log.txt").write_text("more events")
    (wheel.path / "raw" / "more.inter").write_text("a line")
    assert run(wheel) == 0
    assert turn_of(wheel, 1).events == "more events"
    assert run(wheel) == 0
    assert len(wheel.generations()) == 1


def test_force_turns_though_nothing_is_new(wheel):
    run(wheel)
    assert run(wheel, force=True) == 0
    assert turn_of(wheel, 2).outcome == "promoted"


def test_a_refused_candidate_ends_the_turn_with_3_and_stays_on_record(wheel, capsys):
    (wheel.path / "refuse").touch()
    assert run(wheel) == 3
    assert ran(wheel)[-1] == "gate"
    assert turn_of(wheel, 1).outcome == "refused"
    assert "generation 0001 was refused (metrics: ndcg@10 0.25)" in capsys.readouterr().out
    assert wheel.in_service() is None
    found = Generations.model_validate_json((wheel.path / "generations.json").read_text())
    assert found.generations[0].verdict is not None
    assert not found.generations[0].in_service
    assert run(wheel) == 0  # nothing new: what was refused is not tried again
    assert len(wheel.generations()) == 1


def test_a_failing_step_shows_its_last_lines_and_the_next_call_goes_on_with_it(wheel, capsys):
    (wheel.path / "fail.train").touch()
    assert run(wheel) == 5
    shown = capsys.readouterr()
    assert "retriever ... failed with exit code 5" in shown.out
    assert "the reason" in shown.err
    assert "log/retriever.txt" in shown.err
    assert shown.err.count("first words") < 25
    assert turn_of(wheel, 1).outcome == "failed"
    ran(wheel)
    (wheel.path / "fail.train").unlink()
    assert run(wheel) == 0
    assert ran(wheel) == ["train", "evaluate", "release", "gate", "promote"]
    assert turn_of(wheel, 1).outcome == "promoted"


@pytest.mark.slow
def test_a_killed_turn_frees_its_lock_and_goes_on_with_its_step_after_ending_what_it_left_running(wheel):
    (wheel.path / "sleep.train").touch()
    process = started(wheel)
    program = int((wheel.path / "asleep").read_text())
    with pytest.raises(UserError, match=rf"being turned already, by process {process.pid}"):
        run(wheel)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert is_running(program)
    assert ran(wheel) == ALL[:4]
    killed = turn_of(wheel, 1)
    assert (killed.outcome, killed.step("retriever").code, killed.step("prepare").code) == ("running", None, 0)
    (wheel.path / "sleep.train").unlink()
    assert run(wheel) == 0
    assert not is_running(program)
    assert ran(wheel) == ALL[3:]
    assert [folder.number for folder in wheel.generations()] == [1]


@pytest.mark.slow
def test_a_turn_killed_as_its_release_went_into_service_ends_with_that_and_leaves_the_release_alone(wheel):
    run(wheel)
    (wheel.path / "kill.promote").touch()
    assert subprocess.run([*TURNING, str(wheel.path), "--force"], check=False).returncode == -signal.SIGKILL
    assert turn_of(wheel, 2).outcome == "running"
    (wheel.path / "kill.promote").unlink()
    ran(wheel)
    # The recipe has changed, too: what is in service is not made anew by it.
    wheel.wheel.write_text(wheel.wheel.read_text().replace("epochs=8", "epochs=3"))
    assert run(wheel) == 0
    assert ran(wheel) == []
    ended = turn_of(wheel, 2)
    assert (ended.outcome, ended.champion, wheel.in_service().id) == ("promoted", "0001", "0002")
    assert run(wheel) == 0
    assert (turn_of(wheel, 3).champion, turn_of(wheel, 3).outcome) == ("0002", "promoted")


def test_no_step_removes_a_release_that_is_in_use(wheel):
    run(wheel)
    engine = Engine(
        Site(wheel=wheel, settings=wheel.settings(), generation=wheel.generation(1), champion=None),
        turn_of(wheel, 1),
        STEPS,
        program=PROGRAM,
    )
    (wheel.generation(1).run("retriever") / "bundle" / "bundle.json").write_text("another")
    with pytest.raises(UserError, match="release is in service, or was"):
        engine.run("release")
    assert (wheel.generation(1).release / "release.json").is_file()


@pytest.mark.slow
def test_a_turn_that_is_asked_to_end_ends_its_programs(wheel):
    (wheel.path / "sleep.prepare").touch()
    process = started(wheel)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert not is_running(int((wheel.path / "asleep").read_text()))
    assert turn_of(wheel, 1).outcome == "running"


def test_a_step_whose_inputs_changed_since_it_was_done_is_done_again_from_nothing(wheel):
    (wheel.path / "fail.evaluate").touch()
    run(wheel)
    ran(wheel)
    (wheel.path / "fail.evaluate").unlink()
    left = wheel.generation(1).run("retriever") / "of other settings"
    left.touch()
    wheel.wheel.write_text(wheel.wheel.read_text().replace("epochs=8", "epochs=3"))
    assert run(wheel) == 0
    assert ran(wheel) == ["train", "evaluate", "release", "gate", "promote"]
    assert not left.exists()


def test_one_step_at_a_time_is_the_same_turn_and_a_step_before_its_turn_is_refused(wheel):
    assert run(wheel, only="prepare") == 99
    assert run(wheel, only="seed") == 0
    with pytest.raises(UserError, match="prepare comes after land, which is not done"):
        run(wheel, only="prepare")
    for name in list(STEPS)[1:]:
        assert run(wheel, only=name) == 0
    assert ran(wheel) == ALL
    assert turn_of(wheel, 1).outcome == "promoted"
    assert run(wheel, only="promote") == 99


def test_one_step_at_a_time_ends_where_nothing_is_new(wheel):
    run(wheel)
    codes = [run(wheel, only=name) for name in list(STEPS)]
    assert codes == [0, 0, 0, 0, *[99] * 10]
    assert len(wheel.generations()) == 1


def test_force_leaves_an_unfinished_turn_on_record(wheel):
    (wheel.path / "fail.prepare").touch()
    run(wheel)
    (wheel.path / "fail.prepare").unlink()
    assert run(wheel, force=True) == 0
    assert [turn_of(wheel, number).outcome for number in (1, 2)] == ["abandoned", "promoted"]


@pytest.mark.parametrize("release", ["/elsewhere/release", "generations/0001/release"])
def test_a_champion_that_nothing_could_be_held_against_is_told_before_anything_is_done(wheel, release):
    """From outside the wheel, or of a generation that was cleaned."""
    run(wheel)
    ran(wheel)
    shutil.rmtree(wheel.generation(1).snapshot)
    wheel.champion.write_text(Champion(release=release, id="x", promoted_at="then").model_dump_json())
    with pytest.raises(UserError, match=r"x, in service .* has no snapshot in .*: promote a generation that has one"):
        run(wheel, force=True)
    assert ran(wheel) == []
    assert len(wheel.generations()) == 1


def test_old_generations_lose_snapshot_and_runs_but_not_what_is_in_service_or_where_two_rollbacks_go(wheel):
    champion = None
    for number in range(1, 8):
        folder = wheel.generation(number)
        for path in (folder.snapshot, folder.run("retriever"), folder.release):
            path.mkdir(parents=True)
        if number <= 4:  # the later ones were refused
            release = f"generations/{folder.path.name}/release"
            champion = Champion(release=release, id=folder.path.name, promoted_at="then", before=champion)
    wheel.champion.write_text(champion.model_dump_json())
    cleaned = clean(wheel, keep=2)
    assert [folder.number for folder in cleaned] == [1, 5]
    assert [folder.number for folder in wheel.generations() if folder.snapshot.exists()] == [2, 3, 4, 6, 7]
    # A rollback may go on to releases 2 and 1; that of 5 was refused.
    assert [folder.number for folder in wheel.generations() if not folder.release.exists()] == [5]
    assert clean(wheel, keep=2) == []


def test_a_candidate_and_a_promoted_release_go_into_the_registry_that_the_wheel_names(wheel):
    with (wheel.wheel).open("a") as file:
        file.write("registry: {track: sqlite:////runs/mlflow.db, model: films}\n")
    run(wheel)
    for step in ("gate", "promote"):
        asked = json.loads((wheel.path / f"options.{step}").read_text())
        assert (asked["--track"], asked["--model"]) == ("sqlite:////runs/mlflow.db", "films")


def test_two_turns_do_not_hold_the_lock_at_once(tmp_path):
    with turning(tmp_path), pytest.raises(UserError, match="being turned already"), turning(tmp_path):
        pass
    with turning(tmp_path):
        pass


def test_a_report_that_cannot_be_made_is_the_gates_affair_and_not_the_turns_end(wheel, capsys):
    run(wheel)
    land(wheel.landed, "impressions", "2024-03-01", [impression("r1", "0001", "a")])
    (wheel.path / "log.txt").write_text("more events")
    (wheel.path / "raw" / "more.inter").write_text("a line")
    (wheel.path / "lack.estimate").touch()
    assert run(wheel) == 0
    step = turn_of(wheel, 2).step("estimate")
    assert (step.code, step.skipped) == (0, "no report: there is nothing to look at")
    assert "no report: there is nothing to look at" in capsys.readouterr().out


@pytest.mark.parametrize(("check", "step"), [("drift", "drift"), ("skew", "skew"), ("off_policy", "estimate")])
def test_a_step_whose_report_only_a_waived_check_would_read_is_left_out(wheel, check, step):
    run(wheel)
    land(wheel.landed, "impressions", "2024-03-01", [impression("r1", "0001", "a")])
    champion = wheel.in_service()
    site = Site(wheel=wheel, settings=wheel.settings(), generation=wheel.generation(2), champion=champion)
    assert isinstance(STEPS[step](site), Work)
    rules = site.settings.gate.model_copy(update={"waived": (check,)})
    waiving = replace(site, settings=site.settings.model_copy(update={"gate": rules}))
    left_out = STEPS[step](waiving)
    assert isinstance(left_out, Needless)
    assert left_out.reason == f"wheel.yaml waives the check {check}"


def test_reports_of_another_champion_go_where_there_is_none_any_longer(wheel):
    """A turn that failed at the gate goes on after champion.json was taken away."""
    run(wheel)
    (wheel.path / "fail.gate").touch()
    assert run(wheel, force=True) == 5
    here = wheel.generation(2).path
    (here / "drift").mkdir()
    (here / "drift" / "drift.json").write_text("{}")
    assert (here / "champion-retriever.json").is_file()
    wheel.champion.unlink()
    (wheel.path / "fail.gate").unlink()
    assert run(wheel) == 0
    assert not (here / "drift").exists()
    assert not (here / "champion-retriever.json").exists()
    assert (here / "retriever" / "evaluation-test.json").is_file()
    assert turn_of(wheel, 2).step("drift").skipped == "no release is in service yet"


def test_candidate_and_champion_are_both_evaluated_by_the_columns_that_the_gate_slices_by(wheel):
    run(wheel)
    rules = wheel.settings().gate.model_copy(update={"slice_by": ("tab", "age")})
    settings = wheel.settings().model_copy(update={"gate": rules})
    site = Site(wheel=wheel, settings=settings, generation=wheel.generation(2), champion=wheel.in_service())
    work = STEPS["evaluate"](site)
    assert isinstance(work, Work)
    assert len(work.commands) == 2
    for command in work.commands:
        assert " ".join(command).endswith("--slice tab --slice age --ranks 1")


def test_models_that_go_on_learn_of_the_last_days_and_those_that_begin_anew_of_all(wheel):
    path = wheel.path / "wheel.yaml"
    path.write_text(path.read_text() + "train_days: 7\n")

    def prepare() -> str:
        site = Site(wheel=wheel, settings=wheel.settings(), generation=wheel.generation(2), champion=wheel.in_service())
        work = STEPS["prepare"](site)
        assert isinstance(work, Work)
        return " ".join(work.commands[0])

    assert "--train-days" not in prepare(), "there is no champion"
    assert run(wheel) == 0
    assert "--train-days" not in prepare(), "there are no weights of the champion"
    bundle = wheel.generation(1).release / "retriever" / "bundle.json"
    bundle.parent.mkdir(exist_ok=True)
    bundle.touch()
    assert prepare().endswith("--train-days 7.0 --past-share 0.2")
    manifest = wheel.generation(1).snapshot / "manifest.json"
    described = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(described | {"statistics": {"train": {"last_event_time_ms": 86_400_123}}}))
    assert prepare().endswith("--train-since 1970-01-02T00:00:00.123+00:00"), "what the champion has not learned"
    text = path.read_text()
    path.write_text(text.replace("recipe: two_tower", "recipe: sasrec"))
    assert path.read_text() != text
    assert "--train-days" not in prepare(), "the champion is another model"
    path.write_text(text + "warm_start: false\n")
    assert "--train-days" not in prepare(), "no model goes on from the champion's weights"


def test_last_days_of_train_are_not_learned_by_a_model_that_begins_anew(wheel):
    assert run(wheel) == 0
    path = wheel.generation(1).snapshot / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": {"train_days": 7.0}}))
    site = Site(wheel=wheel, settings=wheel.settings(), generation=wheel.generation(1), champion=None)
    with pytest.raises(UserError, match="would begin anew"):
        STEPS["retriever"](site)


def test_drift_between_last_days_and_all_days_is_looked_for_in_the_same_stretch(wheel):
    assert run(wheel) == 0
    shutil.copytree(wheel.generation(1).snapshot, wheel.generation(2).snapshot)
    day = 86_400_000
    for number, end, days in ((1, 10 * day, None), (2, 12 * day, 7.0)):
        path = wheel.generation(number).snapshot / "manifest.json"
        described = {"config": {"train_days": days}, "statistics": {"train": {"last_event_time_ms": end}}}
        path.write_text(json.dumps(json.loads(path.read_text()) | described))
    site = Site(wheel=wheel, settings=wheel.settings(), generation=wheel.generation(2), champion=wheel.in_service())
    work = STEPS["drift"](site)
    assert isinstance(work, Work)
    words = list(work.commands[0])
    windows = {
        words[place]: words[place + 1] for place in (words.index("--reference-window"), words.index("--current-window"))
    }
    assert windows == {
        "--reference-window": "1970-01-04T00:00:00.000+00:00,",
        "--current-window": "1970-01-06T00:00:00.000+00:00,",
    }


def test_a_wheel_leaves_the_days_of_train_to_the_turn(wheel):
    path = wheel.path / "wheel.yaml"
    text = path.read_text()
    given = yaml.safe_load(text)
    for changed, says in (
        ({"prepare": {"train-days": 7}}, "set train_days instead"),
        ({"train_days": 7, "prepare": {"split": "leave_last_out"}}, "needs a split by time"),
    ):
        path.write_text(yaml.safe_dump(given | changed))
        with pytest.raises(UserError, match=says):
            wheel.settings()
