"""Small snapshots of images, written by hand without Spark, for tests of what learns from them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from schemas.contract import Column, Contract, Source, Table
from schemas.features import NUM_RESERVED, FeatureTransform, Vocabulary
from schemas.images import Augmentation, ImageColumn
from schemas.ledger import ROW_ID_MODULUS, Ledger, SplitLedger, TableLedger
from schemas.manifest import MANIFEST, Manifest
from schemas.snapshot import Snapshot, open_snapshot
from tests.snapshots import write_parquet

CLASSES = ("blue", "green", "red")
SIZE = 32


def image_rows(rows: int, *, first_id: int) -> pa.Table:
    """Noise in which the class's colour is bright, as PNG; row ids of either sign, as hashes are."""
    random = np.random.default_rng(first_id)
    labels = (np.arange(rows) % len(CLASSES)).astype(np.int32)
    pixels = random.integers(0, 80, (rows, SIZE, SIZE, 3), dtype=np.uint8)
    pixels[np.arange(rows), :, :, labels] += 150  # OpenCV's order: blue, green, red
    columns = {
        "row_id": pa.array((first_id + np.arange(rows)) * (1 - 2 * (np.arange(rows) % 2))),
        "image": pa.array([cv2.imencode(".png", image)[1].tobytes() for image in pixels], pa.binary()),
        "label": pa.array(labels),
    }
    return pa.table(columns, schema=pa.schema([pa.field(n, a.type, nullable=False) for n, a in columns.items()]))


def make_image_snapshot(
    root: Path, train_rows: int = 24, *, held_out_rows: int = 9, augmentation: Augmentation | None = None
) -> Snapshot:
    """Train in two files of two row groups each, valid and test in one."""
    rows = {"train": train_rows, "valid": held_out_rows, "test": held_out_rows}
    tables = {split: image_rows(count, first_id=1 + 1000 * place) for place, (split, count) in enumerate(rows.items())}
    half, quarter = train_rows // 2, train_rows // 4
    parts = {
        "train": tuple(
            write_parquet(
                root / "train" / f"part-{number:05d}.parquet",
                tables["train"].slice(number * half, half),
                [quarter, half - quarter],
                root,
            )
            for number in range(2)
        )
    }
    for split in ("valid", "test"):
        parts[split] = (write_parquet(root / split / "part-00000.parquet", tables[split], [held_out_rows], root),)
    path = Column(name="path", type="string", meaning="below the folder")
    label = Column(name="label", type="int32", role="label", meaning="number of the class")
    time = Column(name="modified_ms", type="timestamp_ms", role="event_time", time_format="epoch_ms", meaning="changed")
    files = Table(source=Source(format="table", path="images"), key=("path",), columns=(path, label, time))
    total = sum(rows.values())
    counted = TableLedger(lines=total, headers=0, blanks=0, accepted=total, duplicates=0, quarantined=0)
    manifest = Manifest(
        kind="snapshot",
        id=root.name,
        created_at="2024-01-01T00:00:00+00:00",
        code_version="test",
        contract=Contract(name="images", meaning="image files", events=files),
        config={},
        config_digest="test",
        ledger=Ledger(tables={"events": counted}, splits=SplitLedger(accepted=total, **rows)),
        parts=parts,
        transform=FeatureTransform(
            features=(), vocabularies={"class": Vocabulary(name="class", size=NUM_RESERVED + len(CLASSES))}
        ),
        row_id_sums={
            split: sum(one % ROW_ID_MODULUS for one in table["row_id"].to_pylist()) % ROW_ID_MODULUS
            for split, table in tables.items()
        },
        images=ImageColumn(
            size=SIZE, mode="crop", format="png", quality=90, classes=CLASSES,
            augmentation=augmentation or Augmentation(horizontal_flip=0.5),
        ),
    )  # fmt: skip
    (root / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return open_snapshot(str(root))
