"""What starts ranks on executors, without Spark: the line to the driver, the rendezvous, what a host must have."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipelines import cli, launch
from schemas.errors import UserError
from schemas.programs import TRIAL
from spark_jobs import rank_task
from spark_jobs.rank_output import MOST_BYTES, Line, Listener, listening
from spark_jobs.rank_task import Place, RankJob
from training.programs import share_cores


@pytest.fixture
def shown() -> list[str]:
    return []


@pytest.fixture
def listener(shown: list[str]) -> Iterator[Listener]:
    with listening("127.0.0.1", shown.append) as heard:
        yield heard


def test_lines_come_in_order_before_the_exit_code_and_refusals_are_kept(listener: Listener, shown: list[str]):
    line = Line("127.0.0.1", listener.port, listener.secret)
    said = [f"train: Ärger {number}" for number in range(100)] + ["é" * MOST_BYTES]
    for one in said:
        line.say(one)
    line.ended(3, 137)  # returns when the driver has it
    assert shown == said
    assert listener.exit_codes == {3: 137}
    line.refuse("no room")
    assert listener.refusals == ["no room"]
    assert line.own_address == "127.0.0.1"


def test_who_does_not_know_the_secret_is_not_heard(listener: Listener, shown: list[str]):
    stranger = Line("127.0.0.1", listener.port, "0" * 64)
    hung_up = threading.Event()
    stranger.when_hung_up(hung_up.set)
    assert hung_up.wait(10)
    assert (shown, listener.exit_codes) == ([], {})


def test_the_secret_never_goes_over_the_wire(listener: Listener):
    with socket.create_connection(("127.0.0.1", listener.port)) as first:
        challenges = {first.makefile("rb").readline()}
    with socket.create_connection(("127.0.0.1", listener.port)) as second:
        challenges.add(second.makefile("rb").readline())
    assert len(challenges) == 2, "an answer that was overheard is of no use"
    assert all(listener.secret.encode() not in challenge for challenge in challenges)


def test_tasks_learn_that_the_driver_is_gone():
    hung_up = threading.Event()
    with listening("127.0.0.1", print) as listener:
        line = Line("127.0.0.1", listener.port, listener.secret)
        line.when_hung_up(hung_up.set)
        line.ended(0, 0)
        assert not hung_up.is_set()
    assert hung_up.wait(10)


def test_the_rendezvous_numbers_ranks_host_by_host_and_ends_with_its_input():
    command = [sys.executable, "-m", "training.rendezvous", "--address", "10.0.0.1"]
    command += ["--host", "a", "2", "eth0", "--host", "b", "1", "eth1"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=launch.environment(), stdin=pipe, stdout=pipe, text=True) as server:
        assert server.stdout is not None
        found = json.loads(server.stdout.readline())
        names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "GLOO_IFACE")
        numbers = {host: [[rank[f"HOROVOD_{name}"] for name in names] for rank in of] for host, of in found.items()}
        assert numbers == {
            "a": [["0", "3", "0", "2", "0", "2", "eth0"], ["1", "3", "1", "2", "0", "1", "eth0"]],
            "b": [["2", "3", "0", "1", "1", "2", "eth1"]],
        }
        rank = found["b"][0]
        assert (rank["HOROVOD_CONTROLLER"], rank["HOROVOD_GLOO_RENDEZVOUS_ADDR"]) == ("gloo", "10.0.0.1")
        socket.create_connection(("127.0.0.1", int(rank["HOROVOD_GLOO_RENDEZVOUS_PORT"])), timeout=10).close()
        server.communicate(timeout=20)
    assert server.returncode == 0


def test_ranks_of_a_host_see_its_gpus_in_the_order_of_their_local_ranks():
    places = [
        Place(host=host, interface="eth0", address="10.0.0.1", gpu=gpu)
        for host, gpu in (("a", "3"), ("b", "0"), ("a", "1"), ("c", None))
    ]
    assert rank_task.gpus_of("a", places) == {"CUDA_VISIBLE_DEVICES": "3,1"}
    assert rank_task.gpus_of("b", places) == {"CUDA_VISIBLE_DEVICES": "0"}
    assert rank_task.gpus_of("c", places) == {}


def test_a_host_that_lacks_what_ranks_need_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def job(folder: Path) -> RankJob:
        return RankJob(module="m", arguments=(), folder=str(folder), code=None, driver="", port=0, secret="")

    assert rank_task.unfit(job(tmp_path)) is None
    assert f"{socket.gethostname()} has no folder {tmp_path}/away" in (rank_task.unfit(job(tmp_path / "away")) or "")
    monkeypatch.setattr(rank_task, "_NEEDED", ("torch", "no_such_package_of_ours"))
    assert f"{sys.executable} on {socket.gethostname()} lacks no_such_package" in (rank_task.unfit(job(tmp_path)) or "")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--master", "spark://a:7077"], "--on spark too"),
        (["--on", "spark", "--hosts", "a:1"], "--hosts is horovodrun's"),
        (["--on", "spark", "--conf", "spark.submit.deployMode=cluster"], "deployMode at client"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(capsys, options, says):
    assert cli.main(["evaluate", *options, "--run", "/nowhere"]) == 2
    answer = capsys.readouterr().err
    assert says in answer
    assert len(answer.splitlines()) == 1


@pytest.mark.parametrize("name", ["PGPASSWORD", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"])
def test_a_password_is_refused_before_ssh_would_show_it(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "geheim")
    with pytest.raises(UserError, match=f"{name} would stand on ssh's command line") as error:
        launch.on_ranks("training.train", [], ranks=2, hosts="a:1,b:1")
    assert "geheim" not in str(error.value)


def test_the_threads_that_a_search_gives_a_trial_are_not_taken_for_torchruns(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cores = len(os.sched_getaffinity(0))
    try:
        torch.set_num_threads(cores + 1)
        with monkeypatch.context() as patch:
            patch.setenv(TRIAL, "trials/00000")
            share_cores()
        assert torch.get_num_threads() == cores + 1
        share_cores()
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)


def test_the_code_that_goes_along_can_run_from_where_it_is_unpacked(tmp_path: Path):
    launch.zip_of_code(tmp_path / "code.zip", ("schemas", "training"))
    subprocess.run([sys.executable, "-m", "zipfile", "-e", "code.zip", "code"], cwd=tmp_path, check=True)
    command = [
        sys.executable,
        "-P",
        "-c",
        "import training.recipe as r; print(r.read_recipe('dlrm', []).model.name, r.__file__)",
    ]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": "code"}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split() == ["dlrm", str(tmp_path / "code/training/recipe.py")], done.stderr
