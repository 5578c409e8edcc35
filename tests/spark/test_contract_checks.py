"""The contract's checks: foreign keys, thresholds, freshness and volume, with what stops the job and what it says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from schemas.errors import UserError
from schemas.event_store import CheckResult
from schemas.snapshot import open_snapshot
from tests.spark.logs import (
    FILM_CONTRACT,
    FILM_HEADER,
    FILM_ITEMS,
    run_ingest,
    write_contract,
    write_film_log,
    write_lines,
)

pytestmark = pytest.mark.slow

SECOND_11 = 11_000


def _films(folder: Path, **events: Any) -> Path:
    """The film log with these additions to the events' part of its contract."""
    write_film_log(folder)
    contract = copy.deepcopy(FILM_CONTRACT)
    contract["events"] |= events
    return write_contract(folder, contract)


def _referring(folder: Path, **events: Any) -> Path:
    write_film_log(folder)
    contract = copy.deepcopy(FILM_CONTRACT)
    contract["events"] |= events
    contract["events"]["columns"][1]["references"] = "items.item_id"
    return write_contract(folder, contract)


def _ingest(spark: SparkSession, folder: Path, **changes: Any) -> tuple[CheckResult, ...]:
    run_ingest(spark, folder / "contract.yaml", folder / "raw", folder / "out", **changes)
    state = open_snapshot(str(folder / "out"), kind="events").manifest.store
    assert state is not None
    return state.checks


def test_a_value_that_the_other_table_lacks_goes_to_quarantine_until_it_is_there(
    spark: SparkSession, tmp_path: Path
) -> None:
    _referring(tmp_path)
    write_lines(tmp_path / "raw" / "films.tsv", FILM_ITEMS[:-1])  # without film d
    _ingest(spark, tmp_path)
    snapshot = open_snapshot(str(tmp_path / "out"), kind="events")
    assert snapshot.manifest.ledger.tables["events"].quarantined_by_rule["foreign_key:item_id"] == 2
    refused = {row["line"]: row for row in snapshot.read("quarantine/events").to_pylist()}
    assert refused[b"u3\td\t4\t8\tcar\t20"]["reason"] == "'d' is no items.item_id"
    assert refused[b"u3\td\t4\t8\tcar\t20"]["rules"] == ["foreign_key:item_id"]
    write_lines(tmp_path / "raw" / "films.tsv", FILM_ITEMS)
    _ingest(spark, tmp_path)
    ledger = open_snapshot(str(tmp_path / "out"), kind="events").manifest.ledger.tables["events"]
    assert (ledger.accepted, ledger.quarantined) == (10, 4)


def test_every_rule_is_in_the_manifest_with_its_rows_threshold_and_verdict(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _films(tmp_path, thresholds={"range:*": 0.5, "null:at": 0.2, "null:user_id": 0})
    found = {
        check.rule: (check.broken, check.of, check.threshold, check.verdict)
        for check in _ingest(spark, tmp_path)
        if check.table == "events"
    }
    assert found == {
        "encoding": (1, 15, None, "quarantined"),
        "width": (1, 15, None, "quarantined"),
        "null:user_id": (0, 15, 0, "ok"),
        "null:stars": (1, 15, None, "quarantined"),
        "type:stars": (1, 15, None, "quarantined"),
        "range:stars": (1, 15, 0.5, "quarantined"),
        "null:at": (1, 15, 0.2, "quarantined"),
        "duplicate_key": (1, 15, None, "quarantined"),
        "quarantined": (4, 15, 0.5, "ok"),
    }  # fmt: skip
    assert "events range:stars    1 of 15  6.67%   50.00%     quarantined" in capsys.readouterr().out


@pytest.mark.parametrize("thresholds", [{"range:stars": 0.05}, {"range:*": 0.05}])
def test_more_than_a_threshold_stops_the_job_with_rule_count_share_and_a_row(
    spark: SparkSession, tmp_path: Path, thresholds: dict[str, float]
) -> None:
    _films(tmp_path, thresholds=thresholds)
    with pytest.raises(UserError) as error:
        _ingest(spark, tmp_path)
    assert str(error.value).startswith(
        "events: 1 of 15 rows break 'range:stars', 6.67%, more than the 5.00% that the contract's threshold allows. "
        r"One of them: 'u9\ta\t9\t5\ttv\t1' in file:/"
    )
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_log_that_is_too_old_stops_the_job(spark: SparkSession, tmp_path: Path) -> None:
    _films(tmp_path, freshness={"max_age_hours": 2})
    with pytest.raises(UserError, match=r"^events: freshness: the newest row is 3\.0 h old, at most 2 h are allowed\."):
        _ingest(spark, tmp_path, as_of_ms=3 * 3_600_000 + 10_000)
    _ingest(spark, tmp_path, as_of_ms=2 * 3_600_000 + 10_000)
    with pytest.raises(UserError, match=r"^events: freshness: the newest row is 2\.5 h old"):  # and nothing new came
        _ingest(spark, tmp_path, as_of_ms=2 * 3_600_000 + 1_810_000)


def test_too_few_rows_and_too_many_more_than_last_time_stop_the_job(spark: SparkSession, tmp_path: Path) -> None:
    _films(tmp_path, volume={"min_rows": 11})
    with pytest.raises(UserError, match=r"^events: volume:min_rows: 10 rows, at least 11 wanted\."):
        _ingest(spark, tmp_path)
    _films(tmp_path, volume={"max_change": 0.5}, key=["user_id", "item_id", "at"])
    _ingest(spark, tmp_path)
    more = [f"u{user}\ta\t3\t{86_400 + user}\ttv\t1".encode() for user in range(6)]
    before = (tmp_path / "raw" / "ratings.tsv").read_bytes()
    (tmp_path / "raw" / "ratings.tsv").write_bytes(before + b"\n".join(more) + b"\n")
    with pytest.raises(UserError, match=r"volume:max_change: 17 rows after 11: 55%, at most 50% allowed"):
        _ingest(spark, tmp_path)
    assert open_snapshot(str(tmp_path / "out"), kind="events").manifest.ledger.tables["events"].accepted == 11
    assert FILM_HEADER in before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"thresholds": {"nul:stars": 0.1}},
            "threshold 'nul:stars' is for no rule of this table; did you mean 'null:stars'",
        ),
        ({"thresholds": {"null:stars": 1.5}}, "less than or equal to 1"),
        ({"references": "items.name"}, "item_id references items.name, but its key begins with 'item_id'"),
        ({"references": "users.user_id"}, None),
    ],
)
def test_a_check_that_cannot_be_is_refused(
    spark: SparkSession, tmp_path: Path, change: dict[str, Any], says: str | None
) -> None:
    contract = copy.deepcopy(FILM_CONTRACT)
    if "references" in change:
        contract["events"]["columns"][1] |= change
    else:
        contract["events"] |= change
    write_contract(tmp_path, contract)
    if says is None:
        write_film_log(tmp_path / "other")
        says = "no file at"
    with pytest.raises(UserError, match=says):
        _ingest(spark, tmp_path)
