"""Serving under load: at its limit, beyond it, while releases are swapped, and beside BentoML with the same models.

The shop is generated (100,000 items): for speed alone. Requests come at a given rate whatever the server does, from a
process of their own on the same cores. What is done is kept in <to>/results.jsonl; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.results import Results
from benchmarks.serving_parts.server import Running, running, serve
from benchmarks.serving_parts.shop import releases_of_shop, write_bodies
from pipelines import launch
from schemas.errors import UserError

PARTS = ("load", "swaps", "peer")
PEERS = launch.ROOT / "benchmarks" / "serving_peers"
_HELD = 0.99
"""Share of requests answered, by the models and in time, at which a rate counts as held."""
_SETTINGS = "name: shop\ncontract: shop\nraw: raw\nfeedback: {event: impression, labels: {clicked: {action: click}}}\n"


# One key asks for all: what is measured is load, not how often a key may ask.
_UNLIMITED = ("--requests-per-second", "1000000")


def offered(server: Running, folder: Path, rate: float, seconds: float, *, key: Path | None) -> dict[str, Any]:
    """What the load generator saw at this rate, and the server's CPU time."""
    words = ["--port", str(server.port), "--bodies", f"{folder / 'bodies.jsonl'}", "--rate", f"{rate}"]
    words += ["--seconds", f"{seconds}", *(["--key-file", f"{key}"] if key is not None else [])]
    before = server.cpu_s()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load_generator", *words], capture_output=True, text=True, cwd=launch.ROOT
    )
    if done.returncode != 0:
        raise UserError(f"the load generator ended with code {done.returncode}: {done.stderr.strip()[-300:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"server_cpu_s": round(server.cpu_s() - before, 2)}


def key_of(logs: Path) -> Path | None:
    """The key that the server made for itself at its first start."""
    found = sorted(logs.glob("*.key"))
    return found[0] if found else None


def load(results: Results, folder: Path, release: Path, given: argparse.Namespace, console: Console) -> None:
    for workers in given.workers:
        wheel = wheel_of(folder, release, f"load-{workers}")
        words = serve("--wheel", f"{wheel}", "--workers", str(workers), *_UNLIMITED, *given.serve)
        with running(words, folder / "logs" / f"load-{workers}.txt") as server:
            key = key_of(wheel / "logs")
            offered(server, folder, 20, 3, key=key)
            for rate in given.rates:
                asked = {"part": "load", "tool": "headrace", "workers": workers, "rate": rate}
                if results.find(asked) is None:
                    console.print(f"load: {workers} worker(s), {rate:g} requests a second")
                    results.add(asked, offered(server, folder, rate, given.seconds, key=key))


def swaps(results: Results, folder: Path, releases: Sequence[Path], given: argparse.Namespace) -> None:
    """Swap to and fro under a load that is held, and count what failed."""
    asked = {"part": "swaps", "tool": "headrace", "swaps": given.swaps, "rate": given.swap_rate}
    if (done := results.find(asked)) is not None and "swapped" in done:
        return
    wheel = wheel_of(folder, releases[0], "swaps")
    with running(serve("--wheel", f"{wheel}", *_UNLIMITED, *given.serve), folder / "logs" / "swaps.txt") as server:
        key, every_s = key_of(wheel / "logs"), given.swap_every
        offered(server, folder, 20, 3, key=key)
        before = swapped(server, key)

        def swap() -> None:
            for number in range(given.swaps):
                time.sleep(every_s)
                put_in_service(wheel, releases[(number + 1) % 2])

        swapping = threading.Thread(target=swap)
        swapping.start()
        found = offered(server, folder, given.swap_rate, (given.swaps + 2) * every_s, key=key)
        swapping.join()
        found["swapped"] = swapped(server, key) - before
    results.add(asked, found)


def swapped(server: Running, key: Path | None) -> int:
    """Releases that took the place of another, as the server counts them."""
    assert key is not None
    url, headers = f"http://127.0.0.1:{server.port}/metrics", {"X-API-Key": key.read_text(encoding="utf-8").strip()}
    text = httpx.get(url, headers=headers, trust_env=False).raise_for_status().text
    return next(int(float(line.split()[1])) for line in text.splitlines() if line.startswith("headrace_swaps_total"))


def peer(results: Results, folder: Path, release: Path, given: argparse.Namespace, console: Console) -> None:
    """BentoML with the same retriever, index and ranker, which writes no logs and draws no chance."""
    subprocess.run([str(PEERS / "setup.sh")], check=True)
    python = Path(os.environ.get("HEADRACE_SERVING_PEERS_VENV", launch.ROOT / ".venv-serving-peers")) / "bin" / "python"
    for service, tool in (("Alone", "bentoml"), ("Batching", "bentoml, batching")):
        words = [str(python), "-m", "benchmarks.serving_peers.start", "--release", f"{release}", "--service", service]
        with running(words, folder / "logs" / f"{service}.txt") as server:
            offered(server, folder, 20, 3, key=None)
            for rate in given.rates:
                asked = {"part": "peer", "tool": tool, "workers": 1, "rate": rate}
                if results.find(asked) is None:
                    console.print(f"{tool}: {rate:g} requests a second")
                    results.add(asked, offered(server, folder, rate, given.seconds, key=None))


def wheel_of(folder: Path, release: Path, name: str) -> Path:
    """A wheel's folder with this release in service."""
    wheel = folder / "wheels" / name
    wheel.mkdir(parents=True, exist_ok=True)
    (wheel / "wheel.yaml").write_text(_SETTINGS, encoding="utf-8")
    put_in_service(wheel, release)
    return wheel


def put_in_service(wheel: Path, release: Path) -> None:
    words = ["--release", f"{release}", "--to", f"{wheel / 'champion.json'}", "--force", "measuring its server"]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.promote", *words], capture_output=True, text=True, cwd=launch.ROOT
    )
    if done.returncode != 0:
        raise UserError(f"promote ended with code {done.returncode}: {done.stderr.strip()[-300:]}")


