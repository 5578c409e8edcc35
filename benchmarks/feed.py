"""The feed beside the plain Arrow scan and the loaders that people use: speed, memory, scaling, resume, shuffle.

Same generated rows, same batch size, shuffled, a full pass to torch tensors, after a warm-up; competitors take turns,
and medians are compared. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.feed_data import generate, generate_sorted, repeat
from benchmarks.feed_peers.loaders import LOADERS
from benchmarks.shuffle_quality import ShuffleQuality, shuffle_quality
from pipelines.launch import ROOT
from schemas.errors import UserError

NUM_ROWS, BATCH_SIZE, MEMORY_MB = 4_000_000, 16384, 512
ROWS_OF_SLOW = {"mosaic": 400_000, "litdata": 400_000, "webdataset": 400_000, "petastorm_loader": 60_000}
"""A pass of a row-based loader over all rows would take minutes, so it gets the first ones; rates are a second."""

_PEERS_ENVIRONMENT = Path(os.environ.get("HEADRACE_PEERS_VENV", ROOT / ".venv-peers"))
_SORTED_ROWS, _SORTED_BATCH = 1_000_000, 1000
_MILLIONS = (1, 4, 16, 50)


@dataclass
class Competitor:
    """A process that makes a pass for every line that it gets."""

    title: str
    command: Sequence[str]
    basis: str = ""
    passes: list[dict[str, float]] = field(default_factory=list)
    _process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it, and wait for its warm-up to be over."""
        self._process = subprocess.Popen(
            self.command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._answer()

    def begin(self) -> None:
        assert self._process is not None
        stdin: IO[str] = self._process.stdin  # type: ignore[assignment]
        stdin.write("\n")
        stdin.flush()

    def end(self) -> dict[str, float]:
        self.passes.append(self._answer())
        return self.passes[-1]

    def stop(self) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def __enter__(self) -> Competitor:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def rows_per_s(self) -> float:
        return statistics.median(one["rows"] / one["seconds"] for one in self.passes)

    @property
    def cpu_ns_per_row(self) -> float:
        return statistics.median(1e9 * one["cpu_s"] / one["rows"] for one in self.passes)

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, errors = self._process.communicate()
            raise UserError(f"{self.title} ended: {errors.strip().splitlines()[-1:]}\n{' '.join(self.command)}")
        return json.loads(line)


def own(what: str, data: Path, *, title: str = "", **settings: int) -> Competitor:
    options = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "benchmarks.feed_own", what, "--data", str(data), *options]
    return Competitor(title or what, command)


def peer(name: str, data: Path, formats: Path, *, workers: int) -> Competitor:
    """A loader of benchmarks/feed_peers, its format written."""
    loader = LOADERS[name]
    python = _python(name)
    rows = ["--rows", str(ROWS_OF_SLOW[name])] if name in ROWS_OF_SLOW else []
    where = [name, "--data", str(data), "--formats", str(formats), *rows]
    subprocess.run([python, "-m", "benchmarks.feed_peers.prepare", *where], cwd=ROOT, check=True)
    settings = ["--batch-size", str(BATCH_SIZE), "--workers", str(workers)]
    command = [python, "-m", "benchmarks.feed_peers.worker", *where, *settings]
    return Competitor(loader.title, command, basis=loader.basis)


def _python(name: str) -> str:
    """The interpreter of a peer's environment."""
    return sys.executable if LOADERS[name].environment == "main" else str(_PEERS_ENVIRONMENT / "bin" / "python")


def take_turns(competitors: Sequence[Competitor], *, rounds: int, bar: Progress, name: str) -> None:
    """Warm all of them up, then let each make a pass, round after round."""
    task = bar.add_task(name, total=rounds * len(competitors))
    with ExitStack() as running:
        for competitor in competitors:
            bar.update(task, description=f"{name}: {competitor.title} warms up")
            running.enter_context(competitor)
        for _ in range(rounds):
            for competitor in competitors:
                bar.update(task, advance=1, description=f"{name}: {competitor.title}")
                competitor.begin()
                competitor.end()


