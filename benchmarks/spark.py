"""Logs to training rows: Headrace's Spark jobs beside MLlib, DuckDB, Polars, pandas and NVTabular on one machine.

The same generated rows, like Criteo's, and the same job for all (benchmarks/spark_peers/job.py), which every tool's
expert would write as it stands there; results must agree. Tools take turns, each run is a process of its own, medians
are compared. What is done is kept in <to>/results.jsonl, so that a run cut off goes on. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measured_process import measure
from benchmarks.results import Results
from benchmarks.spark_data import generate
from benchmarks.spark_summary import show, summary
from benchmarks.spark_tools import (
    HEADRACE,
    INGEST,
    TOOLS,
    Place,
    Tool,
    command,
    differences,
    expected,
    file_bytes,
    ingest,
    set_up,
)
from pipelines.launch import ROOT
from schemas.errors import UserError

LIMITED_FROM_ROWS = 50_000_000
"""From here on a run that holds more memory than allowed is ended; below, tools are told how much and may take more."""
_ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class DataSet:
    num_rows: int
    hot: bool

    @property
    def name(self) -> str:
        return f"{self.num_rows}{'-hot' if self.hot else ''}"

    def key(self, tool: str, number: int) -> dict[str, Any]:
        """Of a tool's run on these rows, among the results."""
        return {"data": self.name, "tool": tool, "run": number}

    @property
    def rounds(self) -> int:
        """Runs of every tool: small ones differ more from run to run."""
        return 3 if self.num_rows <= 1_000_000 else 2 if self.num_rows <= 10_000_000 else 1


@dataclass(frozen=True)
class Bench:
    folder: Path
    results: Results
    memory_mb: int
    keep: bool
    console: Console

    def run(self, data_set: DataSet, tools: Sequence[Tool], rounds: int | None) -> None:
        """Make the rows, ingest them, and let the tools take turns."""
        place = Place(self.folder / data_set.name)
        place.folder.mkdir(parents=True, exist_ok=True)
        generate(place.raw, data_set.num_rows, hot=data_set.hot)
        numbers = range(rounds or data_set.rounds)
        wanted = None
        for number in numbers:
            if self.results.find(data_set.key(INGEST, number)) is None or not place.events.exists():
                self._ingest(data_set, place, number)
            wanted = wanted or expected(place, self.memory_mb)
            for tool in tools:
                if self.results.find(data_set.key(tool.name, number)) is None:
                    self._turn(data_set, place, tool, number, wanted)

    def _ingest(self, data_set: DataSet, place: Place, number: int) -> None:
        """Into a new folder; the first one stays, as what everybody reads."""
        out = place.folder / f"events-{number}"
        shutil.rmtree(out, ignore_errors=True)
        self._measured(data_set, place, INGEST, number, ingest(place, out, self.memory_mb))
        if not out.exists():
            raise UserError(f"ingest failed; its output is in {self._log(place, INGEST)}")
        if place.events.exists():
            shutil.rmtree(out)
        else:
            out.rename(place.events)

    def _turn(self, data_set: DataSet, place: Place, tool: Tool, number: int, wanted: Any) -> None:
        out = place.out(tool.name)
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(exist_ok=True)
        done = self._measured(
            data_set, place, tool.name, number, command(tool, place, self.memory_mb), tool=tool, wanted=wanted
        )
        if done["outcome"] != "done" or not self.keep:
            shutil.rmtree(out, ignore_errors=True)

    def _measured(
        self,
        data_set: DataSet,
        place: Place,
        name: str,
        number: int,
        words: Sequence[str],
        *,
        tool: Tool | None = None,
        wanted: Any = None,
    ) -> dict[str, Any]:
        self.console.print(f"{data_set.name}: {name}, run {number + 1}", highlight=False)
        shutil.rmtree(place.scratch, ignore_errors=True)
        place.scratch.mkdir()
        limit = self.memory_mb if data_set.num_rows >= LIMITED_FROM_ROWS else None
        measured = measure(words, self._log(place, name), limit_mb=limit, environment=_ENVIRONMENT)
        shutil.rmtree(place.scratch, ignore_errors=True)
        run = {"rows": data_set.num_rows, **asdict(measured)}
        if measured.outcome == "failed":
            self.console.print(f"    failed; its output is in {self._log(place, name)}", highlight=False)
        elif tool is not None and measured.outcome == "done":
            phases = place.out(name) / "phases.json"
            run["phases"] = json.loads(phases.read_text()) if phases.exists() else {}
            run["file_bytes"] = file_bytes(place, tool)
            run["differences"] = differences(tool, place, wanted)
        return self.results.add(data_set.key(name, number), run)

    @staticmethod
    def _log(place: Place, name: str) -> Path:
        return place.folder / f"{name}.log"


def data_sets(rows: Sequence[int], hot: Sequence[int]) -> Iterator[DataSet]:
    yield from (DataSet(count, hot=False) for count in sorted(rows))
    yield from (DataSet(count, hot=True) for count in sorted(hot))


def main() -> int:
    command_line = argparse.ArgumentParser(prog="headrace benchmark spark", description=__doc__)
    add = command_line.add_argument
    add("--to", default="runs/bench-spark", help="folder for rows and results (runs/bench-spark)")
    sizes = [1_000_000, 10_000_000, 50_000_000]
    add("--rows", type=int, nargs="*", default=sizes, help="sizes (1000000 10000000 50000000)")
    add("--hot", type=int, nargs="*", default=[10_000_000], help="sizes with a key that holds 40 %% (10000000)")
    add("--only", help="which tools, with commas (all; from 50 M rows on the faster ones)")
    add("--runs", type=int, help="of each tool (3 up to 1 M rows, 2 up to 10 M, else 1)")
    add("--memory-mb", type=int, default=6000, help="for each tool; a limit from 50 M rows on (6000)")
    add("--redo", default="", help="tools, or ingest, whose earlier results are forgotten, with commas")
    add("--keep", action="store_true", help="keep what the tools write")
    given = command_line.parse_args()
    names = [name for name in (given.only or ",".join(TOOLS)).split(",") if name]
    for name in names:
        if name not in TOOLS:
            command_line.error(f"--only: no tool {name!r}; there are {', '.join(TOOLS)}")
    tools = [TOOLS[name] for name in names]
    folder = Path(given.to).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(folder / "results.jsonl", redo=given.redo.split(","))
    set_up(tools)
    bench = Bench(folder, results, given.memory_mb, given.keep, Console(stderr=True))
    wanted = list(data_sets(given.rows, given.hot))
    try:
        for data_set in wanted:
            takes_all = given.only is not None or data_set.num_rows < LIMITED_FROM_ROWS
            bench.run(data_set, [tool for tool in tools if takes_all or not tool.slow], given.runs)
    except UserError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return 2
    shown = [run for run in results.runs if run["data"] in {data_set.name for data_set in wanted}]
    distinct = {
        data_set.name: expected(Place(folder / data_set.name), given.memory_mb)["distinct"] for data_set in wanted
    }
    show(shown, distinct)
    found = {"cores": len(os.sched_getaffinity(0)), "memory_mb": given.memory_mb, **summary(shown, distinct)}
    print(json.dumps(found))
    agree = found["sums_agree"] and all(run["outcome"] != "failed" for run in shown if run["tool"] == HEADRACE)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
