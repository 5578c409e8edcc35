"""The server's promise: what it has answered or accepted is landed exactly once, however often it is killed."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import suppress

import pytest

from pipelines.launch import ROOT
from schemas.served import KINDS
from serving.land import main as land
from tests.serving.records import landed_rows

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


@pytest.mark.slow
@pytest.mark.timeout(120 + 40 * KILLS)
def test_what_the_server_answered_or_accepted_has_landed_exactly_once_after_kill_9(tmp_path, released):
    release, logs, to, promises = released[0], tmp_path / "logs", tmp_path / "landed", tmp_path / "promises"
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    choose = random.Random(KILLS)
    load = server = None
    with (tmp_path / "said").open("wb") as said, promises.open("wb") as told:
        try:
            for _ in range(KILLS):
                server = serve(release, logs, port, said)
                server.send_signal(signal.SIGHUP)  # nothing to look at, and no reason to end
                if load is None:
                    key = (logs / "local.key").read_text().strip()
                    program = [sys.executable, "-m", "tests.serving.load_program", str(port), key, "8"]
                    load = subprocess.Popen(program, cwd=ROOT, stdout=told, stderr=said)
                wait_for_more(promises, 50, load)
                time.sleep(choose.uniform(0, 0.3))
                server.kill()
                assert server.wait() == -9
                if choose.random() < 0.5:
                    assert land(["--logs", str(logs), "--to", str(to), "--delete-landed"]) == 0
            server = serve(release, logs, port, said)
            wait_for_more(promises, 50, load)
            before = {kind: promised(promises, kind) for kind in KINDS}
            assert land(["--logs", str(logs), "--to", str(to), "--seal"]) == 0
            for kind in KINDS:
                assert set(before[kind]) <= set(landed_rows(to, kind).column(IDS[kind]).to_pylist())
        finally:
            for process in (load, server):
                if process is not None:
                    process.kill()
                    process.wait()
    assert land(["--logs", str(logs), "--to", str(to)]) == 0
    for kind in KINDS:
        times = Counter(landed_rows(to, kind).column(IDS[kind]).to_pylist())
        acknowledged = promised(promises, kind)
        print(f"{kind}: {len(acknowledged):,} acknowledged, {len(times):,} landed, {KILLS} kills")
        assert len(acknowledged) == len(set(acknowledged)) >= 10 * KILLS
        assert set(acknowledged) <= set(times)
        assert set(times.values()) == {1}
