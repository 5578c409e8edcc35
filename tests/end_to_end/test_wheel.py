"""The wheel turned for real: a log, a release, a server, people's reactions, the next generation in service, skew."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.data import fetch
from pipelines.turning.wheel_folder import WheelFolder
from schemas.drift import SKEW, SkewReport
from schemas.snapshot import open_snapshot
from tests.serving.people import reactions
from tests.serving.running_server import Running, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

HEADRACE = [sys.executable, "-m", "pipelines.cli"]
WINDOW_S = 12
USERS, OTHERS = ([str(number) for number in range(first, first + 60)] for first in (1, 101))


def turned(wheel: Path) -> str:
    done = subprocess.run([*HEADRACE, "turn", "--wheel", f"{wheel}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in wheel, with a short window and small models; its first generation in service."""
    folder = tmp_path_factory.mktemp("wheels") / "films"
    new = [*HEADRACE, "turn", "--wheel", f"{folder}", "--new", "ml-100k"]
    subprocess.run(new, check=True, capture_output=True)
    fetch("ml-100k", folder / "raw")
    settings: dict[str, Any] = yaml.safe_load((folder / "wheel.yaml").read_text())
    settings["feedback"]["window_hours"] = WINDOW_S / 3600
    settings["retriever"]["set"] = ["epochs=2", "model.width=16"]
    settings["gate"]["waived"] = ["calibration", "slices", "off_policy"]
    settings["serving"]["exploration"] = {"kind": "none"}  # what is shown depends on the models alone
    (folder / "wheel.yaml").write_text(yaml.safe_dump(settings))
    assert "generation 0001 is in service" in turned(folder)
    return folder


def shown_to_others(server: Running) -> list[list[str]]:
    """Ten films for each of those who do nothing; what they were shown before is not left out."""
    with server.client() as client:
        asked = [{"user_id": user, "exclude_seen": False} for user in OTHERS]
        answers = [client.post("/recommend", json=one).raise_for_status().json() for one in asked]
    return [[item["item_id"] for item in answer["items"]] for answer in answers]


def test_what_people_did_is_in_the_next_generation_which_takes_over_and_recommends_anew(wheel):
    with running(wheel) as server:
        of_others = shown_to_others(server)
        assert shown_to_others(server) == of_others
        shown, rated = reactions(server, USERS)
        assert {len(items) for items in shown.values()} == {10}
        assert rated == 2 * len(USERS)
        time.sleep(WINDOW_S)
        said = turned(wheel)
        assert "generation 0002 is in service" in said

        ledger = open_snapshot(str(wheel / "served"), kind="served").manifest.ledger.feedback
        assert ledger is not None
        assert (ledger.shown.items, ledger.shown.events, ledger.shown.waiting) == (
            10 * len(USERS) + 20 * len(OTHERS),
            rated,
            0,
        )
        assert (ledger.actions.actions, ledger.actions.joined) == (rated, rated)
        snapshot = open_snapshot(str(WheelFolder(wheel).generation(2).snapshot))
        assert snapshot.manifest.ledger.splits.accepted == 100_000 + rated

        until = time.monotonic() + 60
        with server.client() as client:
            while client.get("/healthz").json()["generation"] != "0002":
                assert time.monotonic() < until, server.said()
                time.sleep(0.2)
            answers = [client.post("/recommend", json={"user_id": user}).raise_for_status().json() for user in USERS]
        changed = sum(now != before for now, before in zip(shown_to_others(server), of_others, strict=True))
        assert changed > len(OTHERS) / 2, "what was learned changes what those are shown who did nothing"
    assert {answer["generation"] for answer in answers} == {"0002"}
    for user, answer in zip(USERS, answers, strict=True):
        now = [item["item_id"] for item in answer["items"]]
        assert not {shown[user][1], shown[user][4]} & set(now), "what was rated is recommended again"
    assert "0002" in (wheel / "generations.html").read_text()


def test_with_nothing_new_there_is_no_turn(wheel):
    said = turned(wheel)
    assert "nothing" in said
    assert not (wheel / "generations" / "0003").exists()


def test_a_changed_transform_of_the_server_is_named_with_the_requests_that_show_it(wheel, tmp_path):
    with running(wheel, program="tests.serving.changed_server") as server, server.client() as client:
        asked = [client.post("/recommend", json={"user_id": user}).raise_for_status().json() for user in OTHERS]
    release = WheelFolder(wheel).generation(2).release
    land = [*HEADRACE, "land", "--logs", f"{wheel / 'logs'}", "--to", f"{wheel / 'landed'}"]
    subprocess.run(land, check=True, capture_output=True)
    places = {"landed": wheel / "landed", "release": release, "events": wheel / "events", "out": tmp_path / "skew"}
    words = [word for name, place in places.items() for word in (f"--{name}", f"{place}")]
    subprocess.run([*HEADRACE, "skew", *words], check=True, capture_output=True)
    report = SkewReport.model_validate_json((tmp_path / "skew" / SKEW).read_text(encoding="utf-8"))
    assert report.skewed == ("history",)
    (history,) = (feature for feature in report.features if feature.feature == "history")
    # The same generation answered as many with the transform as it is; a history of one film has one order.
    assert 0.9 * len(OTHERS) <= history.different <= len(OTHERS) < history.compared
    assert history.examples
    assert {example.request_id for example in history.examples} <= {answer["request_id"] for answer in asked}
