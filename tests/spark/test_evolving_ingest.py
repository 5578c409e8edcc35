"""A contract that changes while days stand published: what they keep, what is read again, what stops the job."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from schemas.contract import read_contract
from schemas.errors import UserError
from schemas.snapshot import Snapshot, open_snapshot
from spark_jobs.datasets import read_part
from spark_jobs.hadoop_files import HadoopFiles
from spark_jobs.jobs.profile_snapshot import describe
from spark_jobs.profiling.reading import open_either
from spark_jobs.spark_types import spark_schema
from tests.spark.logs import run_ingest, write_contract, write_lines

pytestmark = pytest.mark.slow

CONTRACT: dict[str, Any] = {
    "name": "log",
    "meaning": "x",
    "events": {
        "source": {"path": "log", "delimiter": ","},
        "key": ["id", "at"],
        "columns": [
            {"name": "id", "type": "int32", "meaning": "x"},
            {"name": "at", "type": "timestamp_ms", "role": "event_time", "meaning": "x"},
            {"name": "price", "type": "float32", "nullable": True, "meaning": "x"},
            {"name": "tags", "type": "list<string>", "nullable": True, "meaning": "x"},
            {"name": "count", "type": "int32", "nullable": True, "meaning": "x"},
        ],
    },
}
OLD, NEW = [b"id,at,price,tags,count", b"1,5,0.5,a b,7"], [b"id,at,price,tags,count,os", b"9000000000,86400,0.25,,8,tv"]


def _ingest(spark: SparkSession, folder: Path, change: Any = lambda columns: None, **changes: Any) -> Snapshot:
    contract = copy.deepcopy(CONTRACT)
    change(contract["events"]["columns"])
    write_contract(folder, contract)
    run_ingest(spark, folder / "contract.yaml", folder / "raw", folder / "out", **changes)
    return open_snapshot(str(folder / "out"), kind="events")


def _widened(columns: list[dict[str, Any]]) -> None:
    columns[0]["type"], columns[2]["type"], columns[4]["type"] = "int64", "float64", "float64"
    columns.append({"name": "os", "type": "string", "nullable": True, "meaning": "x"})


def test_old_days_keep_their_files_and_are_read_with_wider_types_and_nulls_for_what_was_added(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "raw" / "log" / "1.csv", OLD)
    old = _ingest(spark, tmp_path).files("events")
    write_lines(tmp_path / "raw" / "log" / "2.csv", NEW)
    snapshot = _ingest(spark, tmp_path, _widened)
    assert set(old) < set(snapshot.files("events"))
    assert pq.read_schema(tmp_path / "out" / old[0].path).field("id").type == "int32"
    table = read_contract(str(tmp_path / "contract.yaml")).events
    rows = read_part(spark, snapshot.url, snapshot.files("events"), spark_schema(table)).orderBy("at").collect()
    assert [tuple(row) for row in rows] == [
        (1, 5000, 0.5, ["a", "b"], 7.0, None),
        (9_000_000_000, 86_400_000, 0.25, None, 8.0, "tv"),
    ]
    hadoop = HadoopFiles(spark)
    (profiled,) = describe(spark, hadoop, open_either(hadoop, snapshot.url)).tables
    (whole,) = profiled.groups
    nulls = {column.name: column.groups[whole].nulls for column in profiled.columns if not column.is_list}
    assert nulls == {"id": 0, "at": 0, "price": 0, "count": 0, "os": 1}
    said = capsys.readouterr().out
    assert "ingest: events: column id was int32 and is int64 (compatible)" in said
    state = snapshot.manifest.store
    assert state is not None
    assert [change.effect for change in state.evolution] == ["compatible"] * 4


def test_a_column_that_is_no_more_is_left_out_of_new_days(spark: SparkSession, tmp_path: Path) -> None:
    write_lines(tmp_path / "raw" / "log" / "1.csv", OLD)
    _ingest(spark, tmp_path)
    write_lines(tmp_path / "raw" / "log" / "2.csv", [b"id,at,tags,count", b"2,86400,,8"])
    snapshot = _ingest(spark, tmp_path, lambda columns: columns.pop(2))
    table = read_contract(str(tmp_path / "contract.yaml")).events
    rows = read_part(spark, snapshot.url, snapshot.files("events"), spark_schema(table)).orderBy("at").collect()
    assert [tuple(row) for row in rows] == [(1, 5000, ["a", "b"], 7), (2, 86_400_000, None, 8)]


def test_a_nullable_column_that_the_header_lacks_is_null(spark: SparkSession, tmp_path: Path) -> None:
    write_lines(tmp_path / "raw" / "log" / "1.csv", [b"at,id", b"5,1"])
    rows = _ingest(spark, tmp_path).read("events").to_pylist()
    assert rows == [{"id": 1, "at": 5000, "price": None, "tags": None, "count": None}]


def test_what_days_cannot_follow_stops_the_job_unless_all_is_built_again(spark: SparkSession, tmp_path: Path) -> None:
    def retyped(columns: list[dict[str, Any]]) -> None:
        columns[2]["type"] = "string"

    write_lines(tmp_path / "raw" / "log" / "1.csv", OLD)
    before = _ingest(spark, tmp_path).manifest
    with pytest.raises(
        UserError, match=r"^events: column price was float32 and is string: rows published in .* --rebuild"
    ):
        _ingest(spark, tmp_path, retyped)
    assert open_snapshot(str(tmp_path / "out"), kind="events").manifest == before
    assert _ingest(spark, tmp_path, retyped, rebuild=True).read("events")["price"].to_pylist() == ["0.5"]


def test_another_rule_judges_all_days_again(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ruled(columns: list[dict[str, Any]]) -> None:
        columns[2]["range"] = {"max": 0.4}

    write_lines(tmp_path / "raw" / "log" / "1.csv", [*OLD, b"2,86400,0.1,,7"])
    _ingest(spark, tmp_path)
    ledger = _ingest(spark, tmp_path, ruled).manifest.ledger.tables["events"]
    assert (ledger.accepted, ledger.quarantined_by_rule) == (1, {"range:price": 1})
    assert "all days are built again: events: column price has another range." in capsys.readouterr().out
