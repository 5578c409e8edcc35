"""Where raw tables come from: Parquet, a database, a table of Spark's, compressed text, and files that are broken."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from schemas.errors import UserError
from schemas.snapshot import Snapshot, open_snapshot
from spark_jobs.databases import password_in
from spark_jobs.text_files import BrokenFile, lines_of
from tests.postgres import JDBC_JAR, Postgres, running_postgres
from tests.spark.logs import run_ingest, write_click_log, write_contract, write_lines

pytestmark = pytest.mark.slow

HEADER = b"user,item,time"


def _typed_contract(folder: Path, **source: Any) -> Path:
    columns = [
        {"name": "id", "type": "int64", "meaning": "x"},
        {"name": "at", "type": "timestamp_ms", "role": "event_time", "time_format": "epoch_ms", "meaning": "x"},
        {"name": "stars", "type": "int32", "role": "label", "range": {"min": 1, "max": 5}, "meaning": "x"},
        {"name": "price", "type": "float32", "nullable": True, "meaning": "x"},
        {"name": "tags", "type": "list<string>", "nullable": True, "meaning": "x"},
    ]
    events = {"source": source, "key": ["id", "at"], "columns": columns}
    return write_contract(folder, {"name": "typed", "meaning": "x", "events": events})


def _ingest(spark: SparkSession, folder: Path, **changes: Any) -> Snapshot:
    run_ingest(spark, folder / "contract.yaml", folder / "raw", folder / "out", **changes)
    snapshot = open_snapshot(str(folder / "out"), kind="events")
    snapshot.verify()
    return snapshot


def test_parquet_columns_are_taken_as_they_are_and_checked_all_the_same(spark: SparkSession, tmp_path: Path) -> None:
    _typed_contract(tmp_path, format="parquet", path="log")
    (tmp_path / "raw" / "log").mkdir(parents=True)
    at = [datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC)] * 5
    one = {"id": [1, 2, 3, 3, 5], "at": at, "stars": [5, 9, 3, 3, None], "price": [0.5, 1.0, None, None, 2.0],
           "tags": [["a", ""], None, [], [], None]}  # fmt: skip
    pq.write_table(pa.table(one), tmp_path / "raw" / "log" / "1.parquet")
    other = pa.table({"id": pa.array([7], pa.int32()), "at": pa.array([86_400_000]), "stars": pa.array([1.0])})
    pq.write_table(other, tmp_path / "raw" / "log" / "2.parquet")  # other types, and columns that are not there
    snapshot = _ingest(spark, tmp_path)
    rows = sorted(snapshot.read("events").to_pylist(), key=lambda row: row["id"])
    assert rows == [
        {"id": 1, "at": 5000, "stars": 5, "price": 0.5, "tags": ["a"]},
        {"id": 3, "at": 5000, "stars": 3, "price": None, "tags": []},
        {"id": 7, "at": 86_400_000, "stars": 1, "price": None, "tags": None},
    ]
    ledger = snapshot.manifest.ledger.tables["events"]
    assert (ledger.lines, ledger.duplicates) == (6, 1)
    assert ledger.quarantined_by_rule == {"range:stars": 1, "null:stars": 1}
    refused = {row["rule"]: row for row in snapshot.read("quarantine/events").to_pylist()}
    assert refused["range:stars"]["line"].startswith(b'{"id":2,"at":"1970-01-01T00:00:05')
    assert refused["range:stars"]["reason"] == "'9' is above 5"


def test_a_parquet_column_that_cannot_be_what_the_contract_says_is_named(spark: SparkSession, tmp_path: Path) -> None:
    _typed_contract(tmp_path, format="parquet", path="log")
    (tmp_path / "raw" / "log").mkdir(parents=True)
    wrong = pa.table({"id": [{"a": 1}], "at": [5], "stars": [1]})
    pq.write_table(wrong, tmp_path / "raw" / "log" / "1.parquet")
    with pytest.raises(
        UserError, match=r"1\.parquet: column 'id' is struct<a:bigint>, and the contract's int64 cannot"
    ):
        _ingest(spark, tmp_path)
    (tmp_path / "raw" / "log" / "1.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(UserError, match=r"1\.parquet is no whole Parquet file: "):
        _ingest(spark, tmp_path)


def test_a_table_of_sparks_own_is_read_by_its_name(spark: SparkSession, tmp_path: Path) -> None:
    _typed_contract(tmp_path, format="table", path="clicks_of_spark")
    with pytest.raises(UserError, match=r"^events: Spark has no table 'clicks_of_spark': "):
        _ingest(spark, tmp_path)
    spark.sql("SELECT 1L AS id, 5L AS at, 4 AS stars").createOrReplaceTempView("clicks_of_spark")
    try:
        first = _ingest(spark, tmp_path)
        assert first.read("events").to_pylist() == [{"id": 1, "at": 5, "stars": 4, "price": None, "tags": None}]
    finally:
        spark.catalog.dropTempView("clicks_of_spark")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if not JDBC_JAR.exists():
        pytest.skip("no driver of PostgreSQL: apt-get install libpostgresql-jdbc-java")
    with running_postgres() as server:
        yield server


def test_a_database_is_read_in_ranges_and_its_password_is_kept_nowhere(
    spark: SparkSession, tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    postgres.run(
        "CREATE TABLE clicks AS SELECT i::bigint AS id, to_timestamp(i * 43200) AT TIME ZONE 'UTC' AS at, "
        "(i % 6)::int AS stars, i / 2.0 AS price FROM generate_series(1, 12) AS i"
    )
    ranges = {"partition_column": "id", "lower": 1, "upper": 13, "partitions": 3}
    source = {"format": "jdbc", "path": "clicks", "jdbc": {"url": postgres.jdbc_url, "user": postgres.user, **ranges}}
    contract = _typed_contract(tmp_path, **source)
    contract.write_text(contract.read_text().replace("time_format: epoch_ms", "time_format: iso8601"))
    monkeypatch.setenv("HEADRACE_JDBC_PASSWORD", postgres.password)
    snapshot = _ingest(spark, tmp_path)
    ledger = snapshot.manifest.ledger.tables["events"]
    assert (ledger.lines, ledger.accepted, ledger.quarantined_by_rule) == (12, 10, {"range:stars": 2})
    rows = {row["id"]: row for row in snapshot.read("events").to_pylist()}
    assert rows[3] == {"id": 3, "at": 129_600_000, "stars": 3, "price": 1.5, "tags": None}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    said = capfd.readouterr()
    assert postgres.password.encode() not in written
    assert postgres.password not in said.out + said.err
    again = _ingest(spark, tmp_path)
    assert again.manifest.config_digest == snapshot.manifest.config_digest


def test_a_password_comes_from_pgpass_by_host_port_database_and_user(tmp_path: Path) -> None:
    file = tmp_path / ".pgpass"
    file.write_text("# mine\nhost:1:db:me:no\n*:5432:shop:me:a\\:b\\\\c\n*:*:*:*:last\n")
    file.chmod(0o600)
    assert password_in(file, ("h", "5432", "shop", "me")) == "a:b\\c"
    assert password_in(file, ("h", "5433", "shop", "me")) == "last"
    assert password_in(tmp_path / "none", ("h", "1", "d", "u")) is None
    file.chmod(0o644)
    with pytest.raises(UserError, match="can be read by others: chmod 0600"):
        password_in(file, ("h", "1", "d", "u"))


def test_a_cut_off_gzip_file_is_named_and_nothing_is_published(spark: SparkSession, tmp_path: Path) -> None:
    write_click_log(tmp_path, [], path="clicks.csv.gz")
    whole = gzip.compress(b"\n".join([HEADER, *(f"u{i},i{i * 7919},{i}".encode() for i in range(20_000))]))
    (tmp_path / "raw" / "clicks.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"clicks\.csv\.gz"):
        _ingest(spark, tmp_path)
    assert not (tmp_path / "out" / "manifest.json").exists()
    (tmp_path / "raw" / "clicks.csv.gz").write_bytes(whole)
    assert _ingest(spark, tmp_path).manifest.ledger.tables["events"].accepted == 20_000


@pytest.mark.parametrize("damage", ["a byte", "the checksum", "no gzip at all"])
def test_a_damaged_gzip_file_is_named_and_nothing_is_published(
    spark: SparkSession, tmp_path: Path, damage: str
) -> None:
    write_click_log(tmp_path, [], path="clicks.csv.gz")
    lines = [HEADER, *(f"u{i},i{i * 7919},{i}".encode() for i in range(20_000))]
    content = bytearray(gzip.compress(b"\n".join(lines), compresslevel=1))
    if damage == "a byte":
        content[len(content) // 2] ^= 0xFF
    elif damage == "the checksum":
        content[-8] ^= 0xFF
    else:
        content = bytearray(b"\n".join(lines))
    (tmp_path / "raw" / "clicks.csv.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"clicks\.csv\.gz"):
        _ingest(spark, tmp_path)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_zstd_files_are_read_beside_plain_ones_line_by_line(spark: SparkSession, tmp_path: Path) -> None:
    write_click_log(tmp_path, [HEADER, b"u0,z,0"], path="clicks*")
    # A byte order mark, all three ends of lines, bytes that are no UTF-8, no end at the end; and a frame after a frame.
    lines = HEADER + b"\nu1,a,1\r\nu2,b\xff,2\ru3,c,3\n\nu4,d,4"
    frames = [pa.compress(part, codec="zstd", asbytes=True) for part in (b"\xef\xbb\xbf" + lines, b"5\nu5,e,5")]
    (tmp_path / "raw" / "clicks 50%25.csv.zst").write_bytes(b"".join(frames))
    ledger = _ingest(spark, tmp_path).manifest.ledger.tables["events"]
    assert (ledger.accepted, ledger.quarantined_by_rule) == (5, {"encoding": 1})
    assert (ledger.headers, ledger.blanks, ledger.lines) == (2, 1, 9)


def test_lines_do_not_depend_on_where_blocks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"a\r\nbb\n\nccc\rd\r\r\neeee"
    (tmp_path / "x.zst").write_bytes(pa.compress(content, codec="zstd", asbytes=True))
    for size in range(1, len(content) + 1):
        monkeypatch.setattr("spark_jobs.text_files._BLOCK_BYTES", size)
        found = [line for lines in lines_of(str(tmp_path / "x.zst")) for line in lines]
        assert found == [b"a", b"bb", b"", b"ccc", b"d", b"", b"eeee"]


def test_a_cut_off_zstd_file_is_named_and_nothing_is_published(spark: SparkSession, tmp_path: Path) -> None:
    write_click_log(tmp_path, [], path="clicks.csv.zst")
    whole = b"\n".join([HEADER, *(f"u{i},i{i * 7919},{i}".encode() for i in range(400_000))])
    compressed = pa.compress(whole, codec="zstd", asbytes=True)
    named = r"clicks\.csv\.zst cannot be read to its end \(.+\): is it cut short or damaged\? Nothing was published"
    for wrong in (compressed[: len(compressed) // 2], b"no zstd at all"):
        (tmp_path / "raw" / "clicks.csv.zst").write_bytes(wrong)
        with pytest.raises(UserError, match=named):
            _ingest(spark, tmp_path)
        assert not (tmp_path / "out" / "manifest.json").exists()
    (tmp_path / "raw" / "clicks.csv.zst").write_bytes(compressed)
    assert _ingest(spark, tmp_path).manifest.ledger.tables["events"].accepted == 400_000
    with pytest.raises(BrokenFile, match=r"^nowhere://x/y\.zst cannot be opened \(.*nowhere.*\)\.$"):
        next(lines_of("nowhere://x/y.zst"))
    with pytest.raises(BrokenFile, match=r"z\.zst cannot be opened"):
        next(lines_of(f"file:{tmp_path}/z.zst"))


def test_files_with_odd_names_are_known_by_them(spark: SparkSession, tmp_path: Path) -> None:
    write_click_log(tmp_path, [], path="clicks")
    names = ["a b.csv", "50%25.csv", "c+d,e=f.csv", "é.csv"]
    for number, name in enumerate(names):
        write_lines(tmp_path / "raw" / "clicks" / name, [HEADER, f"u{number},a,1".encode(), b"u1"])
    snapshot = _ingest(spark, tmp_path, max_quarantined=1)
    assert snapshot.manifest.ledger.tables["events"].accepted == 4
    state = snapshot.manifest.store
    assert state is not None
    assert {file.url.rsplit("/", 1)[-1]: file.lines for file in state.tables["events"].sources} == dict.fromkeys(
        names, 3
    )
