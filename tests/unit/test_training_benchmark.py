"""The training benchmark: what was measured is kept, and its tables say what follows from the runs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.results import Results
from benchmarks.training_parts import faults, quality, speed, tables
from benchmarks.training_parts.programs import json_lines
from schemas.errors import UserError


def shown() -> Console:
    return Console(width=200, record=True, file=io.StringIO())


def test_what_was_measured_is_found_again_by_a_later_call(tmp_path):
    results = Results(tmp_path / "to" / "results.jsonl")
    key = {"part": "speed", "tool": "ddp", "ranks": 2}
    assert results.find(key) is None
    results.add(key, {"samples_per_s": 5.0})
    again = Results(tmp_path / "to" / "results.jsonl")
    assert again.find(key) == {**key, "samples_per_s": 5.0}
    assert again.find({**key, "ranks": 1}) is None


def test_a_tool_is_set_beside_headrace_by_medians_of_its_rounds(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    for number, (own, ddp) in enumerate([(100.0, 10.0), (300.0, 60.0), (200.0, 50.0)]):
        key = {"part": "speed", "rows": 9, "layers": "small", "ranks": 1, "round": number}
        both = {"peak_rss_mb": 1.0}
        own_run = {"samples_per_s": own, "samples_per_s_in_memory": 2 * own, "feed_share": 0.5 + number / 10}
        results.add({**key, "tool": speed.HEADRACE}, {**both, **own_run})
        results.add({**key, "tool": "ddp"}, {**both, "samples_per_s": ddp})
    found = speed.show(results, shown(), rows=9)
    assert found == {"small-1": {"samples_per_s": 200.0, "of_in_memory": 0.6, "times_ddp": 4.0}}


def test_every_peer_runs_on_the_same_snapshot_model_and_batch():
    for name in speed.PEERS:
        words = speed.command(name, Path("/s"), ranks=2, layers="large", steps=7, runs=1)
        assert words[words.index("--snapshot") : words.index("--snapshot") + 8] == [
            "--snapshot",
            "/s",
            "--layers",
            "large",
            "--batch",
            "8192",
            "--steps",
            "7",
        ]
        assert "2" in words


def test_the_crossing_is_the_first_size_at_which_rows_shared_out_are_faster(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    for mb, whole, by_rows, planner in ((1.0, 5.0, 9.0, "replicated"), (4.0, 20.0, 9.0, "sharded")):
        for policy, ms in (("replicated", whole), ("sharded", by_rows)):
            run = {"rows": 10, "step_ms": ms, "peak_rss_mb": 1.0, "planner": planner}
            results.add({"part": "tables", "mb": mb, "policy": policy, "cap_mb": 0}, run)
    largest = {"part": "tables", "mb": 64.0, "policy": "sharded"}
    run = {"rows": 10, "step_ms": 9.0, "peak_rss_mb": 1.0, "planner": "sharded"}
    results.add({**largest, "cap_mb": 0}, run)
    results.add({**largest, "cap_mb": 500}, run)
    found = tables.show(results, shown())
    assert found == {"by_rows_faster_from_mb": 4.0, "planner_by_rows_from_mb": 4.0, "capped": 1}


def test_quality_is_the_mean_over_seeds(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    for seed, auc in enumerate((0.7, 0.8)):
        found = {"auc": {"label": auc, "label_long_view": auc - 0.1}}
        results.add({"part": "quality", "model": "dlrm", "seed": seed}, found)
    assert quality.show(results, shown()) == {"dlrm": {"label": 0.75, "label_long_view": 0.65}}


def test_a_run_that_lost_a_row_is_told_apart(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    same = {"rows_of_epochs": [10, 10], "loss": [0.5, 0.4], "valid_log_loss": 0.41, "valid_auc": 0.7}
    results.add({"part": "faults", "rows": 9, "kills": 0, "seed": 0}, same)
    results.add(
        {"part": "faults", "rows": 9, "kills": 30, "seed": 0}, {**same, "rows_of_epochs": [10, 9], "killed": 30}
    )
    found = faults.show(results, shown(), rows=9)
    assert found["killed"] == 30
    assert found["undisturbed"] == [0.41, 0.41]
    assert not found["every_row_of_every_epoch"]


def test_a_program_that_fails_is_named_with_its_log(tmp_path):
    import sys

    ends = [sys.executable, "-c", "print('{\"a\": 1}'); print('rest')"]
    assert json_lines(ends, tmp_path / "logs" / "x.log") == [{"a": 1}]
    with pytest.raises(UserError, match=r"ended with code 3: what it said is in .*x\.log"):
        json_lines([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "x.log")


def test_the_other_learners_see_lists_as_shares_of_their_values(tmp_path):
    from benchmarks.training_peers.other_learners import one_hot

    class Two:
        def columns(self, split: str) -> list[tuple[str, np.ndarray]]:
            history = np.array([[0, 3, 4], [0, 0, 0]], dtype=np.int32)
            return [("age", np.array([0.5, 2.0], np.float32)), ("history", history)]

    found = one_hot(Two(), "train", {"history": 6}).toarray()  # type: ignore[arg-type]
    assert found.tolist() == [[0.5, 0, 0, 0, 0.5, 0.5, 0], [2.0, 0, 0, 0, 0, 0, 0]]
    assert json.dumps(found.shape) == "[2, 7]"
