"""Train of the last days: the rows that train of all days has of that time, and all else of the snapshot as it is."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession

from schemas.snapshot import Snapshot, open_snapshot
from spark_jobs.jobs.prepare import main
from tests.spark.logs import run_ingest, run_prepare, write_click_log, write_contract

pytestmark = pytest.mark.slow

SECOND = 1 / 86_400  # in days


def rows_of(snapshot: Snapshot, part: str) -> list[dict[str, Any]]:
    table = snapshot.read(part)
    return table.sort_by(table.column_names[0]).to_pylist()


def both(spark: SparkSession, events: Path, folder: Path, days: float, **changes: Any) -> tuple[Snapshot, Snapshot]:
    """Of all days, and of the last ones."""
    run_prepare(spark, events, folder / "whole", **changes)
    run_prepare(spark, events, folder / "last", train_days=days, **changes)
    return open_snapshot(str(folder / "whole")), open_snapshot(str(folder / "last"))


@pytest.fixture(scope="module")
def clicks(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 clicks of nine users on 30 items within 100 seconds: most share their second with others, some of one user.

    The first user clicks in the first ten seconds alone.
    """
    folder, draw = tmp_path_factory.mktemp("clicks"), random.Random(1)
    lines = {f"u{draw.randrange(1, 9)},i{draw.randrange(30)},{draw.randrange(100)}" for _ in range(400)}
    lines |= {f"u0,i{n},{n}" for n in range(10)}
    contract = write_click_log(folder, [b"user,item,time", *(line.encode() for line in sorted(lines))])
    run_ingest(spark, contract, folder / "raw", folder / "events")
    return folder / "events"


