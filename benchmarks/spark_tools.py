"""The tools of the benchmark of the Spark jobs: the command of each, and what its rows are held against."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.spark_peers import job
from pipelines.launch import ROOT

INGEST, HEADRACE = "ingest", "headrace"
_CONTRACT, _FEATURES = (str(ROOT / "benchmarks" / name) for name in ("criteo_like.yaml", "criteo_like_features.yaml"))
_SPARK_SHARE = 0.7
"""Of the memory allowed, the JVM's heap; in_mllib.py takes as much."""
_TOLERANCE_PER_ROW = 1e-6
"""Of a sum: float32 keeps 7 digits, and tools add up in different orders."""

_ENVIRONMENTS = {
    "main": sys.executable,
    "peers": str(Path(os.environ.get("HEADRACE_SPARK_PEERS_VENV", ROOT / ".venv-spark-peers")) / "bin" / "python"),
    "nvtabular": str(Path(os.environ.get("HEADRACE_NVTABULAR_VENV", ROOT / ".venv-nvtabular")) / "bin" / "python"),
}
Sums = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Tool:
    name: str
    title: str
    environment: Literal["main", "peers", "nvtabular"]
    keeps_ties: bool = True
    """Values of equal count are in the order of their text, so that every row's index is known."""
    slow: bool = False
    """Would take most of an hour for 50 M rows on two cores."""


TOOLS = {
    tool.name: tool
    for tool in (
        Tool(HEADRACE, "Headrace prepare", "main"),
        Tool("duckdb", "DuckDB", "peers"),
        Tool("polars", "Polars", "peers"),
        Tool("mllib", "PySpark with MLlib", "main", slow=True),
        Tool("pandas", "pandas", "peers"),
        Tool("nvtabular", "NVTabular, CPU", "nvtabular", keeps_ties=False, slow=True),
    )
}


@dataclass(frozen=True)
class Place:
    """The folders of one data set."""

    folder: Path

    @property
    def raw(self) -> Path:
        return self.folder / "raw"

    @property
    def events(self) -> Path:
        """What ingest published."""
        return self.folder / "events"

    def out(self, tool: str) -> Path:
        return self.folder / "out" / tool

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"


def ingest(place: Place, out: Path, memory_mb: int) -> list[str]:
    where = ["--contract", _CONTRACT, "--raw", str(place.raw), "--out", str(out)]
    return [*_headrace("ingest", place, memory_mb), *where]


def command(tool: Tool, place: Place, memory_mb: int) -> list[str]:
    out = str(place.out(tool.name))
    if tool.name == HEADRACE:
        what = ["--events", str(place.events), "--out", out, "--features", _FEATURES]
        layout = ["--split", "time:0.8,0.1,0.1", "--rows-per-row-group", str(job.ROWS_PER_ROW_GROUP)]
        return [*_headrace("prepare", place, memory_mb), *what, *layout]
    module = [_ENVIRONMENTS[tool.environment], "-m", f"benchmarks.spark_peers.in_{tool.name}"]
    where = ["--events", str(place.events / "events"), "--out", out, "--scratch", str(place.scratch)]
    return [*module, *where, "--memory-mb", str(memory_mb)]


def _headrace(step: str, place: Place, memory_mb: int) -> list[str]:
    settings = {
        "spark.driver.memory": f"{round(memory_mb * _SPARK_SHARE)}m",
        "spark.local.dir": str(place.scratch),
        "spark.ui.enabled": "false",
    }
    conf = [word for key, value in settings.items() for word in ("--conf", f"{key}={value}")]
    return [sys.executable, "-m", "pipelines.cli", step, *conf]


def expected(place: Place, memory_mb: int) -> Sums:
    """What DuckDB computes from the events by SQL of its own; kept beside them."""
    kept = place.folder / "expected.json"
    if not kept.exists():
        found = _sums("expected", place.events / "events", "--memory-mb", memory_mb, "--scratch", place.scratch)
        kept.write_text(json.dumps(found))
    read: Sums = json.loads(kept.read_text())
    return read


def differences(tool: Tool, place: Place, wanted: Sums) -> list[str]:
    """Where what the tool wrote is not what was wanted: no more than the first few. Headrace's is read by two."""
    readers = ("duckdb", "polars") if tool.name == HEADRACE else ("duckdb",)
    found = []
    for reader in readers:
        written = _sums("written", place.out(tool.name), "--reader", reader)
        found += [f"{reader}: {one}" for one in compare(wanted, written, keeps_ties=tool.keeps_ties)]
    return found[:5]


def compare(wanted: Sums, written: Sums, *, keeps_ties: bool) -> list[str]:
    found = []
    for split in (*job.SPLITS, "vocabularies"):
        for name, value in written[split].items():
            of_train = split == "train" and name != "row_hashes"
            if not (keeps_ties or of_train or name in ("rows", "label", *job.NUMBERS) or split == "vocabularies"):
                continue
            slack = _TOLERANCE_PER_ROW * wanted[split]["rows"] if name in job.NUMBERS else 0
            if not abs(value - wanted[split][name]) <= slack:
                found.append(f"{split}.{name}: {value:,.6g} instead of {wanted[split][name]:,.6g}")
    return found


def file_bytes(place: Place, tool: Tool) -> list[int]:
    """Of the files of train."""
    return [file.stat().st_size for file in sorted((place.out(tool.name) / "train").glob("*.parquet"))]


def set_up(tools: list[Tool]) -> None:
    """Make the environments that the tools run in, and the one that looks at what they wrote."""
    wanted = {"peers", *(tool.environment for tool in tools)} - {"main"}
    subprocess.run([str(ROOT / "benchmarks" / "spark_peers" / "setup.sh"), *sorted(wanted)], check=True)


def _sums(*arguments: Any) -> Sums:
    command = [_ENVIRONMENTS["peers"], "-m", "benchmarks.spark_peers.sums", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    read: Sums = json.loads(done.stdout)
    return read
