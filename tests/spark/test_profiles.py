"""Profiles as Spark sees them: every key is one that it knows, and spark-submit takes each file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyspark.errors import IllegalArgumentException
from pyspark.sql import SparkSession

from pipelines import profiles
from pipelines.launch import spark_submit
from schemas.snapshot import open_snapshot
from tests.spark.logs import write_film_log

pytestmark = pytest.mark.slow

# Where Spark registers its settings. Each is a Scala object that does so when it is loaded.
REGISTERED_BY = (
    "internal.config.package$",
    "internal.config.History$",
    "internal.config.Network$",
    "internal.config.Python$",
    "internal.config.Status$",
    "internal.config.UI$",
    "sql.internal.SQLConf$",
    "sql.internal.StaticSQLConf$",
    "deploy.yarn.config.package$",
    "deploy.k8s.Config$",
)
# Settings that Spark reads without registering them: https://spark.apache.org/docs/latest/configuration.html
DOCUMENTED = {
    "spark.master",
    "spark.local.dir",
    "spark.executor.resource.gpu.amount",
    "spark.executor.resource.gpu.discoveryScript",
    "spark.task.resource.gpu.amount",
}
# https://nvidia.github.io/spark-rapids/docs/configs.html and additional-functionality/advanced_configs.html
RAPIDS = {
    "spark.rapids.sql.enabled",
    "spark.rapids.sql.explain",
    "spark.rapids.sql.variableFloatAgg.enabled",
    "spark.rapids.sql.concurrentGpuTasks",
    "spark.rapids.memory.pinnedPool.size",
}
# https://hadoop.apache.org/docs/stable/hadoop-aws/tools/hadoop-aws/committers.html, after `spark.hadoop.`
S3A = {
    "spark.hadoop.fs.s3a.committer.name",
    "spark.hadoop.mapreduce.outputcommitter.factory.scheme.s3a",
}


def _suggested(path: Path) -> set[str]:
    """Settings that stand there as comments, for whoever has the jars, the image or the disk."""
    return set(re.findall(r"^# (spark\.\S+) {2,}\S", path.read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.mark.parametrize("name", profiles.names())
def test_every_setting_is_one_that_spark_or_the_plugin_knows(name: str, spark: SparkSession) -> None:
    jvm: Any = spark._jvm
    for registry in REGISTERED_BY:
        jvm.java.lang.Class.forName(f"org.apache.spark.{registry}")
    known = jvm.org.apache.spark.internal.config.ConfigEntry
    path = profiles.find(name)
    keys = {*profiles.settings(path), *_suggested(path)} - DOCUMENTED - S3A - (RAPIDS if name == "rapids" else set())
    assert [key for key in sorted(keys) if known.findEntry(key) is None] == []
    assert known.findEntry("spark.task.maxFailure") is None, "an unknown key is told from a known one"


def test_every_value_is_of_the_kind_that_its_setting_wants(spark: SparkSession) -> None:
    jvm: Any = spark._jvm
    known = jvm.org.apache.spark.internal.config.ConfigEntry
    for name in profiles.names():
        for key, value in profiles.settings(profiles.find(name)).items():
            if known.findEntry(key) is not None:
                known.findEntry(key).valueConverter().apply(value)
    with pytest.raises(IllegalArgumentException, match="4 gigabytes"):
        known.findEntry("spark.executor.memory").valueConverter().apply("4 gigabytes")


@pytest.mark.parametrize(
    ("name", "master"),
    [
        ("local", None),
        ("standalone", "spark://127.0.0.1:1"),
        ("yarn", None),
        ("kubernetes", "k8s://https://127.0.0.1:1"),
        ("rapids", "spark://127.0.0.1:1"),
    ],
)
def test_spark_submit_takes_the_file_as_it_reads_here(name: str, master: str | None, tmp_path: Path) -> None:
    """As far as one gets without the cluster: all settings are read and put together, and the program is started."""
    program, hadoop = tmp_path / "program.py", tmp_path / "hadoop"
    program.write_text("print('started')\n", encoding="utf-8")
    hadoop.mkdir()
    path = profiles.find(name)
    command = [str(Path(sys.executable).parent / "spark-submit"), "--verbose", "--properties-file", str(path)]
    command += ["--master", master] if master else []
    env = os.environ | {"HADOOP_CONF_DIR": str(hadoop), "PYSPARK_PYTHON": sys.executable, "COLUMNS": "120"}
    env |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([*command, str(program)], env=env, capture_output=True, text=True, timeout=300, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "started" in done.stdout
    _, _, properties = said.partition("Spark properties used, including those specified through")
    shown = dict(re.findall(r"^  \((spark\.[^,]+),(.*)\)$", properties.partition("\n\n")[0], flags=re.MULTILINE))
    for key, value in profiles.settings(path).items():
        assert shown[key] == value or key == "spark.master"


def test_a_log_is_ingested_with_the_local_profile(tmp_path: Path) -> None:
    contract = write_film_log(tmp_path)
    arguments = ["--contract", str(contract), "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "events")]
    conf = ["spark.ui.enabled=false", "spark.driver.memory=512m", "spark.sql.shuffle.partitions=2"]
    conf += ["spark.driver.extraJavaOptions=-XX:TieredStopAtLevel=1"]
    assert spark_submit("ingest", [*arguments, "--max-quarantined", "0.5"], profile="local", conf=conf) == 0
    assert open_snapshot(str(tmp_path / "events"), kind="events").manifest.ledger.tables["events"].accepted == 10
