"""The jobs on Spark's standalone cluster: one snapshot wherever it is made, and a history of what was done."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pyspark.sql import SparkSession

from schemas.profile import PROFILE, Profile
from schemas.snapshot import open_snapshot
from spark_jobs.jobs.images import ImagesConfig, images
from spark_jobs.jobs.profile_snapshot import ProfileConfig, profile
from tests.spark.cluster import Cluster, get, history_server, standalone_cluster, wait_for
from tests.spark.logs import run_ingest, run_prepare, write_film_log

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(scope="module")
def made(cluster: Cluster) -> Path:
    """A folder with the film log, ingested and prepared on the cluster from and to URLs."""
    folder = cluster.folder / "films"
    contract, at = write_film_log(folder), f"file://{folder}"
    arguments = ["--contract", str(contract), "--raw", f"{at}/raw", "--out", f"{at}/events"]
    code, out, err = cluster.run("ingest", *arguments, "--max-quarantined", "0.5")
    assert code == 0, out + err
    arguments = ["--events", f"{at}/events", "--out", f"{at}/snapshot", "--split", "time:0.6,0.2,0.2"]
    arguments += ["--history-length", "3", "--seen-length", "10", "--num-negatives", "4", "--max-values", "1000"]
    code, out, err = cluster.run("prepare", *arguments)
    assert code == 0, out + err
    return folder


def test_a_cluster_makes_the_same_snapshot_as_one_machine(made: Path, spark: SparkSession) -> None:
    run_ingest(spark, made / "contract.yaml", made / "raw", made / "events-here")
    run_prepare(spark, made / "events-here", made / "snapshot-here")
    there, here = (open_snapshot(str(made / name)) for name in ("snapshot", "snapshot-here"))
    there.verify()
    assert there.manifest.content_sums == here.manifest.content_sums
    assert there.manifest.row_id_sums == here.manifest.row_id_sums
    assert there.manifest.ledger == here.manifest.ledger
    assert there.manifest.transform == here.manifest.transform


def test_both_workers_had_executors_and_got_the_code(cluster: Cluster, made: Path) -> None:
    for host in ("127.0.0.1", "127.0.0.2"):
        assert len(list(cluster.folder.glob(f"work-{host}/app-*/*/stderr"))) == 2, "one a job"


def test_the_history_server_shows_each_job_with_its_steps(cluster: Cluster, made: Path) -> None:
    with history_server(cluster.events) as api:
        wait_for("both applications", lambda: len(get(f"{api}/applications") or []) == 2)
        steps: dict[str, list[str]] = {}
        for application in get(f"{api}/applications"):
            jobs: list[dict[str, Any]] = get(f"{api}/applications/{application['id']}/jobs")
            assert all(job["status"] == "SUCCEEDED" for job in jobs)
            assert all(attempt["completed"] for attempt in application["attempts"])
            steps[application["name"]] = [job.get("description", "") for job in reversed(jobs)]
    assert {*steps} == {"headrace ingest", "headrace prepare"}
    assert {
        "events: lines and days of the files",
        "events: rows checked and written",
        "items: rows checked and written",
    } <= {*steps["headrace ingest"]}
    assert {
        "statistics of the splits",
        "vocabularies and moments",
        "train",
        "valid and test",
        "items and users",
        "check of what was written",
    } <= {*steps["headrace prepare"]}


def test_the_profile_of_a_cluster_is_that_of_one_machine(cluster: Cluster, made: Path, spark: SparkSession) -> None:
    code, out, err = cluster.run("profile", str(made / "snapshot"), "--out", str(made / "profile"))
    assert code == 0, out + err
    profile(spark, ProfileConfig(folder=str(made / "snapshot"), out=str(made / "profile-here")))
    there, here = (
        Profile.model_validate_json((made / name / PROFILE).read_text(encoding="utf-8"))
        for name in ("profile", "profile-here")
    )
    assert there.tables == here.tables
    assert there.findings == here.findings


def test_python_on_the_executors_may_come_in_an_archive(cluster: Cluster, spark: SparkSession, tmp_path: Path) -> None:
    """An environment as `venv-pack` makes it would weigh gigabytes; this one runs the Python at hand, and says so."""
    for number in range(8):
        path = tmp_path / "photos" / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((24, 32, 3), (number * 30, 90, 200 - number), np.uint8))
    (tmp_path / "started").mkdir()
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\ntouch "{tmp_path}/started/$$"\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    with tarfile.open(tmp_path / "environment.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "environment", arcname=".")
    conf = [
        f"spark.archives=file:{tmp_path}/environment.tar.gz#environment",
        "spark.pyspark.python=./environment/bin/python",
        f"spark.pyspark.driver.python={sys.executable}",
    ]
    arguments = ["--images", str(tmp_path / "photos"), "--size", "16", "--split", "0.5,0.25,0.25"]
    code, out, err = cluster.run("images", *arguments, "--out", str(tmp_path / "there"), conf=conf)
    assert code == 0, out + err
    assert list((tmp_path / "started").iterdir()), "the archive's Python ran"
    given = ImagesConfig(images=(str(tmp_path / "photos"),), out=str(tmp_path / "here"), size=16, split="0.5,0.25,0.25")
    images(spark, given)
    there, here = (open_snapshot(str(tmp_path / name)) for name in ("there", "here"))
    there.verify()
    assert there.manifest.content_sums == here.manifest.content_sums
    assert there.manifest.ledger == here.manifest.ledger
