"""The events folder run after run: whatever the order in which files come, it is what one run over all would make."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.snapshot import open_snapshot
from spark_jobs.event_store import EventStore, claim
from tests.spark.logs import run_ingest, write_click_log, write_film_log, write_lines

pytestmark = pytest.mark.slow

HEADER = b"user,item,time"
DAY_S = 86_400
DAYS = ("1970-01-01", "1970-01-02", "1970-01-03")


def _log(folder: Path, files: dict[str, list[bytes]]) -> Path:
    """A contract over the folder of clicks, and these files in it."""
    contract = write_click_log(folder, [], path="clicks")
    for name, lines in files.items():
        _write(folder, name, lines)
    return contract


def _write(folder: Path, name: str, lines: list[bytes]) -> None:
    path = folder / "raw" / "clicks" / name
    before = path.stat().st_mtime_ns if path.exists() else 0
    write_lines(path, [HEADER, *lines])
    os.utime(path, ns=(before + 1_000_000_000, before + 1_000_000_000))  # two writes within a tick are told apart


def _manifest(folder: Path) -> Manifest:
    return open_snapshot(str(folder / "out"), kind="events").manifest


def _ingest(spark: SparkSession, folder: Path, **changes: Any) -> Manifest:
    run_ingest(spark, folder / "contract.yaml", folder / "raw", folder / "out", max_quarantined=1, **changes)
    return _manifest(folder)


def _content(folder: Path) -> dict[str, Any]:
    """All that one run over the same files must agree on: rows by day with checksums, refusals, the ledger, files."""
    snapshot = open_snapshot(str(folder / "out"), kind="events")
    snapshot.verify()
    state = snapshot.manifest.store
    assert state is not None
    refused = snapshot.read("quarantine/events").to_pylist() if snapshot.files("quarantine/events") else []
    return {
        "days": {day: rows.model_dump() for day, rows in state.tables["events"].days.items() if rows.rows},
        "ledger": snapshot.manifest.ledger.tables["events"],
        "rows": sorted(map(str, snapshot.read("events").to_pylist())) if snapshot.files("events") else [],
        "refused": sorted((row["line"], row["rule"], row["file"].rsplit("/", 1)[-1]) for row in refused),
        "files": {file.url.rsplit("/", 1)[-1]: file.days for file in state.tables["events"].sources},
    }


def _click(user: int, day: int, second: int = 0) -> bytes:
    return f"u{user},i,{day * DAY_S + second}".encode()


def test_a_second_run_with_nothing_new_is_no_run(spark: SparkSession, tmp_path: Path) -> None:
    _log(tmp_path, {"a": [_click(1, 0), b"u1,i"]})
    first = _ingest(spark, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert _ingest(spark, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_new_day_leaves_the_files_of_the_others_as_they_are(spark: SparkSession, tmp_path: Path) -> None:
    _log(tmp_path, {"a": [_click(1, 0), _click(1, 1)]})
    first = {file.path: file.sha256 for file in _ingest(spark, tmp_path).parts["events"]}
    _write(tmp_path, "b", [_click(1, 2)])
    second = _ingest(spark, tmp_path)
    assert second.store is not None
    assert second.store.version == 2
    files = {file.path: file.sha256 for file in second.parts["events"]}
    assert files.items() > first.items()
    assert [path.split("/")[1] for path in files.keys() - first.keys()] == ["day=1970-01-03"]


def test_a_day_built_again_replaces_that_day_and_nothing_else(spark: SparkSession, tmp_path: Path) -> None:
    _log(tmp_path, {"a": [_click(1, 0), _click(1, 1), b"u1,i"], "b": [_click(2, 1), b",i,86401"]})
    first = _ingest(spark, tmp_path)
    second = _ingest(spark, tmp_path, day=DAYS[1])
    for part in ("events", "quarantine/events"):
        was, now = ({f.path: f.sha256 for f in made.parts[part]} for made in (first, second))
        assert {path for path in was.keys() ^ now.keys()} == {p for p in was.keys() | now.keys() if DAYS[1] in p}
    assert first.store is not None
    assert second.store is not None
    assert first.store.tables == second.store.tables


def test_a_day_built_again_leaves_items_and_users_as_they_are(spark: SparkSession, tmp_path: Path) -> None:
    contract = write_film_log(tmp_path)
    run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out")
    first = open_snapshot(str(tmp_path / "out"), kind="events").manifest
    run_ingest(spark, contract, tmp_path / "raw", tmp_path / "out", day=DAYS[0])
    second = open_snapshot(str(tmp_path / "out"), kind="events").manifest
    assert first.store is not None
    assert second.store is not None
    assert second.store.version == 2
    assert second.store.tables == first.store.tables
    assert second.ledger == first.ledger
    for part in ("items", "users"):
        assert second.parts[part] == first.parts[part]


@pytest.mark.parametrize("late", [b"u1,i,5", b"u1,i,5,"], ids=["the same row", "a bad row"])
def test_late_rows_of_an_earlier_day_meet_the_rows_that_stand(spark: SparkSession, tmp_path: Path, late: bytes) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    _log(one, {"a": [b"u1,i,5", _click(1, 1)]})
    _ingest(spark, one)
    _write(one, "b", [late, _click(3, 0)])
    _ingest(spark, one)
    _log(other, {"a": [b"u1,i,5", _click(1, 1)], "b": [late, _click(3, 0)]})
    _ingest(spark, other)
    assert _content(one) == _content(other)
    assert _content(one)["ledger"].accepted == 3


def test_an_older_version_stays_readable_until_newer_ones_let_it_go(spark: SparkSession, tmp_path: Path) -> None:
    _log(tmp_path, {"a": [_click(1, 0)]})
    paths = [{file.path for file in _ingest(spark, tmp_path).parts["events"]}]
    for version in (2, 3):
        _write(tmp_path, "a", [_click(version, 0)])
        paths.append({file.path for file in _ingest(spark, tmp_path).parts["events"]})
    there = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out" / "events").rglob("*.parquet")}
    assert there == paths[1] | paths[2]
    assert sorted(path.name for path in (tmp_path / "out" / "versions").glob("*.json")) == [
        "000002.json",
        "000003.json",
    ]
    old = json.loads((tmp_path / "out" / "versions" / "000002.json").read_text())
    assert {file["path"] for file in old["parts"]["events"]} == paths[1]


def test_a_version_that_was_written_but_not_shown_is_shown_by_the_next_run(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _log(tmp_path, {"a": [_click(1, 0)]})
    _ingest(spark, tmp_path)
    _write(tmp_path, "b", [_click(1, 1)])
    with monkeypatch.context() as patch:
        patch.setattr("spark_jobs.hadoop_files.HadoopFiles.replace_text", _dies)
        with pytest.raises(KeyboardInterrupt):
            _ingest(spark, tmp_path)
    assert _manifest(tmp_path).ledger.tables["events"].accepted == 1
    assert _ingest(spark, tmp_path).ledger.tables["events"].accepted == 2
    _content(tmp_path)


def _dies(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_second_of_two_jobs_ends_the_first_and_nothing_is_lost(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _log(tmp_path, {"a": [_click(1, 0)]})
    _ingest(spark, tmp_path)
    _write(tmp_path, "b", [_click(1, 1)])
    place = EventStore.place
    overtaking = iter([None])

    def overtaken(store: EventStore, *arguments: str) -> Any:
        if next(overtaking, "done") is None:
            _write(tmp_path, "c", [_click(1, 2)])
            _ingest(spark, tmp_path)
        return place(store, *arguments)

    monkeypatch.setattr(EventStore, "place", overtaken)
    with pytest.raises(UserError, match="another job began to write here meanwhile"):
        _ingest(spark, tmp_path)
    assert _content(tmp_path)["ledger"].accepted == 3
    assert not (tmp_path / "out" / "_writer").exists()


def test_of_two_jobs_that_both_got_to_the_end_one_publishes(spark: SparkSession, tmp_path: Path) -> None:
    _log(tmp_path, {"a": [_click(1, 0)]})
    manifest = _ingest(spark, tmp_path)
    slow = claim(spark, str(tmp_path / "out"))
    quick = claim(spark, str(tmp_path / "out"))
    with pytest.raises(UserError, match="another job began to write here meanwhile"):
        slow.commit(manifest, keep_versions=2)
    quick.commit(manifest, keep_versions=2)
    (tmp_path / "out" / "_writer").write_text(slow.writer)  # as if it had looked a moment earlier
    with pytest.raises(UserError, match="another job published version 2 meanwhile; run again"):
        slow.commit(manifest, keep_versions=2)


def test_debris_of_a_killed_job_goes_with_the_next_version(spark: SparkSession, tmp_path: Path) -> None:
    _log(tmp_path, {"a": [_click(1, 0)]})
    _ingest(spark, tmp_path)
    out = tmp_path / "out"
    for path in ("events/day=1970-01-01/part-9.zstd.parquet", "_staging/x/events-sound/part-0.parquet", "_writer"):
        write_lines(out / path, [b"debris"])
    write_lines(out / "notes.txt", [b"mine"])
    _write(tmp_path, "b", [_click(1, 1)])
    _ingest(spark, tmp_path)
    assert not any(
        (out / path).exists() for path in ("events/day=1970-01-01/part-9.zstd.parquet", "_staging", "_writer")
    )
    assert (out / "notes.txt").exists()


def test_without_the_time_in_the_key_all_days_are_built_again(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contract = _log(tmp_path, {"a": [b"u1,i,90000"]})
    text = contract.read_text()
    contract.write_text(text.replace("- user\n  - item\n  - time", "- user\n  - item"))
    assert text != contract.read_text()
    _ingest(spark, tmp_path)
    _write(tmp_path, "b", [b"u1,i,5"])
    _ingest(spark, tmp_path)
    assert "all days are built again: the key is without the event time" in capsys.readouterr().out
    rows = open_snapshot(str(tmp_path / "out"), kind="events").read("events").to_pylist()
    assert [row["time"] for row in rows] == [5000]


_LINES = st.sampled_from([
    _click(1, 0), _click(1, 0, 7), _click(2, 0), _click(1, 1), _click(2, 1), _click(3, 2),
    b"u1,i", b"u1,i,0,", b",i,0", b",i,86400", b"u1,i,never", b"",
])  # fmt: skip
_FILES = st.dictionaries(st.sampled_from("abc"), st.lists(_LINES, min_size=1, max_size=5), min_size=1, max_size=2)


@settings(
    phases=(Phase.reuse, Phase.generate),
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(_FILES, min_size=2, max_size=3))
def test_after_any_sequence_of_runs_the_folder_equals_one_run_over_all_files(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory, steps: list[dict[str, list[bytes]]]
) -> None:
    """New files, late rows, the same rows in several files, and changed files, three runs after each other."""
    steps = [{name: [*lines, _click(9, 5)] for name, lines in step.items()} for step in steps]
    folder = tmp_path_factory.mktemp("steps")
    _log(folder, {})
    whole: dict[str, list[bytes]] = {}
    for step in steps:
        for name, lines in step.items():
            _write(folder, name, lines)
        whole |= step
        _ingest(spark, folder)
    once = tmp_path_factory.mktemp("once")
    _log(once, whole)
    _ingest(spark, once)
    assert _content(folder) == _content(once)
