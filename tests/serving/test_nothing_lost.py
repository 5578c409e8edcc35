"""The server's promise: what it has answered or accepted is in the feedback job's ledger exactly once.

However often the server is killed, though its disk fills up, and though PostgreSQL goes away while records land there.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import yaml

from pipelines import launch
from pipelines.launch import ROOT
from schemas.served import KINDS
from schemas.snapshot import open_snapshot
from serving.land import main as land
from tests.postgres import running_postgres
from tests.serving.records import landed_rows
from tests.small_disk import give_room, small_disk
from tests.spark.logs import write_contract, write_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KILLS = int(os.environ.get("HEADRACE_KILLS", "5"))
IDS = {"impressions": "request_id", "actions": "action_id"}


def serve(release, logs, port, said):
    """Start the server and wait until it answers."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--release", release, "--logs", logs]
    options = ["--port", str(port), "--requests-per-second", "1000000"]
    server = subprocess.Popen([*command, *options], cwd=ROOT, stdout=said, stderr=said)
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
            return server
        time.sleep(0.02)
    server.kill()
    raise AssertionError("the server did not answer")


def wait_for_more(promises, count, load):
    """Until so many more promises have been given."""
    target, until = promises.read_bytes().count(b"\n") + count, time.monotonic() + 30
    while promises.read_bytes().count(b"\n") < target:
        assert load.poll() is None
        assert time.monotonic() < until, "the load came to nothing"
        time.sleep(0.01)


def promised(promises, kind):
    """Ids of the whole lines that have been written until now."""
    lines = promises.read_text().split("\n")[:-1]
    return [line.removeprefix(f"{kind} ") for line in lines if line.startswith(f"{kind} ")]


CONTRACT = {
    "name": "shown",
    "meaning": "what was shown, and whether it was clicked",
    "events": {
        "source": {"path": "shown.csv", "delimiter": ","},
        "key": ["user", "item", "at"],
        "columns": [
            {"name": "user", "type": "string", "role": "user", "meaning": "who"},
            {"name": "item", "type": "string", "role": "item", "meaning": "what"},
            {"name": "at", "type": "timestamp_ms", "role": "event_time", "time_format": "epoch_ms", "meaning": "when"},
            {"name": "clicked", "type": "int32", "role": "label", "one_of": ["0", "1"], "meaning": "clicked"},
        ],
    },
}
RULES = {"event": "impression", "labels": {"clicked": {"action": "click"}}, "window_hours": 1}


def job(name: str, **places: Path | str) -> None:
    words = [word for option, place in places.items() for word in (f"--{option.replace('_', '-')}", f"{place}")]
    assert launch.spark_submit(name, words) == 0


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contract, the rules, and the event store that a wheel begins with: one event."""
    folder = tmp_path_factory.mktemp("seed")
    write_lines(folder / "raw" / "shown.csv", [b"user,item,at,clicked", b"u1,i1,1000,1"])
    write_contract(folder, CONTRACT)
    (folder / "rules.yaml").write_text(yaml.safe_dump(RULES), encoding="utf-8")
    job("ingest", contract=folder / "contract.yaml", raw=folder / "raw", out=folder / "events")
    return folder


@contextmanager
def loaded(port: int, logs: Path, promises: Path, said: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A load on the server of `logs`, that writes down what it was promised; killed at the end of the block."""
    program = [sys.executable, "-m", "tests.serving.load_program", str(port), (logs / "local.key").read_text().strip()]
    with promises.open("ab") as told, said.open("ab") as complaints:
        load = subprocess.Popen([*program, "8"], cwd=ROOT, stdout=told, stderr=complaints)
    try:
        yield load
    finally:
        load.kill()
        load.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        return holder.getsockname()[1]


def check_each_counted_once(seed: Path, landed: Path, promises: Path, *, at_least: int) -> None:
    """What was promised is there, each record once, and the feedback job counts all of it."""
    num = {}
    for kind in KINDS:
        times = Counter(landed_rows(landed, kind).column(IDS[kind]).to_pylist())
        acknowledged = promised(promises, kind)
        print(f"{kind}: {len(acknowledged):,} acknowledged, {len(times):,} landed")
        assert len(acknowledged) == len(set(acknowledged)) >= at_least
        assert set(acknowledged) <= set(times)
        assert set(times.values()) == {1}
        num[kind] = len(times)
    out = landed.parent / "served"
    job(
        "feedback", landed=landed, seed=seed / "events", contract=seed / "contract.yaml", rules=seed / "rules.yaml",
        out=out, as_of="2100-01-01T00:00:00+00:00",
    )  # fmt: skip
    ledger = open_snapshot(str(out), kind="served").manifest.ledger.feedback
    assert ledger is not None
    # Three items a response, one click each; nothing is left that waits, came late or has no response.
    shown, actions = ledger.shown, ledger.actions
    assert (shown.items, shown.events + shown.bots) == (3 * num["impressions"], 3 * num["impressions"])
    assert (actions.actions, actions.joined + actions.repeated + actions.bots) == (num["actions"], num["actions"])


