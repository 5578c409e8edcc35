"""The wheel turns: generations that learn from what they served, replayed from a real log, beside one that is frozen.

The log is cut by time: a first part to begin with, then periods. In each period the users who were really active ask,
are answered by the release in service, and react as they really did; what was shown and done is logged, and the wheel
turns. This is replay: a reaction is known only for items that a user really met, any other counts as not taken.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.wheel_parts.arms import PopularArm, ReleaseArm
from benchmarks.wheel_parts.people import Taken, replay
from benchmarks.wheel_parts.plot import draw
from benchmarks.wheel_parts.real_log import RealLog, read_log
from benchmarks.wheel_parts.wheels import first_release, new_wheel, outcome_of, release_in_service, turn, write_logs
from pipelines.data import DATA_SETS, fetch
from pipelines.turning.wheel_folder import WheelFolder
from schemas.durable import write_text
from schemas.errors import UserError
from schemas.programs import answering_mistakes
from schemas.storage import absolute

ARMS = ("wheel, exploring", "wheel, greedy", "frozen", "popularity")
SHOWN = ("recall@20", "ndcg@20", "first_recall@20", "hit_rate", "amplification")
ITEMS = 20
"""Of a response."""
_POPULAR = 0.1
_REQUESTS = {"ml-100k": 5, "kuairand": 10}
_EPOCHS = {"ml-100k": 8, "kuairand": 5}


@dataclass(frozen=True, kw_only=True)
class Setting:
    data: str
    generations: int
    seed_share: float
    requests: int
    epsilon: float
    epochs: int
    train_days: float | None = None
    past_share: float = 0.0


def run_arm(folder: Path, arm: str, log: RealLog, setting: Setting, seed: int) -> list[dict[str, Any]]:
    """Every period of one arm, one file a period; what stands is not done again."""
    cuts = log.cuts(setting.seed_share, setting.generations)
    first = (log.time_ms < cuts[0]) & log.acted
    counts = Counter(log.item[first].tolist())
    popular = {item for item, _ in counts.most_common(max(1, round(_POPULAR * len(counts))))}
    wheel = None
    if arm != "popularity":
        epsilon = setting.epsilon if arm == "wheel, exploring" else 0.0
        # What is frozen is the greedy wheel's first generation: the two are the same until its second.
        place = folder / ("exploring" if arm == "wheel, exploring" else "greedy")
        asked: dict[str, Any] = {"epsilon": epsilon, "epochs": setting.epochs, "train_days": setting.train_days}
        asked["past_share"] = setting.past_share
        wheel = new_wheel(place, log, cuts[0], **asked, seed=seed)
        if wheel.in_service() is None:
            turn(wheel)
        first_release(wheel)
    taken: Taken = {}
    found: list[dict[str, Any]] = []
    for period, span in enumerate(pairwise(cuts)):
        name = f"{arm.replace(', ', '-')}-{period:02d}"
        path = folder / "periods" / f"{name}.json"
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            for user, time_ms, item in kept["taken"]:
                taken.setdefault(user, []).append((time_ms, item))
        else:
            answering = recommender(arm, wheel, log, cuts[0], taken, seed=1000 * seed + period)
            done = replay(log, answering, taken, span, popular, name=name, k=ITEMS, requests=setting.requests)
            if wheel is not None and arm != "frozen":
                write_logs(wheel, done.impressions, done.actions)
            kept = {"measures": done.measures, "generation": answering.generation, "taken": done.taken}
            write_text(path, json.dumps(kept))
            print(f"{name} (seed {seed}): " + ", ".join(f"{key} {done.measures[key]:.4f}" for key in SHOWN), flush=True)
        outcome = kept.get("outcome")
        if outcome is None and wheel is not None and arm != "frozen" and period + 1 < setting.generations:
            turn(wheel)
            # The first turn was before the first period; one that met nothing new has left no number.
            turned = sum(row["outcome"] not in (None, "nothing new") for row in found)
            outcome = outcome_of(wheel, turned + 2)
            write_text(path, json.dumps({**kept, "outcome": outcome}))
        found.append({"period": period, "generation": kept["generation"], "outcome": outcome, **kept["measures"]})
    return found


def recommender(
    arm: str, wheel: WheelFolder | None, log: RealLog, seed_end_ms: int, taken: Taken, *, seed: int
) -> ReleaseArm | PopularArm:
    if wheel is None:
        return PopularArm(log, seed_end_ms, taken)
    release = first_release(wheel) if arm == "frozen" else release_in_service(wheel)
    return ReleaseArm(release, seed=seed)


def benchmark(folder: Path, raw: Path, setting: Setting, seeds: list[int], arms: list[str]) -> dict[str, Any]:
    log = read_log(setting.data, raw)
    results: dict[str, dict[int, list[dict[str, Any]]]] = {arm: {} for arm in arms}
    for seed in seeds:
        for arm in arms:
            results[arm][seed] = run_arm(folder / f"seed-{seed}", arm, log, setting, seed)
    show(results, setting)
    draw(results, folder / "wheel.png", SHOWN)
    means = {
        arm: {key: round(statistics.mean(after_first_turn(rows, key) for rows in by_seed.values()), 4) for key in SHOWN}
        for arm, by_seed in results.items()
    }
    refused = {arm: sum(num_refused(rows) for rows in by_seed.values()) for arm, by_seed in results.items()}
    said = {"benchmark": "wheel", **asdict(setting), "seeds": seeds, "after_first_turn": means, "refused": refused}
    return {**said, "plot": str(folder / "wheel.png")}


def num_refused(rows: list[dict[str, Any]]) -> int:
    return sum(row["outcome"] == "refused" for row in rows)


def after_first_turn(rows: list[dict[str, Any]], key: str) -> float:
    """Mean over the periods that a wheel has turned before; in the first all of one seed's wheels are alike."""
    return statistics.mean(row[key] for row in rows[1:] or rows)


