"""One Spark session for all tests, with the promises of the jobs' own session; nothing stays cached between tests."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pipelines.launch import FOR_SMALL_DATA, ROOT
from schemas.snapshot import Snapshot, open_snapshot
from spark_jobs.session import spark_session
from tests.postgres import JDBC_JAR
from tests.spark.logs import run_ingest, run_prepare, write_film_log
from tests.spark.served import write_video_log

# Small data never repays the JVM's second compiler: without it the session needs half the processor time.
_JAVA_OPTIONS = (
    FOR_SMALL_DATA,
    "-XX:+UseSerialGC",
    f"-Dlog4j2.configurationFile={ROOT / 'spark_jobs' / 'log4j2.properties'}",
)
_SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.default.parallelism": "2",
    "spark.driver.memory": "1g",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.extraClassPath": str(JDBC_JAR),  # one that is not there is passed over
    "spark.driver.extraJavaOptions": " ".join(_JAVA_OPTIONS),
}


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """local[2], as spark-submit would set it: the session itself sets the promises and nothing else."""
    settings = [word for key, value in _SETTINGS.items() for word in ("--conf", f"{key}={value}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_SUBMIT_ARGS", shlex.join(["--master", "local[2]", *settings, "pyspark-shell"]))
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        session = spark_session("tests")
    yield session
    session.stop()


@pytest.fixture(autouse=True)
def _clear_cache(request: pytest.FixtureRequest) -> Iterator[None]:
    """Drop what a job left persisted: a job's own session ends with it, this one goes on."""
    yield
    if "spark" in request.fixturenames:
        request.getfixturevalue("spark").catalog.clearCache()


@pytest.fixture(scope="session")
def film_events(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small film log, ingested once."""
    folder = tmp_path_factory.mktemp("films")
    contract = write_film_log(folder)
    run_ingest(spark, contract, folder / "raw", folder / "events")
    return folder / "events"


@pytest.fixture(scope="session")
def film_snapshot_folder(spark: SparkSession, film_events: Path) -> Path:
    """The small film log, prepared once, split by time."""
    out = film_events.parent / "snapshot"
    run_prepare(spark, film_events, out)
    return out


@pytest.fixture(scope="session")
def videos(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a small wheel of videos begins with: contract.yaml, and its event store in `seed`."""
    folder = tmp_path_factory.mktemp("videos")
    run_ingest(spark, write_video_log(folder), folder / "raw", folder / "seed", keep_versions=1)
    return folder


@pytest.fixture(scope="session")
def film_snapshot(film_snapshot_folder: Path) -> Snapshot:
    return open_snapshot(str(film_snapshot_folder))
