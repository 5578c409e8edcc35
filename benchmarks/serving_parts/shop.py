"""A generated shop and its release: as many items as asked for, all of which the log has seen.

Nothing can be learned from it: it is for speed and memory.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import launch
from schemas.errors import UserError

_FIRST_MS, _DAYS = 1_704_067_200_000, 20  # 2024-01-01
_EVENTS_PER_ITEM, _ITEMS_PER_USER = 8, 5


def generate(folder: Path, num_items: int) -> None:
    """Write events, items and users below `folder`, unless they are there; each item has an event on the first days."""
    if folder.exists():
        return
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    random = np.random.default_rng(num_items)
    num_users, rows = num_items // _ITEMS_PER_USER, num_items * _EVENTS_PER_ITEM
    popular = np.minimum(random.zipf(1.3, rows - num_items) - 1, num_items - 1)
    tables = {
        "items": {
            "item_id": np.arange(num_items),
            "title": np.char.add("Item ", np.arange(num_items).astype(str)),
            "brand": random.integers(0, 500, num_items, dtype=np.int32),
            "category": random.integers(0, 50, num_items, dtype=np.int32),
            "price": random.lognormal(3, 1, num_items),
        },
        "users": {
            "user_id": np.arange(num_users),
            "region": random.integers(0, 40, num_users, dtype=np.int32),
            "days": random.integers(0, 2000, num_users, dtype=np.int32),
        },
        "events": {
            "user_id": random.integers(0, num_users, rows),
            "item_id": np.concatenate([random.permutation(num_items), popular]),
            "time_ms": _FIRST_MS + np.sort(random.integers(0, _DAYS * 86_400_000, rows)),
            "clicked": (random.random(rows) < 0.2).astype(np.int32),
            "page": random.integers(0, 10, rows, dtype=np.int32),
        },
    }
    for name, columns in tables.items():
        (unfinished / name).mkdir(parents=True)
        pq.write_table(pa.table(columns), unfinished / name / "part-0.parquet")
    unfinished.rename(folder)


def runs_of_shop(folder: Path, num_items: int) -> tuple[Path, Path]:
    """A two-tower and a DLRM trained for an epoch on the shop's log; what stands is kept."""
    generate(folder / "raw", num_items)
    events, snapshot = folder / "events", folder / "snapshot"
    contract = launch.ROOT / "benchmarks" / "shop.yaml"
    _ok(
        launch.spark_submit("ingest", ["--contract", f"{contract}", "--raw", f"{folder / 'raw'}", "--out", f"{events}"])
    )
    _ok(
        launch.spark_submit(
            "prepare", ["--events", f"{events}", "--out", f"{snapshot}", "--split", "time:0.98,0.01,0.01"]
        )
    )
    runs = {}
    for recipe, settings in {
        "two_tower": ["epochs=1", "batch_size_per_rank=4096", "loss.num_sampled=1000", "model.width=64"],
        "dlrm": ["epochs=1", "batch_size_per_rank=4096", "chosen_by=log_loss"],
    }.items():
        runs[recipe] = folder / recipe
        words = ["--snapshot", f"{snapshot}", "--recipe", recipe, "--run", f"{runs[recipe]}", "--no-tensorboard"]
        _ok(launch.program("training.train", [*words, *(word for one in settings for word in ("--set", one))]))
    return runs["two_tower"], runs["dlrm"]


def releases_of_shop(folder: Path, num_items: int) -> tuple[Path, Path]:
    """Two releases of the same models under two ids, to swap between."""
    retriever, ranker = runs_of_shop(folder, num_items)
    made = []
    for number in ("0001", "0002"):
        release = folder / "releases" / number
        made.append(release)
        if not (release / "release.json").exists():
            words = ["--retriever", f"{retriever}", "--ranker", f"{ranker}", "--id", number, "--out", f"{release}"]
            _ok(launch.program("serving.pack", words))
    return made[0], made[1]


def write_bodies(path: Path, num_items: int, *, count: int = 5000, k: int = 10) -> None:
    """Requests of users drawn evenly; one in twenty is new."""
    random = np.random.default_rng(1)
    num_users = num_items // _ITEMS_PER_USER
    users = np.where(random.random(count) < 0.05, num_users + 1, 0) + random.integers(0, num_users, count)
    pages = random.integers(0, 10, count)
    lines = [
        json.dumps({"user_id": str(user), "k": k, "context": {"page": page}})
        for user, page in zip(users.tolist(), pages.tolist(), strict=True)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _ok(code: int) -> None:
    if code != 0:
        raise UserError(f"a step of the shop's release ended with code {code}; what it said stands above.")
