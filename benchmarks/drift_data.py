"""Generated snapshots for the benchmark of drift: users of unequal activity whose rows are alike. No real log."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.contract import read_contract
from schemas.features import NUM_RESERVED, Feature, FeatureTransform, IndexFeature, NumberFeature, Vocabulary
from schemas.ledger import Ledger, SplitLedger, TableLedger
from schemas.manifest import MANIFEST, DataFile, Manifest

NUM_NUMBERS, NUM_CATEGORIES = 8, 8
NUM_USERS, NUM_ITEMS, NUM_VALUES = 100_000, 20_000, 1000
MOVED = ("n0", "c0")
"""Columns that the second snapshot has moved: by half a standard deviation, and a tenth of the rows to one value."""
ALIKE = 0.3
_ROWS_PER_FILE = 1_000_000

Floats = NDArray[np.float64]


def generate_snapshot(folder: Path, num_rows: int, *, seed: int, moved: bool) -> None:
    """Write a snapshot with these rows as its train, unless it is there. Users are the same whatever the seed."""
    if (folder / MANIFEST).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    own = np.random.default_rng(0).normal(size=(NUM_NUMBERS, NUM_USERS))
    files = []
    for number, start in enumerate(range(0, num_rows, _ROWS_PER_FILE)):
        table = _rows(min(_ROWS_PER_FILE, num_rows - start), own, np.random.default_rng([seed, number]), moved=moved)
        files.append(_write(folder, f"train/part-{number:05d}.parquet", table))
    sizes = {"user": NUM_USERS, "item": NUM_ITEMS, **{f"c{place}": NUM_VALUES for place in range(NUM_CATEGORIES)}}
    parts = {"train": tuple(files)}
    for name, size in sizes.items():
        entries = {
            "value": [f"{name}{value}" for value in range(size)],
            "idx": np.arange(NUM_RESERVED, NUM_RESERVED + size, dtype=np.int32),
            "count": np.ones(size, dtype=np.int64),
        }
        parts[f"vocab/{name}"] = (_write(folder, f"vocab/{name}/part-00000.parquet", pa.table(entries)),)
    (folder / MANIFEST).write_text(_manifest(folder, num_rows, sizes, parts).model_dump_json(), encoding="utf-8")


def _rows(count: int, own: Floats, random: np.random.Generator, *, moved: bool) -> pa.Table:
    user = np.minimum(random.zipf(1.3, count) - 1 + random.integers(0, 2000, count), NUM_USERS - 1)
    columns: dict[str, object] = {"row_id": random.integers(0, 1 << 62, count)}
    columns["user_idx"] = (user + NUM_RESERVED).astype(np.int32)
    columns["item_idx"] = (_zipf(random, count, NUM_ITEMS) + NUM_RESERVED).astype(np.int32)
    columns["event_time_ms"] = np.arange(count, dtype=np.int64)
    for place in range(NUM_NUMBERS):
        value = ALIKE**0.5 * own[place, user] + (1 - ALIKE) ** 0.5 * random.normal(size=count)
        columns[f"n{place}"] = (value + (0.5 if moved and f"n{place}" in MOVED else 0)).astype(np.float32)
    for place in range(NUM_CATEGORIES):
        value = _zipf(random, count, NUM_VALUES)
        if moved and f"c{place}" in MOVED:
            value = np.where(random.random(count) < 0.1, 7, value)
        columns[f"c{place}"] = (value + NUM_RESERVED).astype(np.int32)
    columns["label"] = (random.random(count) < 0.2).astype(np.float32)
    return pa.table(columns)


def _zipf(random: np.random.Generator, count: int, size: int) -> NDArray[np.int64]:
    drawn: NDArray[np.int64] = np.minimum(random.zipf(1.3, count), size) - 1
    return drawn


def _write(root: Path, path: str, table: pa.Table) -> DataFile:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, compression="lz4")
    footer = pq.read_metadata(file)
    groups = tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return DataFile(path=path, bytes=file.stat().st_size, sha256=digest, row_groups=groups)


def _manifest(folder: Path, num_rows: int, sizes: dict[str, int], parts: dict[str, tuple[DataFile, ...]]) -> Manifest:
    features: list[Feature] = [
        IndexFeature(name="user_idx", source="user_id", owner="users", vocabulary="user"),
        IndexFeature(name="item_idx", source="item_id", owner="items", vocabulary="item"),
    ]
    features += [NumberFeature(name=f"n{place}", source=f"n{place}", owner="events") for place in range(NUM_NUMBERS)]
    features += [
        IndexFeature(name=f"c{place}", source=f"c{place}", owner="events", vocabulary=f"c{place}")
        for place in range(NUM_CATEGORIES)
    ]
    vocabularies = {name: Vocabulary(name=name, size=size + NUM_RESERVED) for name, size in sizes.items()}
    table = TableLedger(lines=num_rows, headers=0, blanks=0, accepted=num_rows, duplicates=0, quarantined=0)
    return Manifest(
        kind="snapshot",
        id=folder.name,
        created_at="2024-01-01T00:00:00+00:00",
        code_version="generated",
        contract=read_contract("ml-100k"),
        config={},
        config_digest=folder.name,
        ledger=Ledger(tables={"events": table}, splits=SplitLedger(accepted=num_rows, train=num_rows, valid=0, test=0)),
        parts=parts,
        transform=FeatureTransform(features=tuple(features), vocabularies=vocabularies),
        query_grain="event",
    )
