"""Ingest, end to end on a small raw log: every line is accounted for."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from schemas.ledger import TableLedger
from schemas.snapshot import open_snapshot
from tests.spark.logs import FILM_REFUSED, run_ingest, write_click_log, write_lines

pytestmark = pytest.mark.slow


def test_every_line_is_a_header_a_blank_accepted_a_duplicate_or_quarantined(film_events: Path) -> None:
    ledger = open_snapshot(str(film_events), kind="events").manifest.ledger.tables
    assert ledger["events"] == TableLedger(
        lines=17,
        headers=1,
        blanks=1,
        accepted=10,
        duplicates=1,
        quarantined=4,
        quarantined_by_rule={"range:stars": 1, "type:stars": 1, "width": 1, "encoding": 1},
    )
    assert ledger["items"] == TableLedger(lines=5, headers=1, blanks=0, accepted=4, duplicates=0, quarantined=0)
    assert ledger["users"] == TableLedger(lines=5, headers=0, blanks=0, accepted=5, duplicates=0, quarantined=0)


def test_refused_lines_are_kept_byte_for_byte_with_file_rule_and_reason(film_events: Path) -> None:
    refused = open_snapshot(str(film_events), kind="events").read("quarantine/events").to_pylist()
    assert {row["line"]: row["rule"] for row in refused} == FILM_REFUSED
    assert all(row["file"].endswith("/raw/ratings.tsv") for row in refused)
    reasons = {row["rule"]: row["reason"] for row in refused}
    assert reasons == {
        "range:stars": "'9' is above 5",
        "type:stars": "'good' is no float32",
        "width": "2 fields, the header has 6",
        "encoding": "the line is no valid UTF-8",
        "duplicate_key": "an earlier row has the same key",
    }


def test_accepted_rows_have_the_contracts_types_and_times_in_milliseconds(film_events: Path) -> None:
    snapshot = open_snapshot(str(film_events), kind="events")
    rows = sorted(snapshot.read("events").to_pylist(), key=lambda row: row["at"])
    assert rows[3] == {"user_id": "u2", "item_id": "c", "stars": 2.0, "at": 4000, "device": None, "price": None}
    assert [row["at"] for row in rows] == [1000 * second for second in range(1, 11)]
    items = {row["item_id"]: row["genres"] for row in snapshot.read("items").to_pylist()}
    assert items == {"a": ["drama", "war"], "b": ["drama"], "c": None, "d": ["noir"]}


def test_files_share_one_header_also_where_one_is_empty_starts_with_a_mark_or_ends_lines_as_windows_does(
    spark: SparkSession, tmp_path: Path
) -> None:
    contract = write_click_log(tmp_path, [], path="clicks")
    for name, content in {
        "1.csv": b"",
        "2.csv": b"\xef\xbb\xbfuser,item,time\nu1,a,1\n",
        "3.csv": b"user,item,time\r\nu1,b,2\r\nu1,c,3",
    }.items():
        (tmp_path / "raw" / "clicks").mkdir(exist_ok=True)
        (tmp_path / "raw" / "clicks" / name).write_bytes(content)
    run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out")
    snapshot = open_snapshot(str(tmp_path / "out"), kind="events")
    assert snapshot.manifest.ledger.tables["events"] == TableLedger(
        lines=5, headers=2, blanks=0, accepted=3, duplicates=0, quarantined=0
    )
    assert sorted(row["item"] for row in snapshot.read("events").to_pylist()) == ["a", "b", "c"]


def test_the_manifest_names_every_parquet_file_there_is_and_no_writers_mark_is_left(film_events: Path) -> None:
    manifest = open_snapshot(str(film_events), kind="events").manifest
    named = {file.path for files in manifest.parts.values() for file in files}
    assert named == {str(path.relative_to(film_events)) for path in film_events.rglob("*.parquet")}
    assert not (film_events / "_writer").exists()
    for files in manifest.parts.values():
        for file in files:
            assert pq.read_metadata(film_events / file.path).num_rows == file.rows


def test_what_stands_already_is_not_written_again(
    spark: SparkSession, film_events: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in film_events.rglob("*")}
    run_ingest(spark, film_events.parent / "contract.yaml", film_events.parent / "raw", film_events)
    assert "stands already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in film_events.rglob("*")} == before


def test_the_same_row_of_a_key_is_kept_whatever_the_order_of_the_lines(spark: SparkSession, tmp_path: Path) -> None:
    rows = [b"u1,a,2", b"u1,a,1", b"u2,b,5", b"u2,b,5"]
    kept = []
    for name, lines in {"one": rows, "other": rows[::-1]}.items():
        contract = write_click_log(tmp_path / name, [b"user,item,time", *lines])
        text = contract.read_text().replace("- user\n  - item\n  - time", "- user\n  - item")
        assert text != contract.read_text()
        contract.write_text(text)
        run_ingest(spark, contract, tmp_path / name / "raw", tmp_path / name / "out")
        accepted = open_snapshot(str(tmp_path / name / "out"), kind="events").read("events").to_pylist()
        kept.append(sorted((row["user"], row["time"]) for row in accepted))
    assert kept == [[("u1", 1000), ("u2", 5000)]] * 2


def test_lines_of_compressed_files_are_counted_as_of_plain_ones(spark: SparkSession, tmp_path: Path) -> None:
    import gzip

    contract = write_click_log(tmp_path, [], path="clicks.csv.gz")
    write_lines(tmp_path / "raw" / "clicks.csv.gz", [])
    (tmp_path / "raw" / "clicks.csv.gz").write_bytes(gzip.compress(b"user,item,time\nu1,a,1\nu1,b\n"))
    run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out")
    ledger = open_snapshot(str(tmp_path / "out"), kind="events").manifest.ledger.tables["events"]
    assert (ledger.lines, ledger.headers, ledger.accepted, ledger.quarantined_by_rule) == (3, 1, 1, {"width": 1})
