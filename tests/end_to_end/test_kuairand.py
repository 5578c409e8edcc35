"""KuaiRand-Pure from its files as they are to a trained model: real impressions, with the dirt known of them."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from schemas.bundle import RunEvaluation
from schemas.snapshot import open_snapshot

RAW = Path(__file__).parents[3] / "shared" / "data" / "kuairand"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not RAW.is_dir(), reason=f"{RAW} is not there: KuaiRand-Pure, from its authors' site"),
]


def _headrace(*arguments: str) -> str:
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ingested and prepared with a feature of every kind."""
    folder = tmp_path_factory.mktemp("kuairand")
    shown = _headrace("ingest", "--contract", "kuairand", "--raw", f"{RAW}", "--out", f"{folder / 'events'}")
    assert "events: 228,329 rows = 222,444 accepted + 5,885 duplicates + 0 quarantined" in shown
    sizes = (
        "--history-length",
        "20",
        "--seen-length",
        "200",
        "--num-negatives",
        "20",
        "--negatives",
        "popularity:0.75",
    )
    places = ("--events", f"{folder / 'events'}", "--out", f"{folder / 'snapshot'}")
    _headrace("prepare", *places, "--features", "kuairand", *sizes)
    return folder


def test_every_row_is_accounted_for_and_the_repeated_keys_are_told_exactly(folder: Path) -> None:
    log = pq.read_table(RAW / "log_standard_4_25_to_5_08_pure.parquet", columns=["user_id", "video_id", "time_ms"])
    distinct = log.group_by(["user_id", "video_id", "time_ms"]).aggregate([]).num_rows
    ledger = open_snapshot(str(folder / "snapshot")).manifest.ledger
    events = ledger.tables["events"]
    assert (events.rows, events.accepted, events.duplicates) == (228_329, distinct, 5_885)
    assert events.rows - distinct == 5_885
    assert ledger.splits is not None
    assert ledger.splits.train + ledger.splits.valid + ledger.splits.test == distinct


def test_an_impression_knows_of_its_video_only_from_the_day_of_its_upload_on(folder: Path) -> None:
    snapshot = open_snapshot(str(folder / "snapshot"))
    videos = csv.read_csv(
        RAW / "video_features_basic_pure.csv",
        convert_options=csv.ConvertOptions(include_columns=["video_id", "upload_dt"]),
    )
    uploaded = {
        str(row["video_id"]): datetime.combine(row["upload_dt"], datetime.min.time(), UTC).timestamp() * 1000
        for row in videos.to_pylist()
    }
    names = dict(zip(*(snapshot.read("vocab/item").column(name).to_pylist() for name in ("idx", "value")), strict=True))
    seen = {False: set[int](), True: set[int]()}
    columns = ["item_idx", "event_time_ms", "item_upload_type_idx"]
    for split in ("train", "valid", "test"):
        for row in snapshot.read(split, columns).to_pylist():
            if row["item_idx"] in names:
                known = row["event_time_ms"] >= uploaded[names[row["item_idx"]]]
                seen[known].add(row["item_upload_type_idx"])
    assert seen[False] <= {1}, "null before the upload"
    assert 1 not in seen[True]
    assert len(seen[True]) > 5


def test_a_model_trains_on_the_snapshot_and_beats_popularity(folder: Path) -> None:
    run = folder / "run"
    _headrace("check", f"{folder / 'snapshot'}")
    settings = ("--set", "epochs=3", "--set", "model.recent=10")
    _headrace("train", "--snapshot", f"{folder / 'snapshot'}", "--recipe", "two_tower", "--run", f"{run}", *settings)
    _headrace("evaluate", "--run", f"{run}")
    found = RunEvaluation.model_validate_json((run / "evaluation-test.json").read_text())
    assert found.model.full["ndcg@10"] > found.popularity.full["ndcg@10"]


def test_a_ranker_with_three_heads_knows_more_of_them_than_their_base_rates(folder: Path) -> None:
    run = folder / "clicks"
    heads = "loss.heads={label: 1.0, label_long_view: 0.5, label_is_like: 0.5}"
    settings = ("--set", heads, "--set", "epochs=1", "--ranks", "2")
    _headrace("train", "--snapshot", f"{folder / 'snapshot'}", "--recipe", "dcn_v2", "--run", f"{run}", *settings)
    shown = _headrace("evaluate", "--run", f"{run}")
    assert "test: label_long_view" in shown
    found = RunEvaluation.model_validate_json((run / "evaluation-test.json").read_text()).model
    for head, least in (("label", 0.72), ("label_long_view", 0.71), ("label_is_like", 0.68)):
        low, high = found.intervals[head]["auc"]
        assert low < found.heads[head]["auc"] < high
        assert found.heads[head]["auc"] > least
        assert found.heads[head]["normalised_entropy"] < 1
        assert 0.8 < found.heads[head]["calibration"] < 1.25
