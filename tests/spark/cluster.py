"""Spark's standalone cluster from the pip package, on this machine: a master, two workers, a history server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyspark

from pipelines.launch import FOR_SMALL_DATA, ROOT

HOME = Path(pyspark.__file__).parent
# A worker each has its own address, so that Spark takes them for two machines.
HOSTS = ("127.0.0.1", "127.0.0.2")
# Small data never repays the JVM's second compiler.
# The archive that `make setup` writes; Java starts without it where it is not there or of no use.
_ARCHIVE = f"-XX:SharedArchiveFile={Path(sys.prefix) / 'spark.jsa'} -Xlog:cds=off -Xlog:cds+dynamic=off"
QUICK_START = f"{FOR_SMALL_DATA} -XX:+UseSerialGC {_ARCHIVE}"


def wait_for(what: str, there: Callable[[], bool], *, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.03)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def get(url: str) -> Any:
    """The JSON at a URL; None where nobody answers yet."""
    with suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)
    return None


@dataclass
class Cluster:
    folder: Path
    url: str
    workers: list[subprocess.Popen[bytes]]
    ui_port: int = field(default_factory=free_port)
    """Of the job's own UI; jobs run one at a time."""

    @property
    def events(self) -> Path:
        return self.folder / "spark-events"

    def conf(self) -> list[str]:
        """What is smaller here than in the profile, and an address that the executors reach."""
        return [
            "spark.driver.memory=512m",
            "spark.executor.memory=512m",
            "spark.executor.memoryOverhead=128m",
            "spark.driver.host=127.0.0.1",
            "spark.driver.bindAddress=127.0.0.1",
            "spark.sql.shuffle.partitions=2",
            f"spark.driver.extraJavaOptions={QUICK_START}",
            f"spark.executor.extraJavaOptions={QUICK_START}",
            f"spark.eventLog.dir=file:{self.events}",
            f"spark.ui.port={self.ui_port}",
        ]

    def executors(self) -> list[psutil.Process]:
        """The executors' processes, below the workers started here."""
        below = [child for worker in self.workers for child in psutil.Process(worker.pid).children(recursive=True)]
        found = []
        for process in below:
            with suppress(psutil.Error):
                if any("CoarseGrainedExecutorBackend" in word for word in process.cmdline()):
                    found.append(process)
        return found

    def jobs(self) -> list[dict[str, Any]]:
        """The Spark jobs of the job that runs now, the newest first."""
        return self._running("jobs")

    def busy_executor(self) -> psutil.Process | None:
        """An executor that has a task in hand at this moment; any where none has; None where there is none."""
        busy = [one["id"] for one in self._running("executors") if one["activeTasks"] and one["id"] != "driver"]
        processes = self.executors()
        for process in processes:
            with suppress(psutil.Error):
                words = process.cmdline()
                if words[words.index("--executor-id") + 1] in busy:
                    return process
        return processes[0] if processes else None

    def lost(self) -> tuple[int, int]:
        """Executors that the newest job lost, and tasks that were in their hands, by its event log."""
        newest = max(self.events.iterdir(), key=lambda path: path.stat().st_mtime)
        files = [newest] if newest.is_file() else sorted(newest.glob("events_*"))
        events = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        removed = [event for event in events if event["Event"] == "SparkListenerExecutorRemoved"]
        ended = [event for event in events if event["Event"] == "SparkListenerTaskEnd"]
        return len(removed), sum(event["Task End Reason"]["Reason"] == "ExecutorLostFailure" for event in ended)

    def _running(self, what: str) -> list[dict[str, Any]]:
        applications = get(f"http://127.0.0.1:{self.ui_port}/api/v1/applications") or []
        if not applications:
            return []
        return get(f"http://127.0.0.1:{self.ui_port}/api/v1/applications/{applications[0]['id']}/{what}") or []

    def start(self, job: str, *arguments: str, conf: Sequence[str] = ()) -> subprocess.Popen[str]:
        """`headrace JOB --profile standalone` on this cluster, in a process group of its own."""
        words = [sys.executable, "-m", "pipelines.cli", job, "--profile", "standalone", "--master", self.url]
        words += [word for setting in (*self.conf(), *conf) for word in ("--conf", setting)]
        output = subprocess.PIPE
        return subprocess.Popen(
            [*words, *arguments], cwd=ROOT, stdout=output, stderr=output, text=True, start_new_session=True
        )

    def run(self, job: str, *arguments: str, conf: Sequence[str] = ()) -> tuple[int, str, str]:
        """Exit code, output and standard error."""
        process = self.start(job, *arguments, conf=conf)
        try:
            out, err = process.communicate(timeout=300)
        finally:
            kill_all(process)
        return process.returncode, out, err


def kill_all(process: subprocess.Popen[Any]) -> None:
    """SIGKILL to a program and everything that it started."""
    with suppress(psutil.Error):
        top = psutil.Process(process.pid)
        for one in [top, *top.children(recursive=True)]:
            with suppress(psutil.Error):
                one.kill()
    process.wait(timeout=60)


@contextmanager
def standalone_cluster(folder: Path) -> Iterator[Cluster]:
    """A master and two workers with a core and a gigabyte each."""
    (folder / "spark-events").mkdir(parents=True)
    port, deploy = free_port(), "org.apache.spark.deploy"
    url, at = f"spark://127.0.0.1:{port}", ("--host", "127.0.0.1")
    with _daemons() as start:
        master = start(f"{deploy}.master.Master", *at, "--port", str(port), ui_port=(ui := free_port()))
        wait_for("the master", lambda: get(f"http://127.0.0.1:{ui}/json/") is not None)
        limits = ("--cores", "1", "--memory", "1g")
        workers = [
            start(f"{deploy}.worker.Worker", "--host", host, *limits, "--work-dir", f"{folder}/work-{host}", url)
            for host in HOSTS
        ]
        wait_for("the workers", lambda: (get(f"http://127.0.0.1:{ui}/json/") or {}).get("aliveworkers") == len(HOSTS))
        assert master.poll() is None
        yield Cluster(folder, url, workers)


@contextmanager
def history_server(events: Path) -> Iterator[str]:
    """The REST API of a history server on a folder of event logs."""
    port = free_port()
    options = f"-Dspark.history.fs.logDirectory=file:{events} -Dspark.history.ui.port={port} {QUICK_START}"
    with _daemons(SPARK_HISTORY_OPTS=options) as start:
        start("org.apache.spark.deploy.history.HistoryServer")
        api = f"http://127.0.0.1:{port}/api/v1"
        wait_for("the history server", lambda: get(f"{api}/applications") is not None)
        yield api


@contextmanager
def _daemons(**variables: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """A function that starts one of Spark's daemons; all are stopped at the end."""
    env = os.environ | {"SPARK_HOME": str(HOME), "SPARK_DAEMON_MEMORY": "256m", "SPARK_DAEMON_JAVA_OPTS": QUICK_START}
    env |= {"SPARK_LOCAL_IP": "127.0.0.1"} | variables
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: str, ui_port: int | None = None) -> subprocess.Popen[bytes]:
        ports = () if name.endswith("HistoryServer") else ("--webui-port", str(ui_port or free_port()))
        command = [str(HOME / "bin" / "spark-class"), name, *ports, *arguments]
        quiet = subprocess.DEVNULL
        started.append(subprocess.Popen(command, env=env, stdout=quiet, stderr=quiet, start_new_session=True))
        return started[-1]

    try:
        yield start
    finally:
        for daemon in reversed(started):
            daemon.terminate()
            daemon.wait(timeout=60)