def speed(data: Path, formats: Path, peers: Sequence[str], *, rounds: int, bar: Progress) -> dict[str, Any]:
    """Everybody in turn; the peers' processes or threads are two, for there are two cores."""
    cores = len(os.sched_getaffinity(0))
    feed = own("headrace", data, title="Headrace, 1 reading thread", threads=1, memory_mb=MEMORY_MB)
    feed_2 = own("headrace", data, title="Headrace, 2 reading threads", threads=2, memory_mb=MEMORY_MB)
    scan = own("scan", data, title="Arrow scan, 1 thread", threads=1)
    scan_2 = own("scan", data, title="Arrow scan, 2 threads", threads=2)
    others = {name: peer(name, data, formats, workers=cores) for name in peers}
    everyone = [scan, feed, scan_2, feed_2, *others.values()]
    take_turns(everyone, rounds=rounds, bar=bar, name="speed")

    table = Table(
        title=f"{NUM_ROWS:,} rows x 40 columns, batches of {BATCH_SIZE:,}, {cores} cores", title_justify="left"
    )
    for name in ("loader", "rows", "M rows/s", "CPU ns/row", "Headrace is faster by"):
        table.add_column(name, justify="left" if name == "loader" else "right")
    for one in sorted(everyone, key=lambda one: -one.rows_per_s):
        rows, ratio = int(one.passes[0]["rows"]), feed.rows_per_s / one.rows_per_s
        times = "" if one in (feed, feed_2) else f"{ratio:,.2f}"
        table.add_row(one.title, f"{rows:,}", f"{one.rows_per_s / 1e6:.4f}", f"{one.cpu_ns_per_row:,.0f}", times)
    _show(table)

    def over(names: Sequence[str]) -> float | None:
        rates = [others[name].rows_per_s for name in names if name in others]
        return feed.rows_per_s / max(rates) if rates else None

    return {
        "rows_per_s": feed.rows_per_s,
        "arrow_scan_rows_per_s": scan.rows_per_s,
        "ratio_to_arrow_scan": feed.rows_per_s / scan.rows_per_s,
        "ratio_to_arrow_scan_2_threads": feed_2.rows_per_s / scan_2.rows_per_s,
        "ratio_of_cpu_to_arrow_scan": scan.cpu_ns_per_row / feed.cpu_ns_per_row,
        "ratio_to_petastorm_batched": over(["petastorm_batched"]),
        "ratio_to_petastorm_loader": over(["petastorm_loader"]),
        "ratio_to_fastest_row_based": over([name for name in peers if LOADERS[name].basis == "rows"]),
        "ratio_to_fastest_column_based": over([name for name in peers if LOADERS[name].basis == "columns"]),
        "rows_per_s_by_loader": {name: other.rows_per_s for name, other in others.items()},
        "rows_per_s_by_threads": {"1": feed.rows_per_s, "2": feed_2.rows_per_s},
    }


def memory(data: Path, *, bar: Progress) -> dict[str, float]:
    """Resident memory after 2 and after 20 epochs, each the median of three epochs, for it swings by a block or two."""
    feed = own("headrace", data, title="20 epochs", threads=1, memory_mb=MEMORY_MB)
    take_turns([feed], rounds=20, bar=bar, name="memory")  # the warm-up is an epoch too
    after_2, after_20 = (
        statistics.median(one["rss_mb"] for one in feed.passes[first : first + 3]) for first in (0, 17)
    )
    return {"memory_mb_bound": MEMORY_MB, "rss_mb_after_2_epochs": after_2, "rss_mb_after_20_epochs": after_20}


def ranks(data: Path, *, rounds: int, bar: Progress) -> dict[str, Any]:
    """Rows a second of one and of two ranks, each a process with one reading thread, the ranks at the same time."""
    found = {}
    for world_size in (1, 2):
        settings = {"threads": 1, "memory_mb": MEMORY_MB, "world_size": world_size}
        processes = [own("headrace", data, title=f"rank {rank}", rank=rank, **settings) for rank in range(world_size)]
        task = bar.add_task(f"{world_size} rank(s)", total=rounds)
        rates = []
        with ExitStack() as running:
            for process in processes:
                running.enter_context(process)
            for _ in range(rounds):
                for process in processes:
                    process.begin()
                done = [process.end() for process in processes]
                rates.append(sum(one["rows"] for one in done) / max(one["seconds"] for one in done))
                bar.advance(task)
        found[str(world_size)] = statistics.median(rates)
    return {"rows_per_s_by_ranks": found}


