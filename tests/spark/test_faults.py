"""What faults do: executors and drivers killed on a cluster, full disks, files that go away while they are read."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from pipelines.launch import ROOT
from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.profile import PROFILE, Profile
from schemas.snapshot import open_snapshot
from spark_jobs.command_line import mistake_in
from spark_jobs.jobs.images import ImagesConfig, images
from spark_jobs.jobs.profile_snapshot import ProfileConfig, profile
from tests.small_disk import give_room, small_disk
from tests.spark.cluster import QUICK_START, Cluster, kill_all, standalone_cluster, wait_for
from tests.spark.logs import run_ingest, run_prepare, write_click_log

pytestmark = pytest.mark.slow

ROWS = 12_000
READABLE = ("spark.eventLog.compress=false",)
SPLIT = ("--split", "time:0.6,0.2,0.2", "--history-length", "3", "--seen-length", "10", "--num-negatives", "4")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clicks of two days, with names that do not compress, and a line in a hundred that is refused."""
    folder = tmp_path_factory.mktemp("clicks")

    def line(number: int) -> bytes:
        user = hashlib.md5(str(number * 7919 % 900).encode()).hexdigest()
        return f"{user},i{number * 31 % 200},{number * 14 if number % 100 else 'late'}".encode()

    write_click_log(folder, [b"user,item,time", *map(line, range(ROWS))])
    return folder


@pytest.fixture(scope="module")
def expected(log: Path, spark: SparkSession) -> Manifest:
    """The snapshot as one machine makes it when nothing happens."""
    run_ingest(spark, log / "contract.yaml", log / "raw", log / "events")
    run_prepare(spark, log / "events", log / "snapshot", max_values=10_000_000)
    return _manifest(log / "snapshot")


def _manifest(folder: Path) -> Manifest:
    snapshot = open_snapshot(str(folder), kind="events" if (folder / "versions").exists() else "snapshot")
    snapshot.verify()
    return snapshot.manifest


def _kill_an_executor_in_each(cluster: Cluster, job: subprocess.Popen[str], steps: list[str]) -> tuple[int, str]:
    """Kill -9 an executor as soon as a Spark job of each step runs; give exit code and output."""
    try:
        for step in steps:
            wait_for(
                f"the step {step!r}",
                lambda step=step: job.poll() is not None or any(j.get("description") == step for j in cluster.jobs()),
            )
            assert job.poll() is None, f"{step!r} was not met: {job.communicate()}"
            wait_for("an executor", lambda: len(cluster.executors()) > 0)
            victim = cluster.busy_executor()
            assert victim is not None
            victim.kill()
            running = [f"{j['description']} {j['numCompletedTasks']}/{j['numTasks']}" for j in cluster.jobs()[:1]]
            print(f"killed executor {victim.pid} in {step!r}; newest Spark job: {running}")
        out, err = job.communicate(timeout=300)
        removed, tasks = cluster.lost()
        print(f"executors lost: {removed}; tasks in their hands: {tasks}")
        assert removed >= len(steps)
        return job.returncode, out + err
    finally:
        kill_all(job)


def test_executors_killed_in_ingest_change_nothing(cluster: Cluster, log: Path, expected: Manifest) -> None:
    arguments = ["--contract", f"{log}/contract.yaml", "--raw", f"{log}/raw", "--out", f"{log}/events-killed"]
    job = cluster.start("ingest", *arguments, "--max-quarantined", "0.5", conf=READABLE)
    steps = ["events: lines and days of the files", "events: rows checked and written"]
    code, said = _kill_an_executor_in_each(cluster, job, steps)
    assert code == 0, said
    made, here = _manifest(log / "events-killed"), _manifest(log / "events")
    made.ledger.check()
    assert made.ledger == here.ledger
    assert made.config_digest == here.config_digest, "which holds the checksum of every day's rows"


@pytest.mark.parametrize(
    "steps",
    [
        ["vocabularies and moments", "train", "items and users"],
        ["statistics of the splits", "valid and test", "check of what was written"],
    ],
    ids=["odd steps", "even steps"],
)
def test_executors_killed_in_prepare_change_nothing(
    steps: list[str], cluster: Cluster, log: Path, expected: Manifest, tmp_path: Path
) -> None:
    job = cluster.start("prepare", "--events", f"{log}/events", "--out", f"{tmp_path}/killed", *SPLIT, conf=READABLE)
    code, said = _kill_an_executor_in_each(cluster, job, steps)
    assert code == 0, said
    made = _manifest(tmp_path / "killed")
    assert made.content_sums == expected.content_sums
    assert made.row_id_sums == expected.row_id_sums
    assert made.ledger == expected.ledger


