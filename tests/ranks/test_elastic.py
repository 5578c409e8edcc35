"""Ranks that die and come in the middle of an epoch: training goes on, each row of each epoch once."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from pipelines import launch
from pipelines.elastic import Elastic, names_of_here
from tests.snapshots import make_snapshot

ROWS = 12_000
DLRM = ["--recipe", "dlrm", "--set", "epochs=1", "--set", "batch_size_per_rank=4", "--set", "model.tables=sharded"]


def ranks_of(job: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for one in psutil.Process(job.pid).children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            found += [one] if one.cmdline()[1:3] == ["-m", "training.train"] else []
    return found


def wait_until(condition: Callable[[], object], job: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@contextmanager
def training(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "pipelines.cli", "train", *arguments]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, cwd=launch.ROOT) as job:
        try:
            yield job
        finally:
            for one in [*psutil.Process(job.pid).children(recursive=True)] if job.poll() is None else []:
                one.kill()
            job.kill()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_rank_is_killed_and_another_comes_and_each_row_is_learned_from_once(tmp_path):
    url = make_snapshot(tmp_path / "s", [[ROWS // 2], [ROWS // 2]], valid_rows=60)
    first, second, third = names_of_here(3)
    hosts = tmp_path / "hosts"
    hosts.write_text(f"{first}:1\n{second}:1\n")
    discover = tmp_path / "discover.sh"
    discover.write_text(f"#!/bin/sh\ncat {hosts}\n")
    discover.chmod(stat.S_IRWXU)
    run, log = tmp_path / "run", tmp_path / "log"
    elastic = [
        "--ranks",
        "2",
        "--min-ranks",
        "1",
        "--discover",
        str(discover),
        "--interfaces",
        "lo",
        "--max-ranks",
        "2",
    ]
    arguments = ["--snapshot", url, *DLRM, "--run", str(run), "--checkpoint-every", "50", *elastic]
    with training(arguments, log) as job:
        wait_until(lambda: [*(run / "checkpoints").glob("epoch-00000-step-*")], job, log)
        victim = next(one for one in ranks_of(job) if one.environ()["HOROVOD_HOSTNAME"] == second)
        os.kill(victim.pid, signal.SIGKILL)
        wait_until(lambda: "ranks: 2 were, 1 are" in log.read_text(), job, log)
        draft = tmp_path / "hosts.draft"
        draft.write_text(f"{first}:1\n{third}:1\n")
        draft.rename(hosts)
        wait_until(lambda: "ranks: 1 were, 2 are" in log.read_text(), job, log)
        assert job.wait(timeout=200) == 0, log.read_text()
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["rows"] for epoch in epochs] == [ROWS], "and the ledger has compared their ids"
    assert (run / "bundle" / "bundle.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_ranks_are_killed_at_once_and_the_job_starts_them_again(tmp_path):
    url = make_snapshot(tmp_path / "s", [[ROWS // 4], [ROWS // 4]], valid_rows=60)
    run, log = tmp_path / "run", tmp_path / "log"
    elastic = ["--ranks", "2", "--min-ranks", "2"]
    arguments = ["--snapshot", url, *DLRM, "--run", str(run), "--checkpoint-every", "50", *elastic]
    with training(arguments, log) as job:
        wait_until(lambda: [*(run / "checkpoints").glob("epoch-00000-step-*")], job, log)
        victims = ranks_of(job)
        assert len(victims) == 2
        for rank in victims:
            with suppress(psutil.NoSuchProcess):  # it died of the other's death
                rank.kill()
        assert job.wait(timeout=200) == 0, log.read_text()
    assert "all start again from the last checkpoint (1)" in log.read_text()
    assert "goes on after" in log.read_text()
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["rows"] for epoch in epochs] == [ROWS // 2], "and the ledger has compared their ids"


def test_a_mistake_is_not_tried_again():
    assert launch._have_died([137, 134])
    assert launch._have_died([75])
    assert not launch._have_died([137, 2])
    assert not launch._have_died([1])
    assert not launch._have_died([])


def test_names_of_here_are_different_and_all_this_machine():
    import socket

    names = names_of_here(5)
    assert len({*names}) == 5
    assert {socket.gethostbyname(name) for name in names} == {"127.0.0.1"}


def test_without_a_script_of_the_user_one_is_written_that_prints_a_host_a_rank(tmp_path):
    words = [*Elastic(min_ranks=1, max_ranks=2).options(tmp_path)]
    script = words[words.index("--host-discovery-script") + 1]
    printed = subprocess.run([script], capture_output=True, text=True, check=True).stdout
    assert printed == "127.0.0.1:1\n127.0.0.01:1\n"
    assert words[:6] == ["--min-np", "1", "--max-np", "2", "--reset-limit", "100"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ranks", "2", "--min-ranks", "3"], "2 is not between 3 and 2"),
        (["--ranks", "4", "--min-ranks", "1", "--max-ranks", "3"], "4 is not between 1 and 3"),
        (["--ranks", "2", "--max-ranks", "3"], "give --min-ranks too"),
        (["--ranks", "2", "--min-ranks", "1", "--discover", "/nowhere.sh"], "/nowhere.sh is no program"),
        (["--ranks", "2", "--min-ranks", "1", "--on", "torch"], "elastic jobs are horovodrun's"),
    ],
)
def test_what_no_elastic_job_can_be_is_said_in_one_line(tmp_path, arguments, says, capfd):
    from pipelines.cli import main

    url = make_snapshot(tmp_path / "s", [[64]], valid_rows=40)
    assert main(["train", "--snapshot", url, "--run", str(tmp_path / "run"), *DLRM, *arguments]) == 2
    error = capfd.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
