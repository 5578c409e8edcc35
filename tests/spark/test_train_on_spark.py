"""Ranks as barrier tasks of a real cluster: what horovodrun gives, mistakes in one line, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipelines import launch
from tests.snapshots import make_snapshot
from tests.spark.cluster import Cluster, kill_all, standalone_cluster, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SETTINGS = {
    "model.width": 8,
    "model.recent": 2,
    "batch_size_per_rank": 32,
    "epochs": 2,
    "loss.num_sampled": 20,
    "optimizer.learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> str:
    # 997 rows: the last global batch is short, and its halves are unequal.
    return make_snapshot(tmp_path_factory.mktemp("data") / "s", [[200, 150], [400], [247]])


def words(snapshot: str, run: Path, **changed: object) -> list[str]:
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changed.items()}
    arguments = ["--snapshot", snapshot, "--run", str(run)]
    return arguments + [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def rank_processes(run: Path) -> dict[int, psutil.Process]:
    """The processes that train into this folder, by rank."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environment = process.environ()
            if str(run) in process.cmdline() and "HOROVOD_RANK" in environment:
                found[int(environment["HOROVOD_RANK"])] = process
    return found


def said(text: str) -> list[str]:
    """Lines but for what Java says to everyone who uses its vector module."""
    return [line for line in text.splitlines() if "incubator modules" not in line]


def rendezvous() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "training.rendezvous" in process.cmdline():
                found.append(process)
    return found


def started(cluster: Cluster, snapshot: str, run: Path) -> tuple[subprocess.Popen[str], dict[int, psutil.Process]]:
    """A job of more epochs than it will be given, once it has learned for one; and its ranks."""
    job = cluster.start("train", "--on", "spark", "--ranks", "2", *words(snapshot, run, epochs=10_000, patience=10_000))
    wait_for("an epoch", lambda: (run / "metrics.jsonl").exists() or job.poll() is not None)
    assert job.poll() is None, job.communicate()
    return job, rank_processes(run)


def assert_nothing_is_left(ranks: dict[int, psutil.Process]) -> None:
    _, alive = psutil.wait_procs([*ranks.values(), *rendezvous()], timeout=20)
    assert not alive


def test_ranks_on_executors_learn_what_those_of_horovodrun_learn(cluster: Cluster, snapshot: str, tmp_path: Path):
    assert launch.on_ranks("training.train", words(snapshot, tmp_path / "here"), ranks=2) == 0
    run = tmp_path / "there"
    code, out, err = cluster.run("train", "--on", "spark", "--ranks", "2", *words(snapshot, run))
    assert code == 0, out + err
    assert losses(run) == losses(tmp_path / "here")
    assert len(losses(run)) == 2
    assert "2 rank(s)" in out, "rank 0's lines come to this terminal"
    assert f"train: published {run}/bundle" in out.splitlines()
    assert_nothing_is_left({})


def test_a_rank_that_is_killed_ends_the_job_and_every_process_of_it(cluster: Cluster, snapshot: str, tmp_path: Path):
    job, ranks = started(cluster, snapshot, tmp_path / "run")
    try:
        assert {*ranks} == {0, 1}
        for process in ranks.values():
            first = process.environ()["PYTHONPATH"].split(":")[0]
            assert first.startswith(str(cluster.folder)), "the code came with the job"
            assert process.environ()["HOROVOD_LOCAL_SIZE"] == "2", "both workers are on this machine"
            assert process.environ()["OMP_NUM_THREADS"] == "1", "spark.task.cpus"
        ranks[1].send_signal(signal.SIGKILL)
        job.wait(timeout=60)
    finally:
        kill_all(job)
    assert job.returncode not in (0, 2)
    assert_nothing_is_left(ranks)


def test_ctrl_c_ends_the_ranks_too(cluster: Cluster, snapshot: str, tmp_path: Path):
    job, ranks = started(cluster, snapshot, tmp_path / "run")
    try:
        os.killpg(job.pid, signal.SIGINT)  # as a terminal does
        _, err = job.communicate(timeout=60)
    finally:
        kill_all(job)
    assert {*ranks} == {0, 1}
    assert job.returncode == 130
    assert "the same command goes on" in err
    assert_nothing_is_left(ranks)


def test_a_mistake_is_one_line_and_exit_code_2(cluster: Cluster, snapshot: str, tmp_path: Path):
    spark = ("--on", "spark", "--ranks", "2")
    code, out, err = cluster.run("train", *spark, *words(snapshot, tmp_path / "run"), "--recipe", "two_towr")
    assert (code, out) == (2, "")
    assert "two_towr" in err
    assert len(said(err)) == 1
    # Nobody looks before the ranks do: rank 0 speaks for all.
    code, out, err = cluster.run("evaluate", *spark, "--run", "/nowhere")
    assert code == 2
    assert len(said(out + err)) == 1
    assert "/nowhere" in said(out + err)[0]


def test_too_few_slots_are_named(cluster: Cluster, snapshot: str, tmp_path: Path):
    conf = [f"spark.scheduler.barrier.maxConcurrentTasksCheck.{key}" for key in ("interval=1s", "maxFailures=1")]
    arguments = ["--on", "spark", "--ranks", "3", *words(snapshot, tmp_path / "run")]
    code, out, err = cluster.run("train", *arguments, conf=conf)
    assert (code, out) == (2, "")
    assert "fewer slots than 3 ranks" in err
    assert len(said(err)) == 1
