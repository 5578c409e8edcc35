"""What the pods of a PyTorchJob run, run here: each pod's command, with the variables that its operator sets."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from pipelines import cli, launch
from schemas.bundle import BUNDLE
from tests.snapshots import make_snapshot
from tests.spark.cluster import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_the_pods_of_a_pytorchjob_train_together(capsys, tmp_path: Path):
    url, run = make_snapshot(tmp_path / "s", [[200, 150], [250]]), tmp_path / "run"
    settings = ["--set", "model.width=8", "--set", "model.recent=2", "--set", "epochs=1"]
    arguments = ["--kind", "pytorchjob", "--image", "i", "--ranks", "2", "--", "train", "--snapshot", url]
    assert cli.main(["manifest", *arguments, "--run", str(run), *settings]) == 0
    replicas = yaml.safe_load(capsys.readouterr().out)["spec"]["pytorchReplicaSpecs"]
    port = free_port()
    pods = []
    for rank, kind in enumerate(("Master", "Worker")):
        container = replicas[kind]["template"]["spec"]["containers"][0]
        operator = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        own = {variable["name"]: variable["value"] for variable in container["env"]}
        words = container["command"]
        for name, value in operator.items():
            words = [word.replace(f"$({name})", value) for word in words]
        environment = {**os.environ, **launch.environment(), **own, **operator, "OMP_NUM_THREADS": "1"}
        pods.append(
            subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    said = [pod.communicate(timeout=240)[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], said
    assert json.loads((run / "bundle" / BUNDLE).read_text(encoding="utf-8"))["world_size"] == 2
