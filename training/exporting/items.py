"""A retriever's vectors of all items, for an index or one matrix product: row i is the i-th of `item_idx`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from schemas.features import NUM_RESERVED
from training.models.retriever import Retriever

_ITEMS_AT_ONCE = 1 << 16


@torch.no_grad()
def item_vectors(retriever: Retriever, num_items: int) -> Tensor:
    """Shape (items, D), float32; the reserved rows are left out, for nothing is to recommend there."""
    every = torch.arange(NUM_RESERVED, NUM_RESERVED + num_items)
    return torch.cat([retriever.items(part) for part in every.split(_ITEMS_AT_ONCE)])


def write_items(retriever: Retriever, num_items: int, path: Path) -> None:
    item_idx = torch.arange(NUM_RESERVED, NUM_RESERVED + num_items)
    save_file({"vectors": item_vectors(retriever, num_items).contiguous(), "item_idx": item_idx}, path)