def show(results: dict[str, dict[int, list[dict[str, Any]]]], setting: Setting) -> None:
    """A row a measure and arm, a column a period: means over the seeds, and what the seeds range over."""
    title = f"Replay of {setting.data}: means over the seeds, {setting.requests} requests of {ITEMS} a user"
    table = Table(title=title, title_justify="left")
    for name in ("measure", "arm"):
        table.add_column(name)
    for name in (*map(str, range(setting.generations)), "after 0", "of seeds"):
        table.add_column(name, justify="right")
    for key in SHOWN:
        table.add_section()
        for arm, by_seed in results.items():
            of_periods = zip(*by_seed.values(), strict=True)
            cells = [f"{statistics.mean(row[key] for row in rows):.3f}" for rows in of_periods]
            of_seeds = [after_first_turn(rows, key) for rows in by_seed.values()]
            cells += [f"{statistics.mean(of_seeds):.4f}", f"{min(of_seeds):.4f} to {max(of_seeds):.4f}"]
            table.add_row(key, arm, *cells)
    Console(width=150).print(table)


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="headrace benchmark wheel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = command.add_argument
    add("--to", default="runs/wheel", help="folder to work in; what stands in it is not done again (runs/wheel)")
    add("--data", choices=("ml-100k", "kuairand"), default="ml-100k", help="which log (ml-100k)")
    add("--raw", help="folder of its raw files; MovieLens is fetched unless given")
    add("--generations", type=int, default=8, help="periods, with a turn between each two (8)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training and chance (0 1 2)")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which arms (all)")
    add("--seed-share", type=float, default=0.5, help="of the log that a wheel begins with (0.5)")
    add("--requests", type=int, help=f"of a user in a period ({_by_log(_REQUESTS)})")
    add("--epsilon", type=float, default=0.1, help="exploration of the arm that explores (0.1)")
    add("--epochs", type=int, help=f"of each training, at most ({_by_log(_EPOCHS)})")
    add("--train-days", type=float, help="of a wheel that goes on: what it learns from (all days)")
    add("--past-share", type=float, default=0.0, help="of the older events, which it goes over again (0)")
    given = command.parse_args(arguments)
    given.requests = given.requests or _REQUESTS[given.data]
    given.epochs = given.epochs or _EPOCHS[given.data]
    to = Path(absolute(given.to)) / given.data
    setting = Setting(**{name: getattr(given, name) for name in Setting.__dataclass_fields__})

    def work() -> None:
        if given.raw is None and given.data not in DATA_SETS:
            raise UserError(f"{given.data} is not fetched: give the folder of its files with --raw.")
        raw = Path(absolute(given.raw)) if given.raw is not None else to / "raw"
        if given.raw is None:
            print(fetch(given.data, raw))
        check_same(to, setting)
        print(json.dumps(benchmark(to, raw, setting, given.seeds, given.arms)))

    return answering_mistakes("benchmark wheel", work)


def _by_log(defaults: dict[str, int]) -> str:
    return ", ".join(f"{value} on {name}" for name, value in defaults.items())


def check_same(folder: Path, setting: Setting) -> None:
    """UserError where the folder holds periods of other settings."""
    path, now = folder / "setting.json", asdict(setting)
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != now:
        raise UserError(f"{folder} holds results of other settings ({path.read_text()}): give another --to.")
    write_text(path, json.dumps(now))


if __name__ == "__main__":
    sys.exit(main())