def sizes(data: Path, folder: Path, *, bar: Progress) -> dict[str, Any]:
    """Rows a second by the number of rows, and the first batch of a process that resumes in the middle of the most."""
    rates = {}
    for millions in _MILLIONS:
        repeat(data, folder, millions)
        feed = own("headrace", folder, title=f"{millions} M rows", threads=1, memory_mb=MEMORY_MB)
        take_turns([feed], rounds=3, bar=bar, name=f"{millions} M rows")
        rates[f"{millions}M"] = feed.rows_per_s
    resumes = []
    for _ in range(3):
        command = own("resume", folder, batch_size=BATCH_SIZE).command
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        resumes.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        "rows_per_s_by_rows": rates,
        "resume_first_batch_s": statistics.median(one["since_opening_s"] for one in resumes),
        "resume_first_batch_since_process_start_s": statistics.median(one["since_start_s"] for one in resumes),
    }


def shuffles(data: Path, formats: Path, peers: Sequence[str]) -> dict[str, Any]:
    """The order of an epoch of rows that lie sorted by label, against a full permutation and others' shuffles."""
    label = np.sort((np.arange(_SORTED_ROWS) >= _SORTED_ROWS * 3 // 4).astype(np.float32))
    orders = {
        "full permutation": np.random.default_rng(0).permutation(_SORTED_ROWS),
        "file order": np.arange(_SORTED_ROWS),
    }
    to = formats / "order.npy"
    where = ["--data", str(data), "--to", str(to)]
    own_order = [sys.executable, "-m", "benchmarks.feed_own", "order", *where]
    commands = {"Headrace": own_order, "Headrace, 8 lanes": [*own_order, "--lanes", "8"]}
    for name in ("mosaic", "petastorm_batched"):
        if name in peers:
            module = [_python(name), "-m", "benchmarks.feed_peers.order"]
            commands[LOADERS[name].title] = [*module, name, *where, "--formats", str(formats)]
    for title, command in commands.items():
        subprocess.run(command, cwd=ROOT, check=True)
        orders[title] = np.load(to, allow_pickle=False)
    qualities: dict[str, ShuffleQuality] = {
        title: shuffle_quality(order, label, batch_size=_SORTED_BATCH) for title, order in orders.items()
    }
    table = Table(title=f"{_SORTED_ROWS:,} rows sorted by label, batches of {_SORTED_BATCH:,}", title_justify="left")
    for heading in ("order", "rank correlation", "label autocorrelation", "spread of batch labels"):
        table.add_column(heading, justify="left" if heading == "order" else "right")
    for title, one in qualities.items():
        table.add_row(
            title, f"{one.rank_correlation:+.4f}", f"{one.label_autocorrelation:+.4f}", f"{one.batch_label_spread:.2f}"
        )
    _show(table)
    return {"shuffle": {title: vars(one) for title, one in qualities.items()}}


def main() -> int:
    command = argparse.ArgumentParser(prog="headrace benchmark feed", description=__doc__)
    command.add_argument("--to", default="runs/bench-feed", help="folder for rows and formats (runs/bench-feed)")
    command.add_argument("--peers", default=",".join(LOADERS), help=f"which, with commas ({','.join(LOADERS)})")
    command.add_argument("--rounds", type=int, default=5, help="passes of each, in turn (5)")
    given = command.parse_args()
    folder = Path(given.to).absolute()
    peers = [name for name in given.peers.split(",") if name]
    if any(LOADERS[name].environment == "peers" for name in peers):
        subprocess.run([str(ROOT / "benchmarks" / "feed_peers" / "setup.sh")], check=True)
    generate(folder / "rows", NUM_ROWS)
    generate_sorted(folder / "sorted", _SORTED_ROWS)
    (folder / "formats").mkdir(exist_ok=True)
    result: dict[str, Any] = {"rows": NUM_ROWS, "columns": 40, "batch_size": BATCH_SIZE}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        result |= speed(folder / "rows", folder / "formats", peers, rounds=given.rounds, bar=bar)
        result |= memory(folder / "rows", bar=bar)
        result |= ranks(folder / "rows", rounds=given.rounds, bar=bar)
        result |= sizes(folder / "rows", folder / "repeated", bar=bar)
    result |= shuffles(folder / "sorted", folder / "formats", peers)
    _show(_summary(result))
    print(json.dumps(_rounded(result)))
    return 0


def _summary(result: dict[str, Any]) -> Table:
    table = Table(title="the rest", title_justify="left")
    table.add_column("what")
    table.add_column("measured", justify="right")
    for name, value in result.items():
        if name not in ("shuffle", "rows_per_s_by_loader"):
            shown = ", ".join(f"{key}: {one:,.0f}" for key, one in value.items()) if isinstance(value, dict) else value
            table.add_row(
                name, shown if isinstance(shown, str) else f"{shown:,.3f}" if shown is not None else "not run"
            )
    return table


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def _show(table: Table) -> None:
    Console(width=120, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
