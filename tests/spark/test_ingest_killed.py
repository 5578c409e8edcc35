"""Ingest killed with SIGKILL, and ingest that goes on running: nothing is lost, nothing comes twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pipelines.launch import FOR_SMALL_DATA, ROOT
from schemas.snapshot import open_snapshot
from spark_jobs.jobs.ingest import StreamConfig, ingest_stream
from spark_jobs.table_update import IngestConfig
from tests.spark.logs import run_ingest, write_click_log, write_lines
from tests.spark.test_spark_submit import SMALL, _wait_for

pytestmark = pytest.mark.slow

HEADER = b"user,item,time"


def _write(folder: Path, name: str, day: int) -> None:
    """Ten clicks of a day and a bad line; a name of its own first, for a watcher must not meet half a file."""
    lines = [HEADER, *(f"u{user},i,{day * 86_400 + user}".encode() for user in range(10)), b"u1,i"]
    write_lines(folder / "raw" / f"{name}.part", lines)
    (folder / "raw" / "clicks").mkdir(exist_ok=True)
    (folder / "raw" / f"{name}.part").rename(folder / "raw" / "clicks" / name)


def _accepted(folder: Path) -> int:
    snapshot = open_snapshot(str(folder / "out"), kind="events")
    snapshot.verify()
    return snapshot.manifest.ledger.tables["events"].accepted


def _version(folder: Path, version: int) -> Callable[[], bool]:
    return lambda: (folder / "out" / "versions" / f"{version:06d}.json").exists()


@contextmanager
def _running(folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """spark-submit of ingest in a process group of its own, killed at the end."""
    arguments = ["--contract", f"{folder}/contract.yaml", "--raw", f"{folder}/raw", "--out", f"{folder}/out"]
    command = [str(Path(sys.executable).parent / "spark-submit"), *(f"--conf={setting}" for setting in SMALL)]
    command += [str(ROOT / "spark_jobs" / "jobs" / "ingest.py"), *arguments, "--max-quarantined", "1", *options]
    options_of_java = f"{FOR_SMALL_DATA} -XX:+UseSerialGC"
    mine = {"PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable, "JAVA_TOOL_OPTIONS": options_of_java}
    log = (folder / "log.txt").open("wb")
    job = subprocess.Popen(command, env=os.environ | mine, stdout=log, stderr=log, start_new_session=True)
    try:
        yield job
    finally:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(job.pid, signal.SIGKILL)
        job.wait(timeout=60)
        log.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_click_log(tmp_path, [], path="clicks")
    (tmp_path / "raw" / "clicks.csv").unlink()
    return tmp_path


@pytest.mark.parametrize("moment", ["rows are staged", "files are placed", "the version is written"])
def test_a_driver_killed_at_any_moment_leaves_the_last_version_and_a_second_run_completes(
    spark: SparkSession, folder: Path, moment: str
) -> None:
    _write(folder, "a", 0)
    run_ingest(spark, folder / "contract.yaml", folder / "raw", folder / "out", max_quarantined=1)
    _write(folder, "b", 1)
    out = folder / "out"
    reached = {
        "rows are staged": lambda: any((out / "_staging").glob("*/*/_temporary")),
        "files are placed": lambda: any((out / "events" / "day=1970-01-02").glob("*.parquet")),
        "the version is written": _version(folder, 2),
    }[moment]
    with _running(folder) as job:
        _wait_for(moment, lambda: reached() or job.poll() is not None)
    assert _accepted(folder) in ((10,) if moment == "rows are staged" else (10, 20))
    run_ingest(spark, folder / "contract.yaml", folder / "raw", folder / "out", max_quarantined=1)
    assert _accepted(folder) == 20
    named = {file.path for files in open_snapshot(str(out), kind="events").manifest.parts.values() for file in files}
    assert {str(path.relative_to(out)) for path in out.rglob("*.parquet")} == named
    assert not (out / "_staging").exists()


def _stream_once(spark: SparkSession, folder: Path) -> None:
    paths = {"contract": f"{folder}/contract.yaml", "raw": f"{folder}/raw", "out": f"{folder}/out"}
    ingest_stream(spark, IngestConfig(max_quarantined=1, **paths), StreamConfig(once=True))


def test_files_are_taken_in_as_they_arrive_and_a_batch_played_again_changes_nothing(
    spark: SparkSession, folder: Path
) -> None:
    _write(folder, "a", 0)
    _stream_once(spark, folder)
    assert _accepted(folder) == 10
    _write(folder, "b", 0)  # the same rows again, and a late day
    _write(folder, "c", 3)
    _stream_once(spark, folder)
    assert _accepted(folder) == 20
    before = (folder / "out" / "manifest.json").read_bytes()
    for path in (folder / "out.checkpoint" / "commits").iterdir():
        if path.name.lstrip(".").startswith("1"):
            path.unlink()  # as if the job had been killed after the version and before its own note of the batch
    _stream_once(spark, folder)
    assert (folder / "out" / "manifest.json").read_bytes() == before


def test_a_stream_that_is_killed_goes_on_where_it_was(folder: Path) -> None:
    _write(folder, "a", 0)
    with _running(folder, "--stream", "--every", "1") as job:
        _wait_for("the first version", lambda: _version(folder, 1)() or job.poll() is not None)
        _write(folder, "b", 1)
        _wait_for("the second batch", lambda: any((folder / "out" / "_staging").iterdir()) or job.poll() is not None)
    _write(folder, "c", 2)
    with _running(folder, "--stream", "--once") as job:
        assert job.wait(timeout=300) == 0, (folder / "log.txt").read_text()
    assert _accepted(folder) == 30