@pytest.mark.parametrize(
    "changes",
    [
        {"split": "time:0.8,0.1,0.1"},
        {"split": "time:0.8,0.1,0.1", "num_train_negatives": 2, "train_histories": "others"},
        {"split": "leave_last_out", "history_length": 5},
        {"split": "ratio:0.8,0.1,0.1"},
    ],
    ids=["time", "others", "leave_last_out", "ratio"],
)
def test_rows_of_the_last_days_are_what_they_are_beside_the_older_ones(
    spark: SparkSession, clicks: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole, last = both(spark, clicks, tmp_path, 30 * SECOND, **changes)
    every = rows_of(whole, "train")
    since_ms = max(row["event_time_ms"] for row in every) - 30_000
    wanted = [row for row in every if row["event_time_ms"] > since_ms]
    assert 0 < len(wanted) < len(every) / 2
    assert any(row["event_time_ms"] == since_ms for row in every), "the edge is out"
    assert rows_of(last, "train") == wanted
    for part in whole.manifest.parts:
        if part != "train":
            assert rows_of(last, part) == rows_of(whole, part), part
    assert last.manifest.transform == whole.manifest.transform
    splits = last.manifest.ledger.splits
    assert splits is not None
    assert (splits.past, splits.train) == (len(every) - len(wanted), len(wanted))
    assert last.manifest.statistics["train"]["rows"] == len(wanted)
    last.verify()


def ingest_hourly(spark: SparkSession, folder: Path, *columns: dict[str, Any]) -> Path:
    """20 events an hour apart, each clicked on or not, of two users and three items where `columns` has these."""
    names = ["click", "time", *(column["name"] for column in columns)]
    values = [[n % 2, 3600 * n, f"{'ab'[n % 5 % 2]}", f"{n % 3}"][: len(names)] for n in range(20)]
    (folder / "raw").mkdir()
    lines = [",".join(names), *(",".join(map(str, line)) for line in values)]
    (folder / "raw" / "clicks.csv").write_text("\n".join(lines))
    label = {"name": "click", "type": "int32", "role": "label", "one_of": ["0", "1"], "meaning": "clicked"}
    time = {"name": "time", "type": "timestamp_ms", "role": "event_time", "meaning": "when"}
    source = {"path": "clicks.csv", "delimiter": ","}
    events = {"source": source, "key": ["time"], "columns": [label, time, *columns]}
    contract = write_contract(folder, {"name": "clicks", "meaning": "clicks", "events": events})
    run_ingest(spark, contract, folder / "raw", folder / "events")
    return folder / "events"


def test_features_of_the_past_and_gaps_know_what_came_before_the_last_days(spark: SparkSession, tmp_path: Path) -> None:
    user = {"name": "user", "type": "string", "role": "user", "meaning": "who"}
    item = {"name": "item", "type": "string", "role": "item", "meaning": "what"}
    events = ingest_hourly(spark, tmp_path, user, item)
    past: list[dict[str, Any]] = [
        {"kind": "count", "by": ["events.user"], "every": "1h"},
        {"kind": "rate", "by": ["events.item"], "window": "9h", "every": "1h"},
        {"kind": "rate", "by": ["events.user"], "folds": 2},
    ]
    wanted = {"name": "past", "meaning": "what came before", "features": past, "history_gaps": True}
    (tmp_path / "features.yaml").write_text(yaml.safe_dump(wanted))
    whole, last = both(spark, events, tmp_path, 4 / 24, features=str(tmp_path / "features.yaml"))
    every = rows_of(whole, "train")
    assert len({tuple(row["history_gaps"]) for row in every}) > 4
    assert len([name for name in every[0] if "rate" in name or "count" in name]) == 3
    assert rows_of(last, "train") == [row for row in every if row["event_time_ms"] >= 8 * 3_600_000]
    assert (last.manifest.rows("train"), whole.manifest.rows("train")) == (4, 12)
    for part in whole.manifest.parts:
        if part != "train":
            assert rows_of(last, part) == rows_of(whole, part), part
    assert last.manifest.transform == whole.manifest.transform


def test_without_histories_the_past_is_left_out_too(spark: SparkSession, tmp_path: Path) -> None:
    run_prepare(spark, ingest_hourly(spark, tmp_path), tmp_path / "last", train_days=4 / 24)
    rows = rows_of(open_snapshot(str(tmp_path / "last")), "train")
    assert sorted(row["event_time_ms"] // 3_600_000 for row in rows) == [8, 9, 10, 11]


@pytest.mark.parametrize(("since_ms", "first"), [(-1, 0), (40_000, 41_000), (75_000, 50_000)])
def test_what_came_after_a_moment_is_learned_too_where_the_last_days_are_fewer(
    spark: SparkSession, clicks: Path, tmp_path: Path, since_ms: int, first: int
) -> None:
    changes = {"split": "time:1970-01-01T00:01:20,1970-01-01T00:01:30", "train_since": since_ms}
    whole, last = both(spark, clicks, tmp_path, 30 * SECOND, **changes)
    assert max(row["event_time_ms"] for row in rows_of(whole, "train")) == 79_000
    assert min(row["event_time_ms"] for row in rows_of(last, "train")) == first


def test_a_share_of_the_older_events_are_rows_as_well_and_the_ledger_holds_the_others(
    spark: SparkSession, clicks: Path, tmp_path: Path
) -> None:
    whole, last = both(spark, clicks, tmp_path, 30 * SECOND, split="time:0.8,0.1,0.1", past_share=0.25)
    every, found = rows_of(whole, "train"), rows_of(last, "train")
    since_ms = max(row["event_time_ms"] for row in every) - 30_000
    recent = [row for row in every if row["event_time_ms"] > since_ms]
    assert [row for row in found if row["event_time_ms"] > since_ms] == recent
    older = [row for row in found if row["event_time_ms"] <= since_ms]
    assert all(row in every for row in older)
    num_older = len(every) - len(recent)
    assert abs(len(older) - 0.25 * num_older) < 4 * (num_older * 0.25 * 0.75) ** 0.5
    splits = last.manifest.ledger.splits
    assert splits is not None
    assert splits.past == num_older - len(older)
    last.verify()


def test_a_share_of_the_past_needs_the_days_before_which_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--events", "e", "--out", "o", "--past-share", "0.5"])
    assert "go with --train-days" in capsys.readouterr().err


def test_days_are_above_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--events", "e", "--out", "o", "--train-days", "0"])
    assert "0 is not above 0" in capsys.readouterr().err
