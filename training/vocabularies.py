"""Vocabularies beside a trained model, and how the rows of one generation are found again in the next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.bundle import BundleManifest
from schemas.errors import UserError
from schemas.features import NUM_RESERVED
from schemas.snapshot import Snapshot, open_snapshot

VOCABULARIES = "vocab"
CARRIED_BYTES = 256 << 20
"""A vocabulary whose files are no larger goes with the bundle, so that neither a server nor the next generation needs a
snapshot that may be gone by then. A value takes about ten bytes where its row takes 4 x (width + 1): the bundle grows
by a tenth or two. A larger one, some twenty million ids or long texts, stays where it is, by the snapshot's URL, for a
bundle is copied to many places."""


def carry(folder: Path, snapshot: Snapshot) -> None:
    """Write value and idx of each vocabulary that is small enough; one at a time in memory."""
    for name in snapshot.transform.vocabularies:
        files = snapshot.files(f"vocab/{name}")
        if files and sum(file.bytes for file in files) <= CARRIED_BYTES:
            folder.mkdir(exist_ok=True)
            pq.write_table(read_vocabulary(snapshot, name), folder / f"{name}.parquet", compression="zstd")


def read_vocabulary(snapshot: Snapshot, name: str) -> pa.Table:
    return snapshot.read(f"vocab/{name}", columns=["value", "idx"])


def vocabulary_of_bundle(
    bundle: Path, manifest: BundleManifest, name: str, *, otherwise: str = "train without --warm-start"
) -> pa.Table:
    """The bundle's own, or that of the snapshot it was trained on; UserError, with what to do `otherwise`, where
    neither is there any more."""
    file = bundle / VOCABULARIES / f"{name}.parquet"
    if file.exists():
        return pq.read_table(file, columns=["value", "idx"])
    parent = manifest.snapshot
    try:
        snapshot = open_snapshot(parent.url)
        if snapshot.manifest.digest() != parent.digest:
            raise UserError(f"{parent.url} is another snapshot than it was.")
        return read_vocabulary(snapshot, name)
    except (UserError, OSError) as error:
        raise UserError(
            f"{bundle} does not carry its vocabulary {name!r}, and the snapshot that it was trained on does not give "
            f"it ({str(error).rstrip('.')}): without it rows cannot be matched by value. Bring that snapshot back, or "
            f"{otherwise}."
        ) from None


@dataclass(frozen=True)
class Renumbering:
    """Where the rows of an old table lie in a new one."""

    new_of_old: NDArray[np.int64]
    """Shape (old rows,); -1 for a value that is gone."""
    new_rows: int

    @classmethod
    def same(cls, rows: int) -> Renumbering:
        return cls(np.arange(rows), rows)

    @classmethod
    def of(cls, old: pa.Table, new: pa.Table, *, old_rows: int, new_rows: int) -> Renumbering:
        """By value; reserved rows stay what they are. One hash join over a vocabulary, in memory."""
        old_values, new_values = (table["value"].cast(pa.large_string()).combine_chunks() for table in (old, new))
        place = pc.index_in(old_values, value_set=new_values)
        found = place.is_valid().to_numpy(zero_copy_only=False)
        new_of_old = np.full(old_rows, -1, dtype=np.int64)
        new_of_old[:NUM_RESERVED] = np.arange(NUM_RESERVED)
        new_idx = new["idx"].to_numpy()[place.drop_null().to_numpy()]
        new_of_old[old["idx"].to_numpy()[found]] = new_idx
        return cls(new_of_old, new_rows)

    @property
    def kept(self) -> int:
        """Rows taken over, the reserved ones among them."""
        return int((self.new_of_old >= 0).sum())

    @property
    def new(self) -> int:
        return self.new_rows - self.kept

    @property
    def gone(self) -> int:
        return len(self.new_of_old) - self.kept
