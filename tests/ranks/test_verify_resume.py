"""Runs killed in the middle of an epoch: each row once, the same losses and weights, and the command that says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import launch
from pipelines.verify_resume import Learned, kill_when, read_steps, report
from tests.snapshots import make_snapshot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SETTINGS = ["--set", "epochs=2", "--set", "batch_size_per_rank=16"]
DLRM = ["--recipe", "dlrm", *SETTINGS, "--set", "model.tables=sharded", "--set", "model.dropout=0.2"]


def test_two_ranks_killed_within_an_epoch_end_as_two_that_were_not(tmp_path):
    url = make_snapshot(tmp_path / "s", [[1500], [1500]], valid_rows=60)
    command = [sys.executable, "-m", "pipelines.cli", "verify-resume", "--snapshot", url, *DLRM, "--ranks", "2"]
    command += ["--to", str(tmp_path / "to"), "--checkpoint-every", "10", "--kill-after", "33"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=launch.ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checkpoint epoch-00000-step-0000000" in done.stdout
    assert "interrupted = uninterrupted" in done.stdout


@pytest.mark.parametrize("went_on", [1, 3])
def test_other_ranks_go_on_within_an_epoch_and_each_row_is_learned_from_once(tmp_path, went_on):
    url = make_snapshot(tmp_path / "s", [[1500], [1500]], valid_rows=60)
    arguments = ["--snapshot", url, *DLRM, "--run", str(tmp_path / "run"), "--checkpoint-every", "10"]
    kill_when(tmp_path / "trace", 33, [*arguments, "--trace", str(tmp_path / "trace")], 2)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("epoch-*-step-*")]
    assert launch.on_ranks("training.train", arguments, ranks=went_on) == 0
    epochs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["rows"] for epoch in epochs] == [3000, 3000], "and the ledger has compared their ids"


def test_runs_that_differ_are_told_apart(capsys):
    same = {(0, 0, 0): [Learned(4, 11, (0.5).hex())], (0, 0, 1): [Learned(4, 12, (0.25).hex())]}
    assert report(same, same, {"model": "a"}, {"model": "a"})
    other_loss = same | {(0, 0, 1): [Learned(4, 12, (0.25000001).hex())]}
    other_rows = same | {(0, 0, 1): [Learned(4, 13, (0.25).hex())]}
    for differing in (other_loss, other_rows, {(0, 0, 0): same[0, 0, 0]}):
        assert not report(same, differing, {"model": "a"}, {"model": "a"})
    assert not report(same, same, {"model": "a"}, {"model": "b"})
    assert "DIFFER" in capsys.readouterr().out


def test_a_line_that_the_kill_cut_short_is_left_out(tmp_path):
    line = '{"epoch": 0, "step": 3, "rows": 2, "row_ids": 7, "loss": "0x1.0p+0"}\n'
    (tmp_path / "steps-00001.jsonl").write_text(line + line[:30])
    assert read_steps(tmp_path) == {(1, 0, 3): [Learned(2, 7, "0x1.0p+0")]}


def test_a_snapshot_too_small_to_be_killed_in_is_named(tmp_path, capfd):
    url = make_snapshot(tmp_path / "s", [[64]], valid_rows=40)
    to = ["--to", str(tmp_path / "to")]
    assert launch.program("pipelines.verify_resume", ["--snapshot", url, *DLRM, *to]) == 2
    assert "the run has 8 steps, too few to be killed after 21" in capfd.readouterr().err
    assert Path(tmp_path / "to" / "whole").exists()
