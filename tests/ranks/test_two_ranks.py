"""Several ranks for real, under horovodrun: the same losses as one rank, the same metrics, nothing hangs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import launch
from schemas.bundle import RunEvaluation
from tests.snapshots import make_snapshot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def train(url: str, run: Path, recipe: str, ranks: int, batch: int) -> list[dict]:
    settings = {
        "model.width": 8,
        "model.recent": 2 if recipe == "two_tower" else 0,
        "model.dropout": 0,  # what dropout leaves out differs by rank
        "model.history_dropout": 0,
        "batch_size_per_rank": batch,
        "epochs": 3,
        "loss.num_sampled": 20,
        "optimizer.learning_rate": 0.01,
    }
    arguments = ["--snapshot", url, "--run", str(run), "--recipe", recipe]
    arguments += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    assert launch.on_ranks("training.train", arguments, ranks=ranks) == 0
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("recipe", ["two_tower", "matrix_factorisation"])
def test_one_rank_with_twice_the_batch_and_two_ranks_give_the_same_loss_curve(tmp_path, recipe):
    # 997 rows: the last global batch is short, and its halves are unequal.
    url = make_snapshot(tmp_path / "s", [[200, 150], [400], [247]])
    alone = train(url, tmp_path / "alone", recipe, ranks=1, batch=64)
    together = train(url, tmp_path / "together", recipe, ranks=2, batch=32)
    assert len(alone) == len(together) == 3
    for one, two in zip(alone, together, strict=True):
        assert two["rows"] == one["rows"] == 997
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["valid"]["full"] == pytest.approx(one["valid"]["full"], abs=1e-3)


def test_three_ranks_on_one_row_group_and_fewer_rows_than_a_batch_train_each_row_once(tmp_path):
    url = make_snapshot(tmp_path / "s", [[50]], valid_rows=5, test_rows=5)
    epochs = train(url, tmp_path / "run", "two_tower", ranks=3, batch=64)
    assert [epoch["rows"] for epoch in epochs] == [50, 50, 50]
    assert [epoch["valid"]["num_rows"] for epoch in epochs] == [5, 5, 5]


def test_two_ranks_evaluate_as_one_does(tmp_path):
    url = make_snapshot(tmp_path / "s", [[300]], test_rows=101)
    train(url, tmp_path / "run", "two_tower", ranks=1, batch=32)
    found = {}
    for ranks in (1, 2):
        assert launch.on_ranks("training.evaluate", ["--run", str(tmp_path / "run")], ranks=ranks) == 0
        path = tmp_path / "run" / "evaluation-test.json"
        found[ranks] = RunEvaluation.model_validate_json(path.read_text())
        path.unlink()
    assert found[1].model.num_rows == found[2].model.num_rows == 101
    assert found[1].model.full == pytest.approx(found[2].model.full)
    assert found[1].model.sampled == pytest.approx(found[2].model.sampled)
    assert found[1].popularity.full == pytest.approx(found[2].popularity.full)


def test_a_file_cut_short_ends_all_ranks_with_its_name_instead_of_a_hang(tmp_path):
    url = make_snapshot(tmp_path / "s", [[100], [100]])
    damaged = Path(url) / "train" / "part-00001.parquet"
    content = bytearray(damaged.read_bytes())
    content[20:600] = b"\0" * 580  # same size, so that only reading finds it
    damaged.write_bytes(bytes(content))
    command = ["--snapshot", url, "--run", str(tmp_path / "run"), "--recipe", "two_tower", "--set", "model.recent=2"]
    program = f"from pipelines import launch; raise SystemExit(launch.on_ranks('training.train', {command!r}, ranks=2))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode != 0
    assert "part-00001.parquet" in done.stdout + done.stderr


def test_the_command_line_checks_settings_before_it_starts_any_rank(tmp_path, capfd):
    from pipelines.cli import main

    url = make_snapshot(tmp_path / "s", [[50]])
    code = main(["train", "--ranks", "2", "--snapshot", url, "--run", str(tmp_path / "r"), "--recipe", "two_tover"])
    assert code == 2
    shown = capfd.readouterr()
    assert len((shown.out + shown.err).strip().splitlines()) == 1
    assert "did you mean 'two_tower'" in shown.err
