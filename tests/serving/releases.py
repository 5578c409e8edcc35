"""A small release made for real: a snapshot by hand, models trained on it for a second, and `headrace release`.

20 users u0 ... u19, 30 items i0 ... i29. Events have `tab` (0, 1 or 2), known beforehand, and count earlier events of
the item; an item has a `year`. A retriever (two_tower) and a ranker (dlrm) learn from these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.contract import Column
from schemas.features import NUM_RESERVED, CyclicFeature, HashFeature, IndexFeature, PastFeature
from schemas.feedback import FeedbackRules, LabelRule
from schemas.manifest import MANIFEST, DataFile, Manifest
from schemas.release import Champion, Release, read_champion
from schemas.settings import digest_of
from schemas.wheel import CHAMPION, ServingSettings
from serving.pack import pack
from tests.snapshots import HISTORY, NUM_ITEMS, NUM_USERS, make_snapshot, write_parquet, write_vocabularies
from training.ranks import OneRank
from training.recipe import read_recipe
from training.run_folder import RunFolder
from training.train import train

TILE_MS = 1000
LAST_EVENT_MS = 20 * TILE_MS - 1
TABS, YEARS = ("0", "1", "2"), ("1990", "2000")
RULES = FeedbackRules(
    event="impression", labels={"clicked": LabelRule(action="click"), "like": LabelRule(action="like")}
)
FEATURES = (
    IndexFeature(name="year", source="year", owner="items", vocabulary="year"),
    IndexFeature(name="tab", source="tab", owner="events", vocabulary="tab"),
    CyclicFeature(name="time_day_sin", source="event_time_ms", owner="events", period_ms=86_400_000, phase="sin"),
    HashFeature(name="tab_x_item", sources=("tab", "item_id"), owner="events", buckets=50),
    PastFeature(name="item_count", owner="events", what="count", by=("item_id",), tile_ms=TILE_MS, tiles=10),
    PastFeature(
        name="tab_rate", owner="events", what="rate", by=("tab",), tile_ms=TILE_MS, prior_rows=2, prior_mean=0.5
    ),
)


def make_served_snapshot(root: Path, *, rows: int = 600, item_tiles: dict[str, dict[int, int]] | None = None) -> str:
    """A snapshot with users, state and features of events; give its URL.

    `item_tiles` says how many events each item had in which tile.
    """
    url = make_snapshot(root, [[rows]], valid_rows=120, test_rows=60)
    url = write_vocabularies(
        url,
        {
            "user": [f"u{i}" for i in range(NUM_USERS)],
            "item": [f"i{i}" for i in range(NUM_ITEMS)],
            "tab": TABS,
            "year": YEARS,
        },
    )
    manifest = Manifest.model_validate_json((root / MANIFEST).read_text(encoding="utf-8"))
    parts = dict(manifest.parts)
    for split in ("train", "valid", "test"):
        parts[split] = tuple(_with_event_features(root, file) for file in parts[split])
    items = pq.read_table(root / parts["items"][0].path)
    year = np.arange(NUM_ITEMS, dtype=np.int32) % 2 + NUM_RESERVED
    parts["items"] = (_write(root, "items", items.append_column("year", pa.array(year))),)
    parts["users"] = (_write(root, "users", users_table()),)
    tiles = item_tiles if item_tiles is not None else {"i0": {10: 3, 19: 1}, "i1": {5: 7}}
    counted = [(item, tile, count, 0.0) for item, of in tiles.items() for tile, count in of.items()]
    parts["state/item_count"] = (_write(root, "state/item_count", _state(counted)),)
    parts["state/tab_rate"] = (_write(root, "state/tab_rate", _state([("1", 18, 8, 6.0)])),)
    assert manifest.transform is not None
    transform = manifest.transform.model_copy(update={"features": (*manifest.transform.features, *FEATURES)})
    tab = Column(name="tab", type="int32", role="categorical", nullable=True, meaning="part of the page")
    events = manifest.contract.events.model_copy(update={"columns": (*manifest.contract.events.columns, tab)})
    changed = manifest.model_copy(
        update={
            "parts": parts,
            "transform": transform,
            "contract": manifest.contract.model_copy(update={"events": events}),
            "statistics": {"test": {"last_event_time_ms": float(LAST_EVENT_MS)}},
        }
    )
    (root / MANIFEST).write_text(changed.model_dump_json(), encoding="utf-8")
    return url


def users_table() -> pa.Table:
    """User i is i / 10 old (standardised), and has seen items 2i, 2i + 1, 2i + 2 (modulo the items), oldest first."""
    lists = pa.list_(pa.field("element", pa.int32(), nullable=False))
    seen = [[(2 * i + j) % NUM_ITEMS + NUM_RESERVED for j in range(3)] for i in range(NUM_USERS)]
    return pa.table(
        {
            "user_id": [f"u{i}" for i in range(NUM_USERS)],
            "user_idx": np.arange(NUM_RESERVED, NUM_RESERVED + NUM_USERS, dtype=np.int32),
            "user_age": (np.arange(NUM_USERS) / 10).astype(np.float32),
            "history": pa.array([[0] * (HISTORY - 3) + items for items in seen], lists),
            "seen": pa.array(seen, lists),
        }
    )


def _with_event_features(root: Path, file: DataFile) -> DataFile:
    table = pq.read_table(root / file.path)
    random = np.random.default_rng(table.num_rows)
    added: dict[str, Any] = {
        "tab": random.integers(NUM_RESERVED, NUM_RESERVED + len(TABS), table.num_rows).astype(np.int32),
        "time_day_sin": random.normal(size=table.num_rows).astype(np.float32),
        "tab_x_item": random.integers(NUM_RESERVED, NUM_RESERVED + 50, table.num_rows).astype(np.int32),
        "item_count": random.random(table.num_rows).astype(np.float32),
        "tab_rate": random.random(table.num_rows).astype(np.float32),
    }
    for name, values in added.items():
        table = table.append_column(pa.field(name, pa.array(values).type, nullable=False), pa.array(values))
    return write_parquet(root / file.path, table, list(file.row_groups), root)


def _write(root: Path, part: str, table: pa.Table) -> DataFile:
    return write_parquet(root / part / "part-00000.parquet", table, [table.num_rows], root)


def _state(rows: list[tuple[str, int, int, float]]) -> pa.Table:
    names = ("key", "tile", "rows", "labels")
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    types = (pa.string(), pa.int64(), pa.int64(), pa.float64())
    return pa.table({n: pa.array(c, t) for n, c, t in zip(names, columns, types, strict=True)})


def train_runs(url: str, folder: Path, *, seed: int = 0) -> tuple[Path, Path]:
    """Runs of a retriever and of a ranker on the snapshot, in about two seconds."""
    runs = {}
    for name, more in (("two_tower", ["model.recent=2"]), ("dlrm", ["model.top=[8]", "model.bottom=[8]"])):
        small = ["model.width=8", "batch_size_per_rank=128", "epochs=1", f"seed={seed}", *more]
        runs[name] = folder / name
        recipe = read_recipe(name, small)
        train(
            OneRank(),
            snapshot_url=url,
            recipe=recipe,
            folder=RunFolder(runs[name]),
            check_only=False,
            tensorboard=False,
        )
    return runs["two_tower"], runs["dlrm"]


def make_release(
    folder: Path,
    release_id: str = "0001",
    *,
    ranker: bool = True,
    seed: int = 0,
    serving: ServingSettings | None = None,
) -> tuple[Path, Release]:
    """Snapshot, runs and release under `folder`; give the release's folder and its description."""
    url = make_served_snapshot(folder / "snapshot")
    retriever, ranked = train_runs(url, folder / "runs", seed=seed)
    out = folder / "release"
    release = pack(retriever, ranked if ranker else None, out, release_id=release_id, serving=serving, feedback=RULES)
    return out, release


def make_champion(wheel: Path, release: Path, release_id: str) -> Path:
    """Point the wheel's champion.json at a release, in one step, as `headrace promote` does."""
    before = read_champion(wheel / CHAMPION)
    champion = Champion(release=str(release), id=release_id, promoted_at="2024-01-01T00:00:00+00:00", before=before)
    draft = wheel / f".{CHAMPION}.{digest_of(release_id)[:8]}"
    draft.write_text(champion.model_dump_json(), encoding="utf-8")
    return draft.replace(wheel / CHAMPION)
