"""Runs: checkpoints whole or not at all, interrupted runs go on as if nothing had been, mistakes are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.snapshots import make_snapshot
from training.bundle import load_bundle

RECIPE = ["--recipe", "two_tower"]
for _override in ("model.recent=2", "model.width=8", "batch_size_per_rank=16"):
    RECIPE += ["--set", _override]


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def call(module: str, *arguments: str) -> tuple[int, str, str]:
    process = start(module, *arguments)
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


def train(url: str, run: Path, *more: str) -> tuple[int, str, str]:
    return call("training.train", "--snapshot", url, "--run", str(run), *RECIPE, *more)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_that_was_killed_and_went_on_ends_as_one_that_was_not(tmp_path):
    url = make_snapshot(tmp_path / "s", [[400, 400], [300]])
    settings = ["--set", "epochs=12", "--set", "patience=12"]
    assert train(url, tmp_path / "whole", *settings)[0] == 0

    killed = tmp_path / "killed"
    process = start("training.train", "--snapshot", url, "--run", str(killed), *RECIPE, *settings)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((killed / "checkpoints").glob("epoch-0000[2-9]")):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (killed / "bundle").exists(), "the run ended before it could be killed"
    code, _, err = train(url, killed, *settings)
    assert code == 0, err

    assert losses(killed) == losses(tmp_path / "whole")
    ours, theirs = (load_bundle(run / "bundle").model.state_dict() for run in (killed, tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_train_evaluate_and_recommend_as_programs(tmp_path):
    url = make_snapshot(tmp_path / "s", [[200], [200]])
    run = tmp_path / "run"
    code, out, err = train(url, run, "--set", "epochs=2")
    assert code == 0, err
    assert "published" in out
    assert {path.name for path in run.iterdir()} == {
        "run.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "bundle",
    }
    assert len(list((run / "checkpoints").iterdir())) <= 2

    code, out, err = train(url, run, "--set", "epochs=2")
    assert (code, "stands already" in out) == (0, True), err
    code, _, err = train(url, run, "--set", "epochs=3")
    assert code == 2
    assert err.strip() == f"train: {run} holds a run with another recipe: give --run another name."

    code, out, err = call("training.evaluate", "--run", str(run), "--split", "test")
    assert code == 0, err
    found = json.loads((run / "evaluation-test.json").read_text())
    assert found["model"]["num_rows"] == 40
    assert set(found["popularity"]["full"]) == set(found["model"]["full"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--snapshot", "/nowhere", "--run", "/tmp/never-made"], "/nowhere is no published folder"),
        (["--snapshot", "SNAPSHOT", "--run", "FILE/run"], "cannot write the run folder"),
        (["--snapshot", "SNAPSHOT", "--run", "FOREIGN"], "is no run folder and not empty"),
    ],
)
@pytest.mark.slow
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, says):
    places = {"SNAPSHOT": make_snapshot(tmp_path / "s", [[20]]), "FILE": str(tmp_path / "file")}
    places |= {"FOREIGN": str(tmp_path / "foreign"), "NEW": str(tmp_path / "new")}
    (tmp_path / "file").write_text("x")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "mine").write_text("x")
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    code, _, err = call("training.train", *arguments, *RECIPE)
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert (tmp_path / "foreign" / "mine").read_text() == "x"


def test_a_bundle_needs_nothing_of_spark_petastorm_or_horovod(tmp_path):
    program = (
        "import sys, training.bundle, training.models.build;"
        "print([name for name in ('pyspark', 'petastorm', 'horovod') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
