"""A rank that stands still, for real: the others name it, say since when and on what, and end the job."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipelines import launch
from tests.snapshots import make_snapshot
from training.watchdog import Watchdog


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_rank_that_stands_still_is_named_by_the_one_that_waits_and_the_job_ends(tmp_path):
    url = make_snapshot(tmp_path / "s", [[4000], [4000]], valid_rows=60)
    arguments = ["--snapshot", url, "--recipe", "dlrm", "--run", str(tmp_path / "run"), "--stall-limit", "4"]
    arguments += ["--trace", str(tmp_path / "trace"), "--set", "batch_size_per_rank=4", "--set", "epochs=5"]
    program = "from pipelines import launch; raise SystemExit"
    program += f"(launch.on_ranks('training.train', {arguments!r}, ranks=2))"
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    job = subprocess.Popen([sys.executable, "-c", program], cwd=launch.ROOT, **output)
    below: list[psutil.Process] = []
    try:
        steps, deadline = tmp_path / "trace" / "steps-00001.jsonl", time.monotonic() + 120
        while not (steps.exists() and len(steps.read_text().splitlines()) > 20):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        below = psutil.Process(job.pid).children(recursive=True)
        stopped = json.loads((tmp_path / "run" / "ranks" / "rank-00001.json").read_text())["pid"]
        os.kill(stopped, signal.SIGSTOP)
        said, _ = job.communicate(timeout=120)
    finally:
        job.kill()
        for one in below:
            with suppress(psutil.Error):
                one.kill()
    assert job.returncode != 0
    print(said)
    assert re.search(r"watchdog: rank 0 waits for \S.* since \d+ s, longer than the limit; ending the job", said)
    named = rf"rank 1 \(pid {stopped} on \S+, [\d,]+ rows learned from\) has not been heard of for \d+ s: dead, stopped"
    assert re.search(named, said)


def watchdogs(folder: Path, size: int) -> list[Watchdog]:
    return [Watchdog(folder, rank, size, limit_s=10.0) for rank in range(size)]


def test_it_tells_who_is_waited_for_who_waits_too_and_who_never_came(tmp_path):
    first, second, third, _ = watchdogs(tmp_path, 4)
    second.does("reads after step 7 of epoch 0", rows=64)
    with third.waiting("the sum 'totals'"), first.waiting("the exchange 'rows_wanted'"):
        for one in (first, second, third):
            one._write()
        said = first.explain().splitlines()
    assert said[0].startswith("rank 0 waits for the exchange 'rows_wanted' since 0 s")
    assert re.search(r"rank 1 .*64 rows.* is what is waited for: it reads after step 7 of epoch 0 since 0 s", said[1])
    assert re.search(r"rank 2 .* waits too, since 0 s: it waits for the sum 'totals'", said[2])
    assert said[3].strip() == "rank 3 has not begun to train"


def test_after_waiting_a_rank_is_back_at_what_it_did(tmp_path):
    (one,) = watchdogs(tmp_path, 1)
    one.does("computes step 3 of epoch 0", rows=5)
    with one.waiting("the other ranks' gradients"):
        assert one._state.is_waiting
    assert (one._state.doing, one._state.rows, one._state.is_waiting) == ("computes step 3 of epoch 0", 5, False)
