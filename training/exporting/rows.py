"""Rows on which an exported model is asked and compared: of valid where it can be read, else drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from schemas.errors import UserError
from schemas.export import Tensor as TensorOf
from schemas.features import NULL_IDX, NUM_RESERVED, PADDING_IDX, FeatureTransform
from schemas.manifest import Parent
from schemas.snapshot import Snapshot, open_snapshot
from training.feed import Feed
from training.reader import open_part

Columns = dict[str, Tensor]


def snapshot_of(parent: Parent) -> Snapshot | None:
    """The snapshot that a bundle was trained on, if it still stands there."""
    try:
        snapshot = open_snapshot(parent.url)
    except UserError:
        return None
    return snapshot if snapshot.manifest.digest() == parent.digest else None


def rows_of_valid(snapshot: Snapshot, inputs: Sequence[TensorOf], rows: int) -> Columns:
    """The first rows of valid, from the start again where it has fewer."""
    reading = open_part(snapshot, "valid", columns=[one.name for one in inputs])
    batch = next(iter(Feed(reading, batch_size_per_rank=rows, rank=0, world_size=1, seed=0, shuffle=False)))
    taken = torch.arange(rows) % batch.num_rows
    return {one.name: batch[one.name][taken] for one in inputs}


def drawn_rows(transform: FeatureTransform, inputs: Sequence[TensorOf], rows: int, *, seed: int = 0) -> Columns:
    """Rows of the features' ranges: any index but padding, lists of any length, numbers about the mean of train."""
    random = torch.Generator().manual_seed(seed)
    features = {feature.name: feature for feature in transform.features}
    columns = {}
    for one in inputs:
        if one.dtype == "float32":
            columns[one.name] = torch.randn(rows, generator=random)
            continue
        feature = features[one.name]
        length = transform.lengths.get(one.name)
        shape = (rows,) if length is None else (rows, length)
        low = NULL_IDX if length is None else NUM_RESERVED - 1
        index = torch.randint(low, transform.size(feature), shape, generator=random, dtype=torch.int32)
        if length is not None:
            held = torch.randint(0, length + 1, (rows, 1), generator=random)
            place = torch.arange(length)
            # Histories are padded on the left, other lists on the right.
            is_held = place >= length - held if feature.kind in ("history", "gaps") else place < held
            index = index.where(is_held, PADDING_IDX)
        columns[one.name] = index
    return columns
