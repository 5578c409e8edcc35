"""Served events over many runs, young ones by weight, and the whole way from seed and served events to a snapshot."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from schemas.contract import read_contract
from schemas.event_store import SourceFile
from schemas.feedback_state import Delays
from schemas.manifest import Manifest
from schemas.served_contract import contract_yaml, served_contract
from schemas.snapshot import open_snapshot
from spark_jobs.feedback.delays import DelayModel, fit, mean_of
from tests.spark.logs import FILM_CONTRACT, run_ingest, run_prepare, write_contract
from tests.spark.served import (
    DAY_MS,
    DAYS,
    HOUR_MS,
    MINUTE_MS,
    MONDAY,
    VIDEO_RULES,
    did,
    events_in,
    land,
    run_feedback,
    shown,
)

pytestmark = pytest.mark.slow

NINE = MONDAY + 9 * HOUR_MS


def _content(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """All that one run over the same files must agree on."""
    state = manifest.feedback
    assert state is not None

    def named(files: tuple[SourceFile, ...]) -> dict[str, dict[str, int]]:
        return {"/".join(file.url.split("/")[-3:]): file.days for file in files}

    return {
        "days": state.days,
        "rest": {day: rest for day, rest in state.rest.items() if rest.late or rest.orphan},
        "ledger": manifest.ledger,
        "files": (named(state.impressions), named(state.actions)),
        "events": events_in(folder),
        "id": manifest.config["content"],
    }


def test_landed_files_give_the_same_events_and_ledger_in_whatever_runs_they_come(
    spark: SparkSession, videos: Path, tmp_path: Path
) -> None:
    second, third = NINE + DAY_MS, NINE + 2 * DAY_MS
    i1 = [shown("r1", "u1", NINE, ["1", "2"]), shown("r2", "u2", NINE + 1, ["3"])]
    i1 += [shown(f"b{i}", "u3", NINE + i, ["1"]) for i in (1, 2)]
    i2 = [shown("r3", "u1", second, ["1"]), i1[1], shown("r4", "u2", third, ["2"])]
    i3 = [shown("r5", "u2", third, ["1", "2"]), shown("b3", "u3", NINE + 3, ["1"])]
    a1 = [did("1", "r1", "1", "u1", "click", NINE + 5), did("2", "r3", "1", "u1", "watch", second + 5, 4)]
    a1 += [did("8", "b3", "1", "u3", "click", NINE + 5)]
    a2 = [did("3", "r2", "3", "u2", "click", second), did("1", "r1", "1", "u1", "click", NINE + 9)]
    a3 = [did("4", "r1", "2", "u1", "click", third), did("5", "r5", "2", "u2", "click", third + 7)]
    a3 += [did("6", "r2", "3", "u2", "watch", NINE + 6 * DAY_MS, 5), did("7", "r9", "3", "u2", "click", third)]
    rows = {"i1": i1, "i2": i2, "i3": i3, "a1": a1, "a2": a2, "a3": a3}
    content = []
    # In two runs r5 waits at first, and what u3 was shown is that of a person until the rest of its day has come.
    end = NINE + 9 * DAY_MS
    runs = {"one": [(end, list(rows))], "other": [(third + HOUR_MS, ["i3", "a3", "a1"]), (end, ["a2", "i1", "i2"])]}
    for name, moments in runs.items():
        (tmp_path / name).mkdir()
        for as_of_ms, files in moments:
            for file in files:
                land(tmp_path / name / "landed", "impressions" if file.startswith("i") else "actions", file, rows[file])
            manifest = run_feedback(
                spark,
                tmp_path / name,
                videos / "seed",
                contract=videos / "contract.yaml",
                as_of_ms=as_of_ms,
                rules=VIDEO_RULES | {"window_hours": 26, "bots": {"max_requests_per_day": 2}},
            )
            assert ("b3" in {row["request_id"] for row in events_in(tmp_path / name)}) == (as_of_ms < end)
        content.append(_content(manifest, tmp_path / name))
    one, other = content
    assert other == one
    ledger = one["ledger"].feedback
    assert (ledger.shown.events, ledger.shown.duplicates, ledger.shown.bots) == (7, 1, 3)
    actions = {name: count for name, count in ledger.actions.parts().items() if count}
    assert actions == {"joined": 4, "late": 2, "orphan": 1, "duplicates": 1, "of bots": 1}
    clicked = [(row["request_id"], row["position"]) for row in one["events"] if row["clicked"]]
    assert clicked == [("r1", 0), ("r2", 0), ("r5", 1)]


def test_young_items_are_events_at_once_and_those_not_clicked_weigh_by_how_likely_a_click_would_have_been_seen(
    spark: SparkSession, videos: Path, tmp_path: Path
) -> None:
    # Of forty items whose hour is over half were clicked, after six minutes: the mean delay is a tenth of the window.
    closed = [shown(f"r{i:02d}", f"u{i}", NINE, ["1"]) for i in range(40)]
    now = NINE + 5 * HOUR_MS
    young = [shown("y1", "u1", now - 6 * MINUTE_MS, ["1", "2"]), shown("y2", "u2", now - 59 * MINUTE_MS, ["1"])]
    land(tmp_path / "landed", "impressions", "a", closed + young)
    clicks = [did(f"c{i}", f"r{i:02d}", "1", f"u{i}", "click", NINE + 6 * MINUTE_MS) for i in range(20)]
    land(tmp_path / "landed", "actions", "a", [*clicks, did("y", "y1", "2", "u1", "click", now - 1)])
    manifest = run_feedback(
        spark,
        tmp_path,
        videos / "seed",
        contract=videos / "contract.yaml",
        as_of_ms=now + 30 * MINUTE_MS,  # what was done since has not landed, and was seen by nobody
        rules=VIDEO_RULES | {"young": "weight"},
    )
    state = manifest.feedback
    assert state is not None
    assert state.delays == Delays(shown=40, acted_on=20, delay_sum_ms=20 * 6 * MINUTE_MS)
    assert state.days[DAYS[0]].young == 3
    assert state.mean_delay_ms == pytest.approx(6 * MINUTE_MS, rel=0.001)  # an hour cuts off next to nothing of it
    weights = {(row["request_id"], row["position"]): row["weight"] for row in events_in(tmp_path)}
    seen = 1 - math.exp(-1)
    assert weights[("y1", 0)] == pytest.approx(seen * 0.5 / (1 - 0.5 * seen), rel=1e-3)
    assert weights[("y1", 1)] == 1
    assert weights[("y2", 0)] == pytest.approx(1, rel=1e-3)
    assert {weights[(f"r{i:02d}", 0)] for i in range(40)} == {1}
    both = read_contract(str(tmp_path / "contract-of-both.yaml"))
    assert [column.name for column in both.events.with_role("weight")] == ["weight"]


def test_weights_make_the_rate_of_clicks_of_young_items_that_of_old_ones(spark: SparkSession) -> None:
    """Simulated: one item in ten is clicked, after delays of mean 20 of 60 minutes; seen at ages up to the window."""
    generator = np.random.default_rng(0)
    num, rate, window = 200_000, 0.1, 60 * MINUTE_MS
    quantile = generator.random(2 * num) * (1 - math.exp(-3))
    delay = -np.log1p(-quantile) * 20 * MINUTE_MS
    clicked = generator.random(2 * num) < rate
    old, new = slice(0, num), slice(num, None)
    delays = Delays(shown=num, acted_on=int(clicked[old].sum()), delay_sum_ms=int(delay[old][clicked[old]].sum()))
    model = fit(delays, window_ms=window)
    assert model is not None
    assert model.mean_ms == pytest.approx(20 * MINUTE_MS, rel=0.05)
    age = generator.random(num) * window
    seen = clicked[new] & (delay[new] <= age)
    rows = spark.createDataFrame(_arrow(age=age, seen=seen))
    weight = F.when(F.col("seen"), 1.0).otherwise(model.weight_of_unclicked(F.col("age")))
    third = F.floor(F.col("age") / F.lit(window / 3)).alias("third")
    found = rows.groupBy(third).agg(
        (F.sum(F.when(F.col("seen"), weight)) / F.sum(weight)).alias("weighted"),
        F.avg(F.col("seen").cast("int")).alias("plain"),
    )
    rates = {row["third"]: (row["weighted"], row["plain"]) for row in found.collect()}
    for weighted, _ in rates.values():
        assert weighted == pytest.approx(rate, abs=0.005)  # four standard deviations of the youngest third
    assert rates[0][1] < 0.05  # a rate without weights takes clicks that are to come for none


def test_a_model_of_delays_is_of_greatest_likelihood_and_needs_clicks() -> None:
    assert fit(Delays(shown=100, acted_on=19, delay_sum_ms=1), window_ms=10) is None
    even = fit(Delays(shown=100, acted_on=20, delay_sum_ms=100), window_ms=10)
    assert even is not None
    assert even.mean_ms is None  # delays spread evenly over the window
    assert mean_of(3.0) == pytest.approx(1 / 3 - math.exp(-3) / (1 - math.exp(-3)))
    assert isinstance(even, DelayModel)


def test_a_log_and_what_was_served_since_are_ingested_day_by_day_and_prepared_with_propensities(
    spark: SparkSession, film_events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(film_events, tmp_path / "seed")
    contract = write_contract(tmp_path, FILM_CONTRACT)
    rules = {"event": "action", "labels": {"stars": {"action": "rate", "take": "value"}}}
    both = tmp_path / "contract-of-both.yaml"

    def turn() -> Manifest:
        run_feedback(spark, tmp_path, tmp_path / "seed", contract=contract, as_of_ms=NINE + 9 * DAY_MS, rules=rules)
        # What a job that was killed had put in place and not published.
        for file in list((tmp_path / "served" / "events").glob("day=*/part-*.parquet")):
            shutil.copy(file, file.with_name(f"unpublished-{file.name}"))
        # As where young items weigh: then events without a weight are those that never were young.
        both.write_text(contract_yaml(served_contract(read_contract(str(contract)), weighted=True)))
        run_ingest(spark, both, tmp_path, tmp_path / "events")
        return open_snapshot(str(tmp_path / "events"), kind="events").manifest

    responses = [shown("r1", "u1", NINE, ["b", "a"], context={"device": "tv"}), shown("r2", "u2", NINE + DAY_MS, ["c"])]
    land(tmp_path / "landed", "impressions", "a", responses)
    land(tmp_path / "landed", "actions", "a", [did("1", "r1", "a", "u1", "rate", NINE + MINUTE_MS, 2)])
    first = turn()
    ledger = first.ledger.tables["events"]
    assert (ledger.accepted, ledger.duplicates, ledger.quarantined) == (11, 0, 0)
    # A later rating of that response, and one of the next day's.
    more = [did("2", "r1", "b", "u1", "rate", NINE + 2 * MINUTE_MS, 4)]
    more += [
        did("3", "r2", "c", "u2", "rate", NINE + DAY_MS + 1, 5),
        did("4", "r2", "c", "u2", "rate", NINE + DAY_MS, 1),
    ]
    land(tmp_path / "landed", "actions", "b", more)
    capsys.readouterr()
    second = turn()
    assert f"ingest: events: built {DAYS[0]}, {DAYS[1]} from" in capsys.readouterr().out
    assert second.ledger.tables["events"].accepted == 13
    kept = {file.path for file in second.parts["events"]} & {file.path for file in first.parts["events"]}
    assert {path.split("/")[1] for path in kept} == {"day=1970-01-01"}
    run_prepare(spark, tmp_path / "events", tmp_path / "snapshot")
    snapshot = open_snapshot(str(tmp_path / "snapshot"))
    rows = [row for split in ("train", "valid", "test") for row in snapshot.read(split).to_pylist()]
    by_time = {row["event_time_ms"]: row for row in rows}
    known = {time: (row["label"], row["propensity"]) for time, row in by_time.items() if time > MONDAY}
    assert known == {
        NINE + MINUTE_MS: (2, 0.25),
        NINE + 2 * MINUTE_MS: (4, 0.5),
        NINE + DAY_MS: (5, 0.5),
    }
    assert sum(math.isnan(row["propensity"]) for row in rows) == 10
    assert {row["weight"] for row in rows} == {1}


def _arrow(**columns: Any) -> Any:
    import pyarrow as pa

    return pa.table(columns)