@pytest.mark.timeout(180 + 40 * KILLS)
def test_what_the_server_answered_or_accepted_is_counted_exactly_once_after_kill_9(tmp_path, released, seed):
    release, logs, to, promises = released[0], tmp_path / "logs", tmp_path / "landed", tmp_path / "promises"
    port, choose, said = free_port(), random.Random(KILLS), tmp_path / "said"
    load = server = None
    promises.touch()
    with said.open("ab") as told, ExitStack() as stack:
        try:
            for _ in range(KILLS):
                server = serve(release, logs, port, told)
                server.send_signal(signal.SIGHUP)  # nothing to look at, and no reason to end
                load = load or stack.enter_context(loaded(port, logs, promises, said))
                wait_for_more(promises, 50, load)
                time.sleep(choose.uniform(0, 0.3))
                server.kill()
                assert server.wait() == -9
                if choose.random() < 0.5:
                    assert land(["--logs", str(logs), "--to", str(to), "--delete-landed"]) == 0
            server = serve(release, logs, port, told)
            wait_for_more(promises, 50, load)
            before = {kind: promised(promises, kind) for kind in KINDS}
            assert land(["--logs", str(logs), "--to", str(to), "--seal"]) == 0
            for kind in KINDS:
                assert set(before[kind]) <= set(landed_rows(to, kind).column(IDS[kind]).to_pylist())
        finally:
            if server is not None:
                server.kill()
                server.wait()
    assert land(["--logs", str(logs), "--to", str(to)]) == 0
    check_each_counted_once(seed, to, promises, at_least=10 * KILLS)


def test_on_a_full_disk_nothing_is_answered_and_all_that_was_answered_is_counted_once(tmp_path, released, seed):
    to, promises, said, port = tmp_path / "landed", tmp_path / "promises", tmp_path / "said", free_port()
    promises.touch()
    with small_disk(tmp_path / "disk", "1m") as disk, said.open("ab") as told:
        logs = disk / "logs"
        server = serve(released[0], logs, port, told)
        try:
            with loaded(port, logs, promises, said) as load:
                until = time.monotonic() + 60
                while b"503 " not in said.read_bytes():
                    assert load.poll() is None
                    assert time.monotonic() < until, "the disk was never full"
                    time.sleep(0.1)
                time.sleep(1)
                full = promises.read_bytes().count(b"impressions")
                time.sleep(1)
                # What frees a little room, a segment that is given up, lets a few through.
                assert promises.read_bytes().count(b"impressions") - full < 50
                key = {"X-API-Key": (logs / "local.key").read_text().strip()}
                url = f"http://127.0.0.1:{port}"
                assert httpx.get(f"{url}/healthz", headers=key, trust_env=False).status_code == 200
                give_room(disk)
                wait_for_more(promises, 100, load)
            assert land(["--logs", str(logs), "--to", str(to), "--seal"]) == 0
        finally:
            server.kill()
            server.wait()
        assert land(["--logs", str(logs), "--to", str(to)]) == 0
    check_each_counted_once(seed, to, promises, at_least=100)


def test_though_postgres_goes_away_under_load_each_record_lands_and_is_counted_once(
    tmp_path, released, seed, monkeypatch, capfd
):
    logs, promises, said, port = tmp_path / "logs", tmp_path / "promises", tmp_path / "said", free_port()
    promises.touch()
    with running_postgres() as postgres, said.open("ab") as told:
        monkeypatch.setenv("PGPASSWORD", postgres.password)
        store = postgres.store("logs")
        server = serve(released[0], logs, port, told)
        try:
            with loaded(port, logs, promises, said) as load:
                for _ in range(3):
                    wait_for_more(promises, 100, load)
                    postgres.stop()
                    codes: list[int] = []
                    words = ["--logs", str(logs), "--to", store, "--seal", "--delete-landed"]
                    landing = threading.Thread(target=lambda words=words, codes=codes: codes.append(land(words)))
                    landing.start()
                    wait_for_more(promises, 100, load)  # the server does not wait for PostgreSQL
                    time.sleep(1)
                    postgres.start()
                    landing.join(timeout=60)
                    assert codes == [0]
        finally:
            server.kill()
            server.wait()
        assert "trying again" in capfd.readouterr().err
        assert land(["--logs", str(logs), "--to", store]) == 0
        assert land(["--from", store, "--to", str(tmp_path / "landed")]) == 0
    check_each_counted_once(seed, tmp_path / "landed", promises, at_least=300)
