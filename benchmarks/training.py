"""Training beside its peers: speed, embedding tables by size, quality on real clicks, and ranks that are killed.

Parts: speed (DDP, TorchRec, Horovod's TorchEstimator on the same snapshot and model, taking turns), tables (whole or by
rows, 1 MB to 4 GB), quality (KuaiRand-Pure beside logistic regression and LightGBM), faults (30 kills -9). What is done
is kept in <to>/results.jsonl, so that a run cut off goes on. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.results import Results
from benchmarks.spark_data import generate
from benchmarks.training_parts import faults, quality, speed, tables
from pipelines import launch
from schemas.errors import UserError

PARTS = ("speed", "tables", "quality", "faults")
_SIZES_MB = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0)


def snapshot_of(folder: Path, rows: int) -> Path:
    """Generated rows like Criteo's, ingested and prepared; what stands is kept."""
    raw, events, snapshot = folder / "raw", folder / "events", folder / "snapshot"
    generate(raw, rows)
    contract, features = (
        str(launch.ROOT / "benchmarks" / name) for name in ("criteo_like.yaml", "criteo_like_features.yaml")
    )
    steps = {
        "ingest": ["--contract", contract, "--raw", f"{raw}", "--out", f"{events}"],
        "prepare": [
            "--events",
            f"{events}",
            "--out",
            f"{snapshot}",
            "--features",
            features,
            "--split",
            "time:0.8,0.1,0.1",
        ],
    }
    for job, words in steps.items():
        code = launch.spark_submit(job, words)
        if code != 0:
            raise UserError(f"{job} ended with code {code}; what it said stands above.")
    return snapshot


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="headrace benchmark training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = command.add_argument
    add("--to", default="runs/bench-training", help="folder for rows, runs and results (runs/bench-training)")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(all)")
    add("--rows", type=int, default=1_000_000, help="generated rows, for speed and faults (1000000)")
    add("--peers", nargs="*", choices=tuple(speed.PEERS), default=list(speed.PEERS), help="(all)")
    add("--layers", nargs="+", choices=("small", "large"), default=["small", "large"], help="of the DLRM (both)")
    add("--ranks", type=int, nargs="+", default=[1, 2], help="(1 2)")
    add("--rounds", type=int, default=3, help="in which every tool has its turn (3)")
    add("--steps", type=int, default=60, help="of a peer's turn, after 10 to warm up (60)")
    add("--sizes-mb", type=float, nargs="+", default=list(_SIZES_MB), help="of tables (1 to 4096)")
    add("--cap-mb", type=int, default=4000, help="of a process, with the largest table by rows on two ranks (4000)")
    add("--kuairand", default="../shared/data/kuairand", help="its Parquet files (../shared/data/kuairand)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of quality and of undisturbed runs (0 1 2)")
    add("--kills", type=int, default=30, help="of ranks, at random (30)")
    given = command.parse_args(arguments)
    folder, console = Path(given.to).absolute(), Console(stderr=True)
    results = Results(folder / "results.jsonl")
    found: dict[str, object] = {"benchmark": "training", "cores": len(os.sched_getaffinity(0))}
    try:
        for part in given.parts:
            _measure(part, given, folder, results, console)
    except UserError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return 2
    shown = Console(width=120)
    shows: dict[str, Callable[[Results, Console], dict[str, object]]] = {
        "speed": partial(speed.show, rows=given.rows),
        "tables": tables.show,
        "quality": quality.show,
        "faults": partial(faults.show, rows=given.rows),
    }
    for part, show in shows.items():
        if any(run["part"] == part for run in results.runs):
            found[part] = show(results, shown)
    print(json.dumps(found))
    return 0


def _measure(part: str, given: argparse.Namespace, folder: Path, results: Results, console: Console) -> None:
    logs = folder / "logs"
    if part == "speed":
        wanted = {speed.PEERS[peer].environment for peer in given.peers} - {"main"}
        subprocess.run([str(launch.ROOT / "benchmarks" / "training_peers" / "setup.sh"), *sorted(wanted)], check=True)
        speed.measure(
            results, snapshot_of(folder / str(given.rows), given.rows), logs, peers=given.peers, layers=given.layers,
            ranks=given.ranks, rounds=given.rounds, steps=given.steps, rows=given.rows, console=console,
        )  # fmt: skip
    elif part == "tables":
        memory_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4 >> 20
        sizes = sorted(given.sizes_mb)
        tables.measure(results, logs, sizes_mb=sizes, memory_mb=memory_mb, cap_mb=given.cap_mb, console=console)
    elif part == "quality":
        quality.measure(
            results, Path(given.kuairand).absolute(), folder / "kuairand", seeds=given.seeds, console=console
        )
    else:
        snapshot = snapshot_of(folder / str(given.rows), given.rows)
        runs = folder / "faults" / str(given.rows)
        runs.mkdir(parents=True, exist_ok=True)
        faults.measure(results, snapshot, runs, kills=given.kills, seeds=given.seeds, rows=given.rows, console=console)


if __name__ == "__main__":
    sys.exit(main())
