"""What users get wrong: each has an error that says what, where and what to do, or a place in quarantine."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from schemas.errors import SnapshotExists, UserError
from schemas.ledger import TableLedger
from schemas.snapshot import open_snapshot
from tests.spark.logs import FILM_CONTRACT, run_ingest, run_prepare, write_click_log, write_contract, write_lines

pytestmark = pytest.mark.slow

HEADER = b"user,item,time"


def test_a_missing_column_is_named_with_its_file_and_the_nearest_one(spark: SparkSession, tmp_path: Path) -> None:
    contract = write_click_log(tmp_path, [b"usr,item,time", b"u1,a,1"])
    with pytest.raises(UserError) as error:
        run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out")
    assert str(error.value).endswith(
        "/raw/clicks.csv: column 'user' (contract column 'user') is missing from the header; did you mean 'usr'? "
        "The header has 3 columns: usr, item, time."
    )
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_missing_column_that_resembles_none_is_still_told_in_whole_sentences(
    spark: SparkSession, tmp_path: Path
) -> None:
    contract = write_click_log(tmp_path, [b"x,item,time", b"u1,a,1"])
    with pytest.raises(UserError, match=r"is missing from the header\. The header has 3 columns: x, item, time\.$"):
        run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "clicks.csv is empty."),
        (b"\n\n", "clicks.csv begins with no header line."),
        (b"user,item,time\n", "clicks.csv holds no rows."),
    ],
)
def test_an_empty_log_is_named(spark: SparkSession, tmp_path: Path, content: bytes, says: str) -> None:
    contract = write_click_log(tmp_path, [])
    (tmp_path / "raw" / "clicks.csv").write_bytes(content)
    with pytest.raises(UserError) as error:
        run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out")
    assert str(error.value).startswith("events: file:/")
    assert str(error.value).endswith(says)


def test_an_empty_log_that_needs_no_header_is_named_too(spark: SparkSession, tmp_path: Path) -> None:
    contract = write_click_log(tmp_path, [], format="jsonl")
    with pytest.raises(UserError, match=r"^events: file:/.*/raw/clicks\.csv is empty\.$"):
        run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out")


def test_a_raw_folder_that_is_not_there_is_named_with_what_to_do(spark: SparkSession, tmp_path: Path) -> None:
    contract = write_click_log(tmp_path, [HEADER])
    with pytest.raises(UserError) as error:
        run_ingest(spark, contract, tmp_path / "nowhere", tmp_path / "out")
    assert str(error.value) == (
        f"events: no file at {tmp_path}/nowhere/clicks.csv. Give the folder that holds 'clicks.csv' with --raw."
    )
    assert not (tmp_path / "out").exists()


def test_bad_rows_of_every_kind_are_quarantined_and_none_is_lost(spark: SparkSession, tmp_path: Path) -> None:
    bad = {
        b"u1,a,tomorrow": ("type:time", "'tomorrow' is no time of the form epoch_s"),
        b"u1,a": ("width", "2 fields, the header has 3"),
        b"u1,a,1,x": ("width", "4 fields, the header has 3"),
        b",a,1": ("null:user", "the value is missing"),
        b"u\xff\xfe\x80,a,1": ("encoding", "the line is no valid UTF-8"),
        b"\xc3(,a,": ("encoding", "the line is no valid UTF-8"),
    }
    contract = write_click_log(tmp_path, [HEADER, *bad, b"u1,a,1", b"u1,a,1", b"u1,a,2"])
    run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out", max_quarantined=0.9)
    snapshot = open_snapshot(str(tmp_path / "out"), kind="events")
    assert snapshot.manifest.ledger.tables["events"] == TableLedger(
        lines=10,
        headers=1,
        blanks=0,
        accepted=2,
        duplicates=1,
        quarantined=6,
        quarantined_by_rule={"type:time": 1, "width": 2, "null:user": 1, "encoding": 2},
    )
    refused = snapshot.read("quarantine/events").to_pylist()
    assert len(refused) == 7
    assert {row["line"]: (row["rule"], row["reason"]) for row in refused if row["rule"] != "duplicate_key"} == bad
    snapshot.verify()


def test_more_bad_rows_than_allowed_stop_the_job_and_the_next_run_starts_afresh(
    spark: SparkSession, tmp_path: Path
) -> None:
    contract = write_click_log(tmp_path, [HEADER, b"u1,a,1", b"u1,b,2", b"u1,c", b"u1,d", b"u1,e,never"])
    with pytest.raises(UserError) as error:
        run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out", max_quarantined=0.1)
    assert str(error.value) == (
        "events: 3 of 5 rows break the contract, more than the 10% that --max-quarantined allows; "
        "most break 'width' (2 rows). Nothing was published."
    )
    assert not (tmp_path / "out" / "manifest.json").exists()
    run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out", max_quarantined=0.6)
    assert open_snapshot(str(tmp_path / "out"), kind="events").manifest.ledger.tables["events"].accepted == 2


def test_a_log_of_bad_rows_only_can_be_published_but_not_prepared(spark: SparkSession, tmp_path: Path) -> None:
    contract = write_click_log(tmp_path, [HEADER, b"u1,a"])
    run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out", max_quarantined=1)
    with pytest.raises(UserError, match=r"/out holds no accepted events\.$"):
        run_prepare(spark, tmp_path / "out", tmp_path / "snapshot")


def test_an_unknown_key_in_the_contract_names_the_nearest_known_one(spark: SparkSession, tmp_path: Path) -> None:
    wrong = copy.deepcopy(FILM_CONTRACT)
    wrong["events"]["columns"][2]["rnage"] = wrong["events"]["columns"][2].pop("range")
    contract = write_contract(tmp_path, wrong)
    with pytest.raises(UserError) as error:
        run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out")
    assert str(error.value) == (f"contract {contract}: unknown key 'events.columns.2.rnage'; did you mean 'range'?")


def test_a_time_format_that_spark_cannot_read_is_named_with_its_column(spark: SparkSession, tmp_path: Path) -> None:
    contract = write_click_log(tmp_path, [HEADER, b"u1,a,1999-12-31"])
    contract.write_text(
        contract.read_text().replace("type: timestamp_ms", "type: timestamp_ms\n    time_format: YYYY-bb")
    )
    with pytest.raises(
        UserError, match=r"^events\.time: time_format 'YYYY-bb' is none of .* no Spark datetime pattern: "
    ):
        run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out")


@pytest.mark.parametrize("place", ["file/out", "file"])
def test_an_output_that_cannot_be_written_is_named(spark: SparkSession, tmp_path: Path, place: str) -> None:
    contract = write_click_log(tmp_path, [HEADER, b"u1,a,1"])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=f"{tmp_path}/{place}.*(is a file|not a directory|is it writable)"):
        run_ingest(spark, contract, tmp_path / "raw", tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_where_no_folder_can_be_made_is_named(spark: SparkSession, tmp_path: Path) -> None:
    contract = write_click_log(tmp_path, [HEADER, b"u1,a,1"])
    with pytest.raises(UserError, match=r"^cannot write to /proc/headrace/out: "):
        run_ingest(spark, contract, tmp_path / "raw", Path("/proc/headrace/out"))


def test_a_folder_of_a_release_without_versions_is_never_written_to(
    spark: SparkSession, film_events: Path, tmp_path: Path
) -> None:
    manifest = json.loads((film_events / "manifest.json").read_text())
    write_lines(tmp_path / "out" / "manifest.json", [json.dumps(manifest | {"store": None}).encode()])
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    with pytest.raises(SnapshotExists) as error:
        run_ingest(spark, film_events.parent / "contract.yaml", film_events.parent / "raw", tmp_path / "out")
    assert str(error.value).startswith(f"{tmp_path}/out exists already, written on ")
    assert str(error.value).endswith("without versions by an earlier release: give another name.")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("inside", ["notes.txt", "train/mine.parquet"])
def test_a_folder_of_the_users_is_never_deleted(spark: SparkSession, tmp_path: Path, inside: str) -> None:
    contract = write_click_log(tmp_path, [HEADER, b"u1,a,1"])
    mine = tmp_path / "out" / inside
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError) as error:
        run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out")
    assert str(error.value) == (
        f"{tmp_path}/out is a folder that Headrace did not write, and it is not empty: give another name."
    )
    assert mine.read_text() == "mine"


def test_a_file_of_the_users_among_an_interrupted_jobs_debris_is_not_deleted(
    spark: SparkSession, tmp_path: Path
) -> None:
    contract = write_click_log(tmp_path, [HEADER, b"u1,a,1"])
    write_lines(tmp_path / "out" / "_writer", [b"somebody"])
    write_lines(tmp_path / "out" / "notes.txt", [b"mine"])
    with pytest.raises(UserError, match=r"notes\.txt"):
        run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").exists()


def test_an_interrupted_jobs_debris_is_cleared_and_the_job_goes_through(spark: SparkSession, tmp_path: Path) -> None:
    contract = write_click_log(tmp_path, [HEADER, b"u1,a,1"])
    write_lines(tmp_path / "out" / "_writer", [b"somebody"])
    write_lines(tmp_path / "out" / ".manifest.json.somebody", [b"{"])
    write_lines(tmp_path / "out" / "events" / "part-0.parquet", [b"debris"])
    write_lines(tmp_path / "out" / "events" / "_temporary" / "0" / "x", [b"debris"])
    write_lines(tmp_path / "out" / "quarantine" / "events" / "part-0.parquet", [b"debris"])
    run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out")
    snapshot = open_snapshot(str(tmp_path / "out"), kind="events")
    snapshot.verify()
    left = {path.name for path in (tmp_path / "out").rglob("*")}
    assert not left & {"_writer", ".manifest.json.somebody", "part-0.parquet", "_temporary"}


def test_what_is_no_published_log_cannot_be_prepared(
    spark: SparkSession, film_snapshot_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"/nowhere is no published folder: it has no manifest\.json\."):
        run_prepare(spark, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match=r"holds 'snapshot', and 'events' is wanted: give what `headrace ingest` wrote"):
        run_prepare(spark, film_snapshot_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "split", ["time", "time:0.5,0.5", "time:0.8,0.3,-0.1", "time:2024-02-01,2024-01-01", "ratio:1,2", "last", ""]
)
def test_a_split_that_is_none_is_refused_with_what_there_is(spark: SparkSession, tmp_path: Path, split: str) -> None:
    with pytest.raises(UserError) as error:
        run_prepare(spark, tmp_path / "events", tmp_path / "out", split=split)
    assert str(error.value).startswith(f"split {split!r} is none of time:0.8,0.1,0.1 ")


@pytest.fixture(scope="module")
def one_user(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten events of one user, a second apart."""
    folder = tmp_path_factory.mktemp("one_user")
    contract = write_click_log(folder, [HEADER, *(f"u1,i{i},{i}".encode() for i in range(10))])
    run_ingest(spark, contract, folder / "raw", folder / "events")
    return folder / "events"


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("time:0.6,0.2,0.2", {"train": 6, "valid": 2, "test": 2}),
        ("leave_last_out", {"train": 8, "valid": 1, "test": 1}),
        ("ratio:0.6,0.2,0.2", {"train": 6, "valid": 2, "test": 2}),
    ],
)
def test_a_log_of_one_user_can_be_split_in_every_way(
    spark: SparkSession, one_user: Path, tmp_path: Path, split: str, rows: dict[str, int]
) -> None:
    run_prepare(spark, one_user, tmp_path / "out", split=split)
    snapshot = open_snapshot(str(tmp_path / "out"))
    assert {part: snapshot.manifest.rows(part) for part in rows} == rows
    assert snapshot.read("users")["user_id"].to_pylist() == ["u1"]


def test_a_split_that_leaves_a_part_empty_names_the_rows_of_each(
    spark: SparkSession, one_user: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        run_prepare(spark, one_user, tmp_path / "out", split="time:1970-01-01T00:00:04,1970-01-01T00:00:30")
    assert str(error.value) == (
        f"the split leaves test without rows (train 4, valid 6, test 0): {one_user} is too small or too uneven for "
        "it; choose another --split."
    )


def test_a_threshold_that_no_item_reaches_is_refused(spark: SparkSession, one_user: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no item was seen 2 times in train, .*: lower --min-count\.$"):
        run_prepare(spark, one_user, tmp_path / "out", min_count=2)
