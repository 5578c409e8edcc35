"""The demo as a newcomer runs it, on the real log: from raw lines to recommendations, and again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schemas.bundle import RunEvaluation
from schemas.snapshot import open_snapshot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

HEADRACE = [sys.executable, "-m", "pipelines.cli"]


def demo(folder: Path) -> tuple[str, float]:
    began = time.monotonic()
    wide = {**os.environ, "COLUMNS": "240"}  # tables without folded cells
    command = [*HEADRACE, "demo", "--to", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=wide)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout, time.monotonic() - began


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo") / "ml"
    shown, _ = demo(folder)
    return folder, shown


def test_the_demo_ends_with_ledger_metrics_recommendations_and_places(first_run):
    folder, shown = first_run
    assert "100,000 accepted + 0 duplicates + 0 quarantined" in shown
    ledger = open_snapshot(str(folder / "snapshot")).manifest.ledger.splits
    assert (ledger.accepted, ledger.train + ledger.valid + ledger.test) == (100_000, 100_000)
    assert f"{ledger.train:,} train + {ledger.valid:,} valid + {ledger.test:,} test" in shown
    assert "two_tower against popularity" in shown
    assert re.search(r"For user 1, by two_tower", shown)
    assert len(re.findall(r"│ +\d+ │ \d+ +│ \w", shown)) == 10
    assert str(folder / "two_tower") in shown


def test_the_trained_model_beats_popularity_by_a_quarter_in_ndcg_on_the_split_by_time(first_run):
    folder, _ = first_run
    found = RunEvaluation.model_validate_json((folder / "two_tower" / "evaluation-test.json").read_text())
    assert found.query_grain == "event"
    assert found.model.full["ndcg@10"] >= 1.25 * found.popularity.full["ndcg@10"]


def test_a_second_run_does_nothing_twice_and_ends_in_90_seconds(first_run):
    folder, first = first_run
    watched = [path for path in folder.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in watched}
    shown, seconds = demo(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert shown.count("stands already") == 4
    assert seconds < 90

    def tables(text: str) -> str:
        return text.partition("[7/7]")[2].partition("demo: done")[0]

    assert tables(shown) == tables(first)


def test_a_file_that_is_changed_after_the_demo_stops_the_next_run_with_its_name(first_run):
    folder, _ = first_run
    file = sorted((folder / "snapshot" / "train").glob("*.parquet"))[0]
    sound = file.read_bytes()
    damaged = bytearray(sound)
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(bytes(damaged))
    try:
        command = [*HEADRACE, "check", str(folder / "snapshot")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        file.write_bytes(sound)
    assert done.returncode == 2
    assert file.name in done.stderr
    assert "was changed" in done.stderr