def test_executors_killed_in_images_change_nothing(cluster: Cluster, spark: SparkSession, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for number in range(120):
        path = tmp_path / "photos" / f"class {number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), noise.integers(0, 256, (96, 96, 3), np.uint8))
    given = ImagesConfig(images=(str(tmp_path / "photos"),), out=str(tmp_path / "here"), size=64)
    images(spark, given)
    arguments = ["--images", f"{tmp_path}/photos", "--size", "64", "--out", f"{tmp_path}/killed"]
    job = cluster.start("images", *arguments, conf=(*READABLE, f"spark.pyspark.python={sys.executable}"))
    steps = [
        "images decoded and fitted",
        "duplicates, classes and splits",
        "train, valid and test",
        "check of what was written",
    ]
    code, said = _kill_an_executor_in_each(cluster, job, steps)
    assert code == 0, said
    made, here = _manifest(tmp_path / "killed"), _manifest(tmp_path / "here")
    assert made.content_sums == here.content_sums
    assert made.ledger == here.ledger


def test_executors_killed_in_profile_change_nothing(
    cluster: Cluster, log: Path, expected: Manifest, spark: SparkSession, tmp_path: Path
) -> None:
    profile(spark, ProfileConfig(folder=f"{log}/events", out=f"{tmp_path}/here"))
    job = cluster.start("profile", f"{log}/events", "--out", f"{tmp_path}/killed", conf=READABLE)
    code, said = _kill_an_executor_in_each(cluster, job, ["events: sketches and counts", "refused rows"])
    assert code == 0, said
    made, here = (
        Profile.model_validate_json((tmp_path / name / PROFILE).read_text(encoding="utf-8"))
        for name in ("killed", "here")
    )
    assert _exact(made) == _exact(here)
    assert made.quarantine == here.quarantine
    assert made.findings == here.findings


def _exact(profile: Profile) -> dict[tuple[str, str], list[float | None]]:
    """What no sketch is asked for: which bins and values one picks depends on the order in which tasks end."""
    return {
        (table.name, column.name): [of.values, of.nulls, of.min, of.max, sum(of.counts)]
        for table in profile.tables
        for column in table.columns
        for of in column.groups.values()
    }


@pytest.mark.parametrize("moment", ["before the manifest", "after the manifest"])
def test_a_driver_killed_in_prepare_leaves_a_whole_snapshot_or_none(
    moment: str, cluster: Cluster, log: Path, expected: Manifest
) -> None:
    out = log / f"snapshot-{moment.replace(' ', '-')}"
    arguments = ["--events", f"{log}/events", "--out", str(out), *SPLIT]
    job = cluster.start("prepare", *arguments)
    try:
        if moment == "before the manifest":
            wait_for("rows of train", lambda: any((out / "train").glob("*.parquet")) or job.poll() is not None)
        else:
            wait_for("the manifest", lambda: (out / "manifest.json").exists() or job.poll() is not None)
    finally:
        kill_all(job)
    if moment == "before the manifest":
        with pytest.raises(UserError, match="is no published folder"):
            open_snapshot(str(out))
    else:
        assert _manifest(out).content_sums == expected.content_sums
    code, said, err = cluster.run("prepare", *arguments)
    assert code == 0, err
    assert ("stands already" in said) == (moment == "after the manifest")
    assert _manifest(out).content_sums == expected.content_sums


def _headrace(*words: str) -> subprocess.CompletedProcess[str]:
    conf = ["spark.ui.enabled=false", "spark.driver.memory=512m", f"spark.driver.extraJavaOptions={QUICK_START}"]
    command = [sys.executable, "-m", "pipelines.cli", words[0], "--profile", "local", "--master", "local[2]"]
    command += [word for setting in conf for word in ("--conf", setting)]
    return subprocess.run([*command, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def _said(done: subprocess.CompletedProcess[str], job: str) -> str:
    """What a job said of a mistake: one line, and nothing of Spark's around it."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith("WARNING")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"{job}: ")
    return lines[0]


def test_a_full_disk_of_the_output_is_named_and_with_room_the_same_command_completes(
    log: Path, expected: Manifest, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "128k") as disk:
        command = ("prepare", "--events", f"{log}/events", "--out", f"{disk}/snapshot", *SPLIT)
        said = _said(_headrace(*command), "prepare")
        assert re.search(r"no space left on the disk of file:/\S+/disk/snapshot/\S+\. Nothing was published", said), (
            said
        )
        assert not (disk / "snapshot" / "manifest.json").exists()
        give_room(disk)
        again = _headrace(*command)
        assert again.returncode == 0, again.stderr
        assert _manifest(disk / "snapshot").content_sums == expected.content_sums


def test_a_full_disk_for_shuffles_is_named_and_with_room_the_same_command_completes(
    log: Path, expected: Manifest, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        command = ("prepare", "--conf", f"spark.local.dir={disk}", "--events", f"{log}/events")
        command += ("--out", f"{tmp_path}/snapshot", *SPLIT)
        said = _said(_headrace(*command), "prepare")
        assert f"the disk for shuffles and spills (spark.local.dir, {disk})" in said
        assert not (tmp_path / "snapshot" / "manifest.json").exists()
        give_room(disk)
        again = _headrace(*command)
        assert again.returncode == 0, again.stderr
        assert _manifest(tmp_path / "snapshot").content_sums == expected.content_sums


def test_a_file_of_events_that_goes_away_is_named(log: Path, expected: Manifest, tmp_path: Path) -> None:
    gone = sorted((log / "events" / "events").rglob("*.parquet"))[0]
    away = gone.rename(tmp_path / gone.name)
    try:
        said = _said(_headrace("prepare", "--events", f"{log}/events", "--out", f"{tmp_path}/snapshot"), "prepare")
    finally:
        away.rename(gone)
    assert str(gone) in said
    assert "run again" in said


def test_a_file_that_goes_away_while_a_job_reads_it_is_named(spark: SparkSession, tmp_path: Path) -> None:
    spark.range(10).coalesce(1).write.parquet(f"{tmp_path}/rows")
    rows = spark.read.parquet(f"{tmp_path}/rows")
    (part,) = (tmp_path / "rows").glob("*.parquet")
    part.unlink()
    with pytest.raises((PySparkException, Py4JJavaError)) as failure:
        rows.agg({"id": "sum"}).collect()
    said = mistake_in(str(failure.value), {})
    assert said is not None
    assert re.fullmatch(
        rf"file:/+{str(part)[1:]} went away while it was read; nothing was published\..* run again\.", said
    )
