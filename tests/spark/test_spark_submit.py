"""The jobs as users start them: under spark-submit, alone and killed in the middle."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pipelines.launch import FOR_SMALL_DATA, ROOT, spark_submit
from schemas.errors import UserError
from schemas.snapshot import open_snapshot
from tests.spark.logs import run_prepare, write_click_log, write_film_log

pytestmark = pytest.mark.slow

SMALL = ("spark.ui.enabled=false", "spark.driver.memory=512m", "spark.sql.shuffle.partitions=2")
OPTIONS = {
    "ingest": "contract raw out max-quarantined as-of day rebuild keep-versions stream once every files-per-batch "
    "checkpoint",
    "prepare": "events out features split history-length train-histories train-days train-since past-share "
    "seen-length negatives num-negatives num-train-negatives min-count max-values seed rows-per-row-group "
    "ranks batch-size num-files",
    "images": "images out size mode format quality split split-by seed max-quarantined augment strip-components "
    "min-side max-pixels",
    "profile_snapshot": "out",
}


@pytest.fixture(scope="module", autouse=True)
def _small_jvms() -> Iterator[None]:
    """Spare each JVM started here the second compiler, which small data never repays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAVA_TOOL_OPTIONS", f"{FOR_SMALL_DATA} -XX:+UseSerialGC")
        yield


def _wait_for(what: str, there: Callable[[], bool], *, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)


def _submitted(job: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    """spark-submit in a process group of its own, as a user would type it in a checkout."""
    command = [str(Path(sys.executable).parent / "spark-submit"), *(f"--conf={setting}" for setting in SMALL)]
    command += [str(ROOT / "spark_jobs" / "jobs" / f"{job}.py"), *arguments]
    mine = {"PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable, "COLUMNS": "120"}
    return subprocess.Popen(
        command,
        env=os.environ | mine,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def test_help_names_every_option_and_what_it_is_for() -> None:
    running = {job: _submitted(job, "--help") for job in OPTIONS}
    for job, process in running.items():
        shown, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        assert shown.startswith(f"usage: spark-submit spark_jobs/jobs/{job}.py ")
        named = re.findall(r"^  --([a-z-]+)(?: [A-Z_{][^\n]*?)?(?:  +|\n {10,})\S", shown, flags=re.MULTILINE)
        assert named == OPTIONS[job].split(), shown
        assert len(named) == len(re.findall("^  --", shown, flags=re.MULTILINE)), shown


def test_a_mistake_is_answered_with_exit_code_2_and_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    contract = write_click_log(tmp_path, [b"who,item,time", b"u1,a,1"])
    arguments = ["--contract", str(contract), "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]
    assert spark_submit("ingest", arguments, conf=SMALL) == 2
    said = capfd.readouterr()
    ours = [line for line in said.err.splitlines() if "ingest" in line or "column" in line]
    assert len(ours) == 1
    assert re.fullmatch(
        r"ingest: events: file:/.*/raw/clicks\.csv: column 'user' .* is missing from the header\..*", ours[0]
    )
    assert "Traceback" not in said.err + said.out
    assert said.out == ""


@pytest.fixture(scope="module")
def submitted_events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The film log, ingested by spark-submit on local[*]."""
    folder = tmp_path_factory.mktemp("submitted")
    contract = write_film_log(folder)
    arguments = ["--contract", str(contract), "--raw", str(folder / "raw"), "--out", str(folder / "events")]
    assert spark_submit("ingest", [*arguments, "--max-quarantined", "0.5"], master="local[*]", conf=SMALL) == 0
    return folder / "events"


def test_a_log_is_ingested_under_spark_submit(submitted_events: Path) -> None:
    snapshot = open_snapshot(str(submitted_events), kind="events")
    snapshot.verify()
    assert snapshot.manifest.ledger.tables["events"].accepted == 10


def test_a_job_killed_in_the_middle_publishes_nothing_and_runs_again(
    spark: SparkSession, film_events: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = _submitted("prepare", "--events", str(film_events), "--out", str(out), "--split", "time:0.6,0.2,0.2")
    try:
        _wait_for("the items to be written", lambda: any((out / "items").glob("*.parquet")))
        os.kill(job.pid, signal.SIGKILL)
        job.wait(timeout=60)
        assert job.returncode == -signal.SIGKILL
    finally:
        os.killpg(job.pid, signal.SIGKILL)  # Python's half of the driver, should it live on
    assert (out / "_writer").exists()
    assert not (out / "manifest.json").exists()
    with pytest.raises(UserError, match="is no published folder"):
        open_snapshot(str(out))
    run_prepare(spark, film_events, out)
    snapshot = open_snapshot(str(out))
    snapshot.verify()
    assert snapshot.manifest.rows("train") == 6
    assert not (out / "_writer").exists()
