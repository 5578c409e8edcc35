"""Small snapshots written by hand, without Spark, for tests of what reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.contract import Column, Contract, read_contract
from schemas.features import NUM_RESERVED, FeatureTransform, HistoryFeature, IndexFeature, NumberFeature, Vocabulary
from schemas.ledger import ROW_ID_MODULUS, Ledger, SplitLedger, TableLedger
from schemas.manifest import MANIFEST, DataFile, Manifest

NUM_USERS, NUM_ITEMS, HISTORY = 20, 30, 4


def write_parquet(path: Path, table: pa.Table, row_groups: Sequence[int], root: Path) -> DataFile:
    """Write a table with row groups of exactly these sizes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, table.schema) as writer:
        start = 0
        for rows in row_groups:
            writer.write_table(table.slice(start, rows), row_group_size=max(rows, 1))
            start += rows
    assert start == table.num_rows
    return DataFile(
        path=str(path.relative_to(root)),
        bytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        row_groups=tuple(rows for rows in row_groups if rows),
    )


def split_table(
    num_rows: int, *, first_id: int, held_out: bool, seed: int = 0, unknown_likes: bool = False
) -> pa.Table:
    """Rows with a pattern to learn: a user's parity decides the half of the items that they take.

    With `unknown_likes` a seventh of the users were not asked what they like: not a number.
    """
    random = np.random.default_rng([seed, first_id])
    user = random.integers(0, NUM_USERS, num_rows)

    def items_of(users: np.ndarray, count: int) -> np.ndarray:
        drawn = random.integers(0, NUM_ITEMS // 2, (len(users), count))
        return (2 * drawn + (users % 2)[:, None] + NUM_RESERVED).astype(np.int32)

    required = {"nullable": False}
    lists = pa.list_(pa.field("element", pa.int32(), nullable=False))
    item = items_of(user, 1)[:, 0]
    clicked = random.random(num_rows) < np.where((user + item) % 3 == 0, 0.8, 0.2)
    liked = np.where(clicked, random.random(num_rows) < 0.5, False).astype(np.float32)
    if unknown_likes:
        liked[::7] = np.nan
    columns = {
        "row_id": pa.array(np.arange(first_id, first_id + num_rows, dtype=np.int64)),
        "user_idx": pa.array((user + NUM_RESERVED).astype(np.int32)),
        "item_idx": pa.array(item),
        "event_time_ms": pa.array(np.arange(num_rows, dtype=np.int64)),
        "label": pa.array(clicked.astype(np.float32)),
        "label_like": pa.array(liked),
        "user_age": pa.array(random.normal(size=num_rows).astype(np.float32)),
        "history": pa.array(list(items_of(user, HISTORY)), lists),
    }
    if held_out:
        columns["query_id"] = columns["row_id"]
        columns["seen"] = pa.array([row[: i % (HISTORY + 1)] for i, row in enumerate(items_of(user, HISTORY))], lists)
        columns["negatives"] = pa.array([np.unique(row) for row in items_of(user + 1, 5)], lists)
    return pa.table(columns, schema=pa.schema([pa.field(n, a.type, **required) for n, a in columns.items()]))


def contract() -> Contract:
    """MovieLens's, with clicks and likes for labels instead of its ratings."""
    base = read_contract("ml-100k")
    rated = [column for column in base.events.columns if column.role == "label"]
    kept = tuple(c.model_copy(update={"role": "none"}) if c in rated else c for c in base.events.columns)
    clicked = Column(name="clicked", type="int32", role="label", one_of=("0", "1"), meaning="clicked")
    liked = Column(name="like", type="int32", role="label", one_of=("0", "1"), nullable=True, meaning="liked, if asked")
    return base.model_copy(update={"events": base.events.model_copy(update={"columns": (*kept, clicked, liked)})})


def make_snapshot(
    root: Path,
    train_files: Sequence[Sequence[int]],
    *,
    valid_rows: int = 40,
    test_rows: int = 40,
    unknown_likes: bool = False,
) -> str:
    """Write a snapshot whose train files have row groups of these sizes; give its URL."""
    parts: dict[str, tuple[DataFile, ...]] = {}
    tables = {}
    num_train = sum(sum(file) for file in train_files)
    tables["train"] = split_table(num_train, first_id=1, held_out=False, unknown_likes=unknown_likes)
    tables["valid"] = split_table(valid_rows, first_id=100_001, held_out=True, unknown_likes=unknown_likes)
    tables["test"] = split_table(test_rows, first_id=200_001, held_out=True, unknown_likes=unknown_likes)
    files, start = [], 0
    for number, row_groups in enumerate(train_files):
        rows = sum(row_groups)
        path = root / "train" / f"part-{number:05d}.parquet"
        files.append(write_parquet(path, tables["train"].slice(start, rows), row_groups, root))
        start += rows
    parts["train"] = tuple(files)
    for split, rows in (("valid", valid_rows), ("test", test_rows)):
        path = root / split / "part-00000.parquet"
        parts[split] = (write_parquet(path, tables[split], [rows], root),)
    counts = np.bincount(tables["train"]["item_idx"].to_numpy(), minlength=NUM_ITEMS + NUM_RESERVED)[NUM_RESERVED:]
    items = pa.table(
        {
            "item_idx": np.arange(NUM_RESERVED, NUM_RESERVED + NUM_ITEMS, dtype=np.int32),
            "item_id": [f"i{i}" for i in range(NUM_ITEMS)],
            "title": [f"Item {i}" for i in range(NUM_ITEMS)],
            "count": counts.astype(np.int64),
        }
    )
    parts["items"] = (write_parquet(root / "items" / "part-00000.parquet", items, [NUM_ITEMS], root),)
    total = num_train + valid_rows + test_rows
    table_ledger = TableLedger(lines=total, headers=0, blanks=0, accepted=total, duplicates=0, quarantined=0)
    manifest = Manifest(
        kind="snapshot",
        id=root.name,
        created_at="2024-01-01T00:00:00+00:00",
        code_version="test",
        contract=contract(),
        config={},
        config_digest="test",
        ledger=Ledger(
            tables={"events": table_ledger},
            splits=SplitLedger(accepted=total, train=num_train, valid=valid_rows, test=test_rows),
        ),
        parts=parts,
        transform=FeatureTransform(
            features=(
                IndexFeature(name="user_idx", source="user_id", owner="users", vocabulary="user"),
                IndexFeature(name="item_idx", source="item_id", owner="items", vocabulary="item"),
                HistoryFeature(length=HISTORY),
                NumberFeature(name="user_age", source="age", owner="users", mean=0.0, std=1.0),
            ),
            vocabularies={
                "user": Vocabulary(name="user", size=NUM_USERS + NUM_RESERVED),
                "item": Vocabulary(name="item", size=NUM_ITEMS + NUM_RESERVED),
            },
        ),
        query_grain="event",
        row_id_sums={s: int(tables[s]["row_id"].to_numpy().sum()) % ROW_ID_MODULUS for s in ("train", "valid", "test")},
    )
    (root / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return str(root)


def write_vocabularies(url: str, vocabularies: Mapping[str, Sequence[str]]) -> str:
    """Give a snapshot these values, the first with the index 3, as `prepare` writes them; give its URL."""
    root = Path(url)
    manifest = Manifest.model_validate_json((root / MANIFEST).read_text(encoding="utf-8"))
    assert manifest.transform is not None
    parts, known = dict(manifest.parts), dict(manifest.transform.vocabularies)
    for name, values in vocabularies.items():
        idx = np.arange(NUM_RESERVED, NUM_RESERVED + len(values), dtype=np.int32)
        table = pa.table({"value": list(values), "idx": idx, "count": np.ones(len(values), dtype=np.int64)})
        part = f"vocab/{name}"
        parts[part] = (write_parquet(root / part / "part-00000.parquet", table, [len(values)], root),)
        known[name] = Vocabulary(name=name, size=NUM_RESERVED + len(values))
    transform = manifest.transform.model_copy(update={"vocabularies": known})
    changed = manifest.model_copy(update={"parts": parts, "transform": transform})
    (root / MANIFEST).write_text(changed.model_dump_json(), encoding="utf-8")
    return url
