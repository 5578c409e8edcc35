"""Runs in MLflow: what is there of them, each epoch once, the registry, and servers that are away."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from schemas.errors import UserError
from schemas.snapshot import open_snapshot
from tests.postgres import running_postgres
from tests.snapshots import make_snapshot
from training import register, tracking
from training.bundle import load_bundle
from training.mlflow_store import MlflowStore, name_of
from training.ranks import OneRank, RanksChanged
from training.recipe import read_recipe
from training.run_folder import METRICS, RunFolder
from training.tracking import EXPERIMENT, TRACKED, Mirror, follow, tracked_by
from training.train import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SMALL = ["model.width=4", "model.top=[8]", "batch_size_per_rank=64", "epochs=2", "patience=9"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_snapshot(tmp_path_factory.mktemp("data") / "s", [[150], [150]], valid_rows=150)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all tests: MLflow takes seconds to make its tables."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def tracked(url: str, store: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two epochs, tracked."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "clicks-1")
    train_tracked(url, folder, store)
    return folder


def train_tracked(url: str, folder: RunFolder, track: str, *overrides: str) -> None:
    with follow(track, EXPERIMENT, folder, OneRank()) as following:
        train(
            OneRank(),
            snapshot_url=url,
            recipe=read_recipe("dlrm", [*SMALL, *overrides]),
            folder=folder,
            check_only=False,
            tensorboard=False,
            tracking=following,
        )


def client(uri: str):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def losses_there(uri: str, folder: RunFolder) -> list[tuple[int, float]]:
    history = client(uri).get_metric_history(tracked_by(folder)["run_id"], "loss")
    return sorted((metric.step, metric.value) for metric in history)


def losses_here(folder: RunFolder) -> list[tuple[int, float]]:
    lines = (folder.path / METRICS).read_text().splitlines()
    return [(line["epoch"], line["loss"]) for line in map(json.loads, lines)]


def test_settings_metrics_tags_and_manifest_of_a_run_are_there(url, store, tracked):
    run = client(store).get_run(tracked_by(tracked)["run_id"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "clicks-1")
    params = {"model.name": "dlrm", "model.width": "4", "model.top": "[8]", "loss.heads.label": "1.0", "epochs": "2"}
    assert run.data.params.items() >= params.items()
    manifest = open_snapshot(url).manifest
    assert run.data.tags["headrace.snapshot_id"] == manifest.id
    assert run.data.tags["headrace.snapshot_digest"] == manifest.digest()
    assert run.data.tags["headrace.world_size"] == "1"
    assert losses_there(store, tracked) == losses_here(tracked)
    assert [step for step, _ in losses_there(store, tracked)] == [0, 1]
    last = json.loads((tracked.path / METRICS).read_text().splitlines()[-1])
    assert run.data.metrics["valid/label/auc"] == last["valid"]["heads"]["label"]["auc"]
    (manifest_there,) = client(store).list_artifacts(run.info.run_id)
    assert manifest_there.path == "bundle.json"
    assert not (tracked.path / "tensorboard").exists()


def test_a_run_that_broke_off_goes_on_in_its_own_mlflow_run_with_each_epoch_once(url, store, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "broken")
    append = RunFolder.append_metrics

    def append_and_break(self: RunFolder, line: dict[str, object]) -> None:
        append(self, line)
        if line["epoch"] == 2:  # written down, and in no checkpoint yet
            raise OSError("the disk went away")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_metrics", append_and_break)
        with pytest.raises(OSError, match="the disk went away"):
            train_tracked(url, folder, store, "epochs=4")
    first = tracked_by(folder)["run_id"]
    assert client(store).get_run(first).info.status == "FAILED"
    assert [step for step, _ in losses_there(store, folder)] == [0, 1]

    train_tracked(url, folder, store, "epochs=4")
    assert tracked_by(folder)["run_id"] == first
    assert client(store).get_run(first).info.status == "FINISHED"
    assert [step for step, _ in losses_there(store, folder)] == [0, 1, 2, 3]
    assert losses_there(store, folder) == losses_here(folder)


def test_an_epoch_whose_answer_was_lost_is_there_once(store, tracked, tmp_path, monkeypatch):
    folder = RunFolder(shutil.copytree(tracked.path, tmp_path / "copied"))
    (folder.path / TRACKED).unlink()
    log = MlflowStore.log_epoch

    def log_and_lose_the_answer(self: MlflowStore, run_id: str, epoch: int, values: dict[str, float]) -> None:
        log(self, run_id, epoch, values)
        raise TimeoutError("no answer")

    mirror = Mirror(store, EXPERIMENT, folder, 1)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowStore, "log_epoch", log_and_lose_the_answer)
        with pytest.raises(TimeoutError):
            mirror.bring()
    assert [step for step, _ in losses_there(store, folder)] == [0]
    mirror.bring()
    assert losses_there(store, folder) == losses_here(folder)


def test_where_ranks_change_the_run_stays_open_and_nothing_is_waited_for(store, tracked, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_POLL_S", 0.05)
    folder = RunFolder(shutil.copytree(tracked.path, tmp_path / "changing"))
    (folder.path / TRACKED).unlink()
    shutil.rmtree(folder.bundle)
    threads: list[threading.Thread] = []

    def change() -> None:
        with follow(store, EXPERIMENT, folder, OneRank()) as following:
            assert following is not None
            threads.append(following._thread)
            following.start()
            until = time.monotonic() + 60
            while not (tracked_by(folder) and losses_there(store, folder)) and time.monotonic() < until:
                time.sleep(0.05)
            raise RanksChanged

    with pytest.raises(RanksChanged):
        change()
    threads[0].join(30)  # nobody else waits for it
    assert client(store).get_run(tracked_by(folder)["run_id"]).info.status == "RUNNING"


def test_who_has_left_brings_no_further_epoch(store, tracked, tmp_path):
    folder = RunFolder(shutil.copytree(tracked.path, tmp_path / "left"))
    (folder.path / TRACKED).unlink()
    mirror = Mirror(store, EXPERIMENT, folder, 1)
    mirror.left.set()
    mirror.bring()
    assert losses_there(store, folder) == []


def test_a_registered_bundle_is_fetched_by_its_alias_and_is_one_version_however_often_it_is_registered(
    store, tracked, tmp_path, capsys
):
    import mlflow

    command = ["--run", str(tracked.path), "--model", "clicks"]
    assert register.main([*command, "--alias", "challenger"]) == 0
    assert register.main([*command, "--alias", "champion"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"register: {tracked.bundle} is version 1 of clicks, which is its challenger",
        f"register: {tracked.bundle} was version 1 of clicks, which is its champion",
    ]
    found = client(store).get_model_version_by_alias("clicks", "champion")
    assert (str(found.version), found.run_id) == ("1", tracked_by(tracked)["run_id"])
    mlflow.set_registry_uri(store)
    mlflow.set_tracking_uri(store)
    fetched = Path(mlflow.artifacts.download_artifacts("models:/clicks@champion", dst_path=str(tmp_path)))
    assert {file.name for file in fetched.iterdir()} >= {file.name for file in tracked.bundle.iterdir()}
    theirs, ours = (load_bundle(folder).model.state_dict() for folder in (fetched, tracked.bundle))
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--run", "/nowhere", "--model", "m"], "/nowhere has no bundle: has `headrace train` come to its end?"),
        (["--run", "RUN", "--model", "a/b"], "--model 'a/b': a model's name is of letters"),
        (["--run", "RUN", "--model", "m", "--alias", "v2"], "--alias 'v2': an alias begins with a letter"),
        (["--run", "RUN", "--model", "m", "--track", "http://127.0.0.1:1"], "cannot register in MLflow at http:"),
    ],
)
def test_what_cannot_be_registered_is_answered_in_one_line(tracked, capsys, arguments, says):
    assert register.main([str(tracked.path) if word == "RUN" else word for word in arguments]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("answers", ["refuses", "is silent"])
def test_training_ends_well_and_warns_once_where_the_server_is_away(
    url, store, tmp_path, capsys, monkeypatch, silent_server, answers
):
    monkeypatch.setattr(tracking, "_LAST_WAIT_S", 1.5)
    folder = RunFolder(tmp_path / "run")
    train_tracked(url, folder, "http://127.0.0.1:1" if answers == "refuses" else silent_server, "epochs=1")
    said = [line for line in capsys.readouterr().out.splitlines() if "warning: cannot track" in line]
    assert len(said) == 1
    assert said[0].startswith("train: warning: cannot track in MLflow at http://127.0.0.1:")
    assert folder.is_complete()

    monkeypatch.undo()
    train_tracked(url, folder, store, "epochs=1")
    assert losses_there(store, folder) == losses_here(folder), "the same command brings what was missed"


def test_a_run_in_postgresql_is_tracked_and_its_password_stands_nowhere(url, tmp_path, monkeypatch, capfd):
    with running_postgres() as server:
        monkeypatch.setenv("PGPASSWORD", server.password)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.store("tracking"))
        folder = RunFolder(tmp_path / "run")
        train_tracked(url, folder, "env")
        assert losses_there(tracked_by(folder)["uri"], folder) == losses_here(folder)
        assert register.main(["--run", str(folder.path), "--model", "clicks", "--alias", "champion"]) == 0
        version = client(tracked_by(folder)["uri"]).get_model_version_by_alias("clicks", "champion")
        assert version.run_id == tracked_by(folder)["run_id"]
    shown = capfd.readouterr()
    assert server.password not in shown.out + shown.err
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or server.password.encode() not in file.read_bytes(), file


def test_the_environment_counts_only_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:geheim@host:5000")
    with follow(None, EXPERIMENT, RunFolder(tmp_path), OneRank()) as following:
        assert following is None
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI: the address holds a password") as error:
        tracking.uri_of("env")
    assert "geheim" not in str(error.value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match="takes the address from MLFLOW_TRACKING_URI, which is not set"):
        tracking.uri_of("env")


def test_training_that_is_not_tracked_imports_neither_mlflow_nor_tensorboard():
    program = "import sys, training.train; print([n for n in ('mlflow', 'tensorboard') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_are_such_as_mlflow_takes():
    assert name_of("valid/ndcg@10") == "valid/ndcg_at_10"
    assert name_of("loss.heads.a label?") == "loss.heads.a label_"
