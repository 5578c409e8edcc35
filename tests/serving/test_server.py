"""The server as a process: it follows the champion without a failed request, and loses nothing it acknowledged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from schemas.release import RELEASE, Release
from schemas.wheel import ServingSettings, WheelSettings
from serving.segments import FOOTER, PREFIX_BYTES, whole
from serving.server import main
from tests.serving.releases import RULES, make_champion

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def serving(*arguments: str, logs: Path) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.server", *arguments, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            deadline = time.monotonic() + 60
            while True:
                try:
                    client.get("/healthz")
                    break
                except httpx.TransportError:
                    assert process.poll() is None, process.stdout.read() if process.stdout else ""
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            client.headers["X-API-Key"] = next(logs.glob("*.key")).read_text().strip()
            yield client, process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


def until(client: httpx.Client, says: Callable[[dict[str, Any]], bool]) -> None:
    """Wait for a health check that says so."""
    deadline = time.monotonic() + 20
    while not says(client.get("/healthz").json()):
        assert time.monotonic() < deadline, client.get("/healthz").json()
        time.sleep(0.05)


def logged(folder: Path) -> dict[str, dict[str, Any]]:
    """The impressions of all segments, by request."""
    found = {}
    for path in folder.glob("impressions/*.*"):
        for line in path.read_bytes().splitlines(keepends=True):
            if whole(line) and line[8:9] != FOOTER:
                record = json.loads(line[PREFIX_BYTES:])
                found[record["request_id"]] = record
    return found


@pytest.fixture
def wheel(released: tuple[Path, Release], tmp_path: Path) -> Path:
    """A wheel's folder with two releases; 0001 is in service. 0002 shows fewer items, and only actions are its events.

    wheel.yaml says for the next release what those that are there do not.
    """
    next_one = ServingSettings(max_items=1)
    settings = WheelSettings(name="test", contract="ml-100k", raw=".", feedback=RULES, serving=next_one)
    (tmp_path / "wheel.yaml").write_text(settings.model_dump_json(exclude_defaults=True))
    for number in ("0001", "0002"):
        copy = tmp_path / number
        shutil.copytree(released[0], copy)
        # Models have time: on a machine that is busy with other tests popular items would be the answer.
        described = json.loads((copy / RELEASE).read_text()) | {"id": number, "serving": {"timeout_ms": 5000}}
        if number == "0002":
            described["serving"]["max_items"] = 5
            described["feedback"]["event"] = "action"
        (copy / RELEASE).write_text(json.dumps(described))
    make_champion(tmp_path, Path("0001"), "0001")
    return tmp_path


def test_a_promoted_release_takes_over_without_a_failed_request_and_a_broken_one_does_not(wheel):
    with serving("--wheel", str(wheel), logs=wheel / "logs") as (client, process):
        answers: list[httpx.Response] = []
        over = threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=client.base_url, headers=client.headers) as own:
                while not over.is_set():
                    answers.append(own.post("/recommend", json={"user_id": "u1", "k": 3, "exclude_seen": False}))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()

        client.post("/recommend", json={"user_id": "u1", "k": 1})
        shown = client.post("/recommend", json={"user_id": "u2", "k": 6}).json()
        act = {"request_id": shown["request_id"], "item_id": shown["items"][0]["item_id"], "user_id": "u2"}
        client.post("/feedback", json={"actions": [act | {"action": "click"}]})
        assert "headrace_recent_users 2.0" in client.get("/metrics").text
        make_champion(wheel, Path("0002"), "0002")
        until(client, lambda health: health["generation"] == "0002")
        assert "headrace_recent_users 1.0" in client.get("/metrics").text, "u1 has done nothing with what was shown"
        assert client.post("/recommend", json={"user_id": "u2", "k": 6}).status_code == 422
        broken = shutil.copytree(wheel / "0002", wheel / "0003")
        (broken / "users.arrow").write_bytes(b"")
        make_champion(wheel, Path("0003"), "0003")
        until(client, lambda health: health["status"] == "degraded")
        health = client.get("/healthz").json()
        assert health["generation"] == "0002"
        assert "users.arrow was changed" in health["problem"]
        assert "headrace_broken_release 1.0" in client.get("/metrics").text
        make_champion(wheel, Path("0001"), "0001")
        process.send_signal(signal.SIGHUP)
        until(client, lambda health: health == health | {"status": "ok", "generation": "0001"})
        over.set()
        for thread in threads:
            thread.join()
    assert len(answers) > 20
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["generation"] for answer in answers} == {"0001", "0002"}
    assert {answer.json()["fallback"] for answer in answers} == {None}, "a load takes no time from who answers"
    assert {answer.json()["request_id"] for answer in answers} <= set(logged(wheel / "logs"))


def test_a_server_started_beside_a_broken_champion_answers_with_the_one_before_until_it_is_whole(wheel):
    make_champion(wheel, Path("0002"), "0002")
    users = (wheel / "0002" / "users.arrow").read_bytes()
    (wheel / "0002" / "users.arrow").write_bytes(b"")
    with serving("--wheel", str(wheel), logs=wheel / "logs") as (client, process):
        until(client, lambda health: health["status"] == "degraded")
        health = client.get("/healthz").json()
        assert health["generation"] == "0001"
        assert "users.arrow was changed" in health["problem"]
        assert client.post("/recommend", json={"user_id": "u1"}).json()["generation"] == "0001"
        (wheel / "0002" / "users.arrow").write_bytes(users)
        process.send_signal(signal.SIGHUP)
        until(client, lambda health: health == health | {"status": "ok", "generation": "0002"})


def test_where_no_release_can_serve_the_champions_reason_is_told(wheel, capsys):
    for number in ("0002", "0001"):
        (wheel / number / "users.arrow").write_bytes(b"")
    make_champion(wheel, Path("0002"), "0002")
    assert main(["--wheel", str(wheel), "--port", "0"]) == 2
    tried, reason = capsys.readouterr().err.splitlines()
    assert tried.startswith("serve: 0002 cannot serve, 0001 is tried: ")
    assert "0002: users.arrow was changed" in reason


def test_what_was_answered_is_there_after_a_kill_and_is_known_after_a_new_start(wheel):
    acknowledged = {}
    with serving("--wheel", str(wheel), logs=wheel / "logs") as (client, process):
        for _ in range(5):
            answer = client.post("/recommend", json={"user_id": "u1", "k": 4}).json()
            acknowledged[answer["request_id"]] = [item["item_id"] for item in answer["items"]]
        process.kill()
        process.wait()
    kept = logged(wheel / "logs")
    for request_id, items in acknowledged.items():
        assert [item["item_id"] for item in kept[request_id]["items"]] == items
    with serving("--wheel", str(wheel), logs=wheel / "logs") as (client, _):
        more = client.post("/recommend", json={"user_id": "u1", "k": 30}).json()["items"]
        shown = {item for items in acknowledged.values() for item in items}
        assert not shown & {item["item_id"] for item in more}


def test_several_processes_share_the_port_and_what_users_did(wheel):
    with serving("--wheel", str(wheel), "--workers", "2", logs=wheel / "logs") as (client, _):
        shown: list[str] = []
        writers: set[str] = set()
        deadline = time.monotonic() + 60
        # A connection a request: the kernel gives each to one process or the other.
        while time.monotonic() < deadline and (len(shown) < 5 or len(writers) < 2):
            with httpx.Client(base_url=client.base_url, headers=client.headers) as once:
                shown += [i["item_id"] for i in once.post("/recommend", json={"user_id": "u1", "k": 1}).json()["items"]]
            time.sleep(0.5)
            writers = {path.name.split("-")[0] for path in (wheel / "logs" / "impressions").iterdir()}
    assert writers == {"serve1", "serve2"}
    assert len(shown) == len(set(shown)), "a process showed what the other had shown"


def test_mistakes_are_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "wheel").mkdir()
    for arguments, says in (
        (["--wheel", str(tmp_path / "wheel")], "no release is in service"),
        (["--release", str(tmp_path)], "with --release say where the logs go"),
        (["--release", str(tmp_path), "--logs", str(tmp_path / "l")], "is no release"),
        (["--wheel", str(tmp_path / "wheel"), "--workers", "0"], "at least one process"),
        (["--wheel", str(tmp_path / "wheel"), "--requests-per-second", "0"], "it has to be more than 0"),
        (["--wheel", str(tmp_path / "wheel"), "--host", "0.0.0.0"], "give --keys"),
    ):
        code = main([*arguments, "--port", "0"])
        error = capsys.readouterr().err
        assert (code, says in error, len(error.splitlines())) == (2, True, 1), error