def held(run: dict[str, Any]) -> bool:
    answered: int = run["answered"] - run["fallbacks"]
    return answered >= _HELD * run["sent"]


def show(results: Results, console: Console) -> dict[str, Any]:
    table = Table(title="/recommend, 100,000 items, 10 of 200 candidates ranked", title_justify="left")
    names = (
        "tool",
        "workers",
        "offered /s",
        "answered /s",
        "fell back",
        "shed",
        "failed",
        "p50 ms",
        "p99 ms",
        "server CPU",
    )
    for name in names:
        table.add_column(name, justify="left" if name == "tool" else "right")
    best: dict[str, float] = {}
    for run in sorted(results.runs, key=lambda run: (run["part"], run["tool"], run.get("workers", 1), run["rate"])):
        tool = "headrace, swapping" if run["part"] == "swaps" else run["tool"]
        seconds = run["sent"] / run["offered_per_s"]
        table.add_row(
            tool, str(run.get("workers", 1)), f"{run['rate']:g}", f"{run['answered_per_s']:g}", str(run["fallbacks"]),
            str(run["shed"]), str(run["failed"]), f"{run['p50_ms']}", f"{run['p99_ms']}",
            f"{run['server_cpu_s'] / seconds:.0%}",
        )  # fmt: skip
        if run["part"] != "swaps" and held(run):
            named = f"{run['tool']}, {run['workers']} worker(s)"
            best[named] = max(best.get(named, 0.0), run["answered_per_s"])
    console.print(table)
    for run in results.runs:
        if run["part"] == "swaps" and "swapped" in run:
            console.print(
                f"{run['swapped']} of {run['swaps']} swaps at {run['rate']:g} requests a second: {run['failed']} of "
                f"{run['sent']:,} requests failed, {run['shed']} were shed"
            )
    swapping = [run for run in results.runs if run["part"] == "swaps" and "swapped" in run]
    return {"held_per_s": best, "swaps_held": all(map(swaps_held, swapping)) if swapping else None}


def swaps_held(run: dict[str, Any]) -> bool:
    """Whether the server saw every swap, and no request failed."""
    return run["swapped"] == run["swaps"] and run["failed"] == 0


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="headrace benchmark serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = command.add_argument
    add("--to", default="runs/bench-serving", help="folder for the shop, logs and results (runs/bench-serving)")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(all)")
    add("--items", type=int, default=100_000, help="of the shop (100000)")
    add("--rates", type=float, nargs="+", default=[50, 100, 200, 400, 800], help="requests a second (50 to 800)")
    add("--seconds", type=float, default=20, help="of each rate (20)")
    add("--workers", type=int, nargs="+", default=[1, 2], help="processes of the server (1 and 2)")
    add("--swaps", type=int, default=20, help="between two releases (20)")
    add("--swap-every", type=float, default=5, help="seconds between swaps (5)")
    add("--swap-rate", type=float, default=50, help="requests a second meanwhile (50)")
    add(
        "--serve",
        nargs=argparse.REMAINDER,
        default=[],
        help="last: options for headrace serve, such as --fsync interval",
    )
    given = command.parse_args(arguments)
    folder, console = Path(given.to).absolute(), Console(stderr=True)
    results = Results(folder / "results.jsonl")
    try:
        releases = releases_of_shop(folder / str(given.items), given.items)
        write_bodies(folder / "bodies.jsonl", given.items)
        if "load" in given.parts:
            load(results, folder, releases[0], given, console)
        if "swaps" in given.parts:
            swaps(results, folder, releases, given)
        if "peer" in given.parts:
            peer(results, folder, releases[0], given, console)
    except UserError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return 2
    found = {"benchmark": "serving", "cores": len(os.sched_getaffinity(0)), "items": given.items}
    found |= show(results, Console(width=140))
    print(json.dumps(found | {"runs": results.runs}))
    return 1 if found["swaps_held"] is False else 0


if __name__ == "__main__":
    sys.exit(main())
