"""Samples a second of a DLRM: Headrace from its files and in memory, and its peers, taking turns."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.results import Results
from benchmarks.training_parts.programs import on_ranks, one_line
from pipelines.launch import ROOT

_BATCH = 8192
HEADRACE, BF16 = "headrace", "headrace, bfloat16"


@dataclass(frozen=True)
class Peer:
    title: str
    environment: str
    module: str
    options: tuple[str, ...] = ()
    starts_ranks: bool = False
    """By itself; the others are started by torchrun."""
    wanted: float = 0.0
    """How many times a peer's samples a second Headrace's shall be."""


PEERS = {
    "ddp": Peer("DDP, torch's DataLoader over Parquet", "main", "in_ddp", wanted=3.0),
    "ddp-feed": Peer("DDP, Headrace's feed", "main", "in_ddp", ("--source", "feed"), wanted=0.95),
    "torchrec": Peer("TorchRec, CPU", "torchrec", "in_torchrec", ("--source", "parquet"), wanted=1.0),
    "estimator": Peer("Horovod's TorchEstimator", "estimator", "in_torch_estimator", starts_ranks=True, wanted=10.0),
}


def python_of(environment: str) -> Path:
    places = {
        "main": Path(sys.executable).parent.parent,
        "torchrec": Path(os.environ.get("HEADRACE_TORCHREC_VENV", ROOT / ".venv-torchrec")),
        "estimator": Path(os.environ.get("HEADRACE_TRAINING_PEERS_VENV", ROOT / ".venv-training-peers")),
    }
    return places[environment] / "bin" / "python"


def command(name: str, snapshot: Path, *, ranks: int, layers: str, steps: int, runs: int) -> list[str]:
    where = ["--snapshot", str(snapshot), "--layers", layers, "--batch", str(_BATCH)]
    if name in (HEADRACE, BF16):
        precision = "bfloat16" if name == BF16 else "float32"
        return on_ranks(
            "benchmarks.training_peers.in_headrace", [*where, "--runs", str(runs), "--precision", precision], ranks
        )
    peer = PEERS[name]
    module = ["-m", f"benchmarks.training_peers.{peer.module}", *where, "--steps", str(steps), *peer.options]
    python = [str(python_of(peer.environment))]
    if peer.starts_ranks:
        return [*python, *module, "--ranks", str(ranks)]
    return [*python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *module]


def measure(
    results: Results, snapshot: Path, folder: Path, *, peers: Sequence[str], layers: Sequence[str],
    ranks: Sequence[int], rounds: int, steps: int, rows: int, console: Console,
) -> None:  # fmt: skip
    """Every tool once a round."""
    for number in range(rounds):
        for layer in layers:
            for size in ranks:
                for name in (HEADRACE, *peers, BF16):
                    key = {"part": "speed", "rows": rows, "tool": name, "layers": layer, "ranks": size, "round": number}
                    if results.find(key) is not None:
                        continue
                    console.print(f"speed: {name}, {layer} layers, {size} rank(s), round {number + 1}", highlight=False)
                    words = command(name, snapshot, ranks=size, layers=layer, steps=steps, runs=1)
                    results.add(key, one_line(words, folder / f"{name}.log".replace(", ", "-")))


def show(results: Results, console: Console, *, rows: int) -> dict[str, Any]:
    """The table; gives Headrace's speed as a multiple of each peer's, and of its own steps in memory."""
    table = Table(title=f"DLRM, 26 tables x 16, 13 numbers, batches of {_BATCH:,} a rank", title_justify="left")
    for name in ("layers", "ranks", "tool", "samples/s", "Headrace is", "asked", "peak MB"):
        table.add_column(name, justify="left" if name in ("layers", "tool") else "right")
    found: dict[str, Any] = {}
    runs = [run for run in results.runs if run["part"] == "speed" and run["rows"] == rows]
    for layers, ranks in dict.fromkeys((run["layers"], run["ranks"]) for run in runs):
        of_these = [run for run in runs if (run["layers"], run["ranks"]) == (layers, ranks)]
        by_tool = {tool: [run for run in of_these if run["tool"] == tool] for tool in (HEADRACE, *PEERS, BF16)}
        own = _median(by_tool[HEADRACE])
        if own is None:
            continue
        share = statistics.median(run["feed_share"] for run in by_tool[HEADRACE])
        found[f"{layers}-{ranks}"] = {"samples_per_s": own, "of_in_memory": round(share, 3)}
        table.add_section()
        memory = _median(by_tool[HEADRACE], "samples_per_s_in_memory")
        table.add_row(layers, str(ranks), "Headrace, a batch in memory", f"{memory:,.0f}", f"{share:.2f}", "0.9", "")
        for tool, those in by_tool.items():
            speed = _median(those)
            if speed is None:
                continue
            peer = PEERS.get(tool)
            title = peer.title if peer is not None else tool.capitalize()
            ratio = f"{own / speed:.2f}" if peer is not None else ""
            wanted = f"{peer.wanted:g}" if peer is not None else ""
            table.add_row(
                layers, str(ranks), title, f"{speed:,.0f}", ratio, wanted, f"{_median(those, 'peak_rss_mb'):,.0f}"
            )
            if peer is not None:
                found[f"{layers}-{ranks}"][f"times_{tool}"] = round(own / speed, 3)
    console.print(table)
    return found


def _median(runs: Sequence[dict[str, Any]], what: str = "samples_per_s") -> float | None:
    return statistics.median(run[what] for run in runs) if runs else None
