"""Rankers on several ranks for real: the losses and metrics of one rank, wherever the tables lie."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipelines import launch
from pipelines.cli import main
from tests.snapshots import make_snapshot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SETTINGS = {
    "model.width": 4,
    "model.top": "[16]",
    "loss.heads": "{label: 1.0, label_like: 0.5}",
    "optimizer.learning_rate": 0.01,
    "optimizer.table_learning_rate": 0.1,
    "epochs": 3,
    "patience": 3,
}


def train(url: str, run: Path, recipe: str, ranks: int, **more: object) -> list[dict]:
    arguments = ["--snapshot", url, "--run", str(run), "--recipe", recipe]
    arguments += [word for key, value in (SETTINGS | more).items() for word in ("--set", f"{key}={value}")]
    assert launch.on_ranks("training.train", arguments, ranks=ranks) == 0
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_ranks_with_unequal_shares_of_a_batch_learn_what_one_rank_learns_of_it(tmp_path):
    url = make_snapshot(tmp_path / "s", [[600]])

    def learned(ranks: int, launcher: launch.Launcher) -> dict[str, dict[str, list[float]]]:
        out = tmp_path / f"{ranks}-{launcher}.json"
        code = launch.on_ranks("tests.ranks.ranker_program", [url, str(out)], ranks=ranks, launcher=launcher)
        assert code == 0
        return json.loads(out.read_text())

    alone = learned(1, "horovod")
    for ranks, launcher in ((2, "horovod"), (3, "horovod"), (3, "torch")):
        together = learned(ranks, launcher)
        half = together.pop("half")
        assert half["losses"] == pytest.approx(alone["half"]["losses"], rel=2e-3)
        assert half["losses"] != together["replicated, adagrad"]["losses"], "float16 loses digits"
        for tables, found in together.items():
            assert found["losses"] == pytest.approx(alone[tables]["losses"], rel=1e-5)
            assert found["logits"] == pytest.approx(alone[tables]["logits"], abs=1e-4)


def test_torchrun_trains_and_evaluates_as_horovod_does(tmp_path, capfd):
    url = make_snapshot(tmp_path / "s", [[300], [201]], valid_rows=61)
    arguments = ["train", "--snapshot", url, "--recipe", "dlrm", "--ranks", "2", "--set", "epochs=2"]
    arguments += ["--set", "batch_size_per_rank=32", "--set", "model.tables=sharded"]
    epochs = {}
    for on in ("horovod", "torch"):
        assert main([*arguments, "--run", str(tmp_path / on), "--on", on]) == 0
        lines = (tmp_path / on / "metrics.jsonl").read_text().splitlines()
        epochs[on] = [json.loads(line) for line in lines]
        assert main(["evaluate", "--run", str(tmp_path / on), "--ranks", "2", "--on", on]) == 0
    for here, there in zip(epochs["horovod"], epochs["torch"], strict=True):
        assert (there["rows"], there["valid"]["num_rows"]) == (501, 61)
        assert there["loss"] == pytest.approx(here["loss"], rel=1e-5)
        assert there["valid"]["heads"]["label"] == pytest.approx(here["valid"]["heads"]["label"], abs=1e-4)
    capfd.readouterr()
    runs = [str(tmp_path / on) for on in ("horovod", "torch")]
    assert main(["compare", *runs, "--ranks", "2", "--on", "torch"]) == 0
    assert "test, label: the first run minus the second" in capfd.readouterr().out


def test_two_ranks_train_and_evaluate_as_one_does(tmp_path):
    # 997 rows: the last global batch is short and its halves are unequal.
    url = make_snapshot(tmp_path / "s", [[200, 150], [400], [247]], valid_rows=101, unknown_likes=True)
    alone = train(url, tmp_path / "alone", "dlrm", 1, batch_size_per_rank=64)
    together = train(url, tmp_path / "two", "dlrm", 2, batch_size_per_rank=32)
    for here, there in zip(alone, together, strict=True):
        assert there["rows"] == here["rows"] == 997
        assert there["loss"] == pytest.approx(here["loss"], rel=1e-4)
        for head, metrics in here["valid"]["heads"].items():
            assert there["valid"]["heads"][head] == pytest.approx(metrics, abs=2e-3, nan_ok=True)


def test_a_run_that_was_killed_goes_on_from_its_sharded_tables_as_if_nothing_had_been(tmp_path):
    url = make_snapshot(tmp_path / "s", [[2000], [2000]], valid_rows=60)
    settings = {"model.tables": "sharded", "batch_size_per_rank": 16, "epochs": 4, "patience": 4}
    whole = train(url, tmp_path / "whole", "dcn_v2", 2, **settings)
    killed = tmp_path / "killed"
    arguments = ["--snapshot", url, "--run", str(killed), "--recipe", "dcn_v2"]
    arguments += [word for key, value in (SETTINGS | settings).items() for word in ("--set", f"{key}={value}")]
    program = f"from pipelines import launch; launch.on_ranks('training.train', {arguments!r}, ranks=2)"
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list((killed / "checkpoints").glob("epoch-0000[1-2]")):
            time.sleep(0.02)
    finally:
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            with suppress(psutil.Error):
                one.kill()
        process.wait(timeout=60)
    assert not (killed / "bundle").exists(), "the run ended before it could be killed"
    went_on = train(url, killed, "dcn_v2", 2, **settings)
    assert [epoch["loss"] for epoch in went_on] == pytest.approx([epoch["loss"] for epoch in whole], rel=1e-5)


def test_ranks_without_rows_take_part(tmp_path):
    url = make_snapshot(tmp_path / "s", [[50]], valid_rows=2, test_rows=2)
    settings = {"model.tables": "sharded", "batch_size_per_rank": 48, "chosen_by": "log_loss"}
    epochs = train(url, tmp_path / "run", "dlrm", 3, **settings)
    assert [epoch["rows"] for epoch in epochs] == [50, 50, 50]
    assert [epoch["valid"]["num_rows"] for epoch in epochs] == [2, 2, 2]
