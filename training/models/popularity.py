"""The popularity baseline: every user gets the items most often seen in train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.features import NUM_RESERVED
from training.batch import Batch


class Popularity(nn.Module):
    """Scores are counts in train; it learns nothing."""

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        self.register_buffer("counts_N1", torch.cat([counts.new_zeros(NUM_RESERVED), counts]).float().unsqueeze(1))

    @property
    def columns(self) -> tuple[str, ...]:
        return ("user_idx",)

    @property
    def row_features(self) -> dict[str, str]:
        return {}

    def users(self, batch: Batch) -> Tensor:
        counts_N1: Tensor = self.counts_N1  # type: ignore[assignment]
        return counts_N1.new_ones(batch.num_rows, 1)

    def items(self, item_idx_M: Tensor) -> Tensor:
        counts_N1: Tensor = self.counts_N1  # type: ignore[assignment]
        return counts_N1[item_idx_M]
