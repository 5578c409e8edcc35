"""The items that can be recommended, in memory, in the order of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from schemas.features import NUM_RESERVED
from schemas.snapshot import Snapshot
from training.batch import to_columns


@dataclass(frozen=True)
class Catalogue:
    """N items and the reserved rows; `features` maps each item feature to a tensor whose row i describes item_idx i."""

    counts: Tensor
    """How often each item stands in train, shape (N,), item_idx NUM_RESERVED first."""
    features: dict[str, Tensor]
    table: pa.Table
    """item_idx, item_id, title, count."""

    @property
    def num_items(self) -> int:
        return len(self.counts)


def read_catalogue(snapshot: Snapshot) -> Catalogue:
    table = snapshot.read("items").sort_by("item_idx")
    of_items = [feature for feature in snapshot.transform.of("items") if feature.name != "item_idx"]
    columns = (
        to_columns(table.select([feature.name for feature in of_items]), snapshot.transform.lengths) if of_items else {}
    )
    features = {}
    for name, column in columns.items():
        assert isinstance(column, Tensor)
        features[name] = torch.cat([column.new_zeros(NUM_RESERVED, *column.shape[1:]), column])
    counts = torch.from_numpy(table.column("count").to_numpy().copy())
    return Catalogue(counts, features, table.select(["item_idx", "item_id", "title", "count"]))
