"""Profiles as files: each parses, leaves to the jobs what is theirs, and a wrong name is answered with the nearest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipelines import launch, profiles
from pipelines.cli import main
from schemas.errors import UserError


@pytest.mark.parametrize("name", profiles.names())
def test_a_profile_leaves_to_the_jobs_what_they_promise_and_fit_to_their_input(name: str) -> None:
    found = profiles.settings(profiles.find(name))
    assert found["spark.sql.adaptive.skewJoin.enabled"] == "true"
    assert "-XX:-DontCompileHugeMethods" in found["spark.driver.extraJavaOptions"]
    assert not {"spark.sql.shuffle.partitions", "spark.sql.session.timeZone", "spark.sql.ansi.enabled"} & {*found}


def test_there_is_a_profile_for_each_kind_of_cluster() -> None:
    assert profiles.names() == ["kubernetes", "local", "rapids", "standalone", "yarn"]


def test_a_wrong_name_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--profile", "standalon", "--events", "e", "--out", "o"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "headrace: there is no profile 'standalon'; did you mean 'standalone'?; there are kubernetes"
    )
    with pytest.raises(UserError, match=r"no such file; did you mean 'yarn'\?"):
        profiles.find("conf/yarn.conf")


def test_a_file_is_read_as_spark_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.conf"
    file.write_text("# ours\n\nspark.a 1\n  spark.b=x y=z \nspark.c:\t3\n", encoding="utf-8")
    assert profiles.settings(profiles.find(str(file))) == {"spark.a": "1", "spark.b": "x y=z", "spark.c": "3"}
    file.write_text("spark.a 1\nsprak.b 2\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.conf:2: 'sprak\.b' is no setting of Spark's"):
        profiles.settings(file)
    file.write_text("spark.a\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.conf:1: spark\.a has no value"):
        profiles.settings(file)


@pytest.mark.parametrize(
    ("options", "master", "ships_code"),
    [
        ({"profile": "yarn"}, "yarn", True),
        ({"profile": "yarn", "conf": ["spark.master=spark://h:1"]}, "spark://h:1", True),
        ({"profile": "yarn", "conf": ["spark.master=spark://h:1"], "master": "local[2]"}, "local[2]", False),
        ({"profile": "local"}, "local[*]", False),
        ({"conf": ["spark.master=spark://h:1"]}, "spark://h:1", True),
    ],
)
def test_master_wins_over_conf_and_conf_over_the_profile(
    options: dict[str, str], master: str, ships_code: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = _command(monkeypatch, **options)
    assert command[command.index("--master") + 1] == master
    assert ("--py-files" in command) == ships_code
    if "profile" in options:
        assert command[command.index("--properties-file") + 1] == str(profiles.find(options["profile"]))


def test_a_local_job_gets_a_quarter_of_the_memory_unless_somebody_says_how_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.launch.os.sysconf", {"SC_PHYS_PAGES": 4_000_000, "SC_PAGE_SIZE": 4096}.get)
    monkeypatch.setattr("pipelines.launch._CONTAINER_LIMITS", (tmp_path / "limit",))
    monkeypatch.delenv("SPARK_DRIVER_MEMORY", raising=False)
    monkeypatch.delenv("SPARK_CONF_DIR", raising=False)
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))
    conf = tmp_path / "conf"
    conf.mkdir()

    def memory(**options: object) -> list[str]:
        return [word for word in _command(monkeypatch, **options) if word.startswith("spark.driver.memory")]

    assert memory() == memory(master="local[2]") == ["spark.driver.memory=3906m"]
    assert memory(conf=["spark.driver.memory=2g"]) == ["spark.driver.memory=2g"]
    assert memory(profile="local") == memory(master="yarn") == []
    (conf / "spark-defaults.conf").write_text("other.key 1\n# spark.driver.memory 1g\n", encoding="utf-8")
    assert memory() == ["spark.driver.memory=3906m"]
    (conf / "spark-defaults.conf").write_text("spark.driver.memory\t9g\n", encoding="utf-8")
    assert memory() == []
    (conf / "spark-defaults.conf").unlink()
    (conf / "spark-env.sh").write_text("# SPARK_DRIVER_MEMORY=1g\n", encoding="utf-8")
    assert memory() == ["spark.driver.memory=3906m"]
    (conf / "spark-env.sh").write_text("export SPARK_DRIVER_MEMORY=1g\n", encoding="utf-8")
    assert memory() == []
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path / "elsewhere"))
    assert memory() == ["spark.driver.memory=3906m"]
    (tmp_path / "limit").write_text("max\n", encoding="utf-8")
    assert memory() == ["spark.driver.memory=3906m"]
    (tmp_path / "limit").write_text(f"{8 << 30}\n", encoding="utf-8")
    assert memory() == ["spark.driver.memory=2048m"]
    monkeypatch.setenv("SPARK_DRIVER_MEMORY", "1g")
    assert memory() == []


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "raw" / "day=1").mkdir(parents=True)
    (tmp_path / "raw" / "day=1" / "clicks").write_bytes(bytes(1000))
    return tmp_path / "raw"


def test_data_is_small_where_all_of_it_is_known_and_it_is_little(log: Path, tmp_path: Path) -> None:
    assert launch.has_small_data(["--raw", str(log), "--contract", "clicks", "--out", str(tmp_path / "none")])
    with (log / "more").open("wb") as file:
        file.truncate(17 << 20)
    assert not launch.has_small_data(["--raw", str(log)])
    (log / "more").unlink()
    (tmp_path / "empty").mkdir()
    assert not launch.has_small_data(["--contract", "clicks", "--out", str(tmp_path / "empty")]), "a database's"
    assert not launch.has_small_data(["--raw", str(log), "--out", "s3a://bucket/events"])


def test_only_a_local_job_on_little_data_goes_without_the_second_compiler(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_spared(arguments: list[str], **options: object) -> bool:
        words = [word for word in _command(monkeypatch, arguments, **options) if "TieredStopAtLevel" in word]
        # One compiler alone has 48 MB for code unless told otherwise, and a plan of many columns fills them.
        assert all("ReservedCodeCacheSize=240m" in word for word in words)
        return bool(words)

    assert is_spared(["--raw", str(log)])
    assert not is_spared(["--raw", str(log)], master="spark://host:7077")
    assert not is_spared(["--out", "o"])


def _command(
    monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str] = ("--out", "o"), **options: object
) -> list[str]:
    """The words with which spark-submit would be started."""
    started: list[list[str]] = []

    def run(command: list[str], **_: object) -> object:
        started.append(command)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr("pipelines.launch.subprocess.run", run)
    assert launch.spark_submit("ingest", arguments, **options) == 0  # type: ignore[arg-type]
    (command,) = started
    return command


def test_the_folder_of_the_event_log_is_made(tmp_path: Path) -> None:
    for number, url in enumerate((str(tmp_path / "0"), f"file:{tmp_path}/1", f"file://{tmp_path}/2")):
        profiles.make_event_folder({"spark.eventLog.enabled": "true", "spark.eventLog.dir": url})
        assert (tmp_path / str(number)).is_dir()
    profiles.make_event_folder({"spark.eventLog.enabled": "false", "spark.eventLog.dir": f"{tmp_path}/3"})
    profiles.make_event_folder({"spark.eventLog.enabled": "true", "spark.eventLog.dir": "hdfs:///spark-events"})
    assert not (tmp_path / "3").exists()
