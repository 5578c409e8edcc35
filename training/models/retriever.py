"""What every model here is: a tower for users and one for items, whose dot product is the score.

Legend: B rows of a batch, D embedding width, L history length, M items asked for, N items of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from schemas.features import (
    PADDING_IDX,
    Feature,
    FeatureTransform,
)
from training.batch import Batch


class Retriever(Protocol):
    """Called by the loop, the evaluation and serving alike."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that `users` reads from a batch."""

    @property
    def row_features(self) -> dict[str, str]:
        """Parameters that have a row for each value of a feature, with that feature."""

    def users(self, batch: Batch) -> Tensor:
        """Shape (B, D)."""

    def items(self, item_idx_M: Tensor) -> Tensor:
        """Shape (M, D); item_idx are rows of the item vocabulary."""


class FeatureEmbedding(nn.Module):
    """Sums the embeddings of features into one vector: a bag of what is known of a user or an item."""

    def __init__(self, features: Sequence[Feature], transform: FeatureTransform, width: int) -> None:
        super().__init__()
        self.categorical = [f for f in features if f.dtype == "int32"]
        self.numeric = [f for f in features if f.dtype == "float32"]
        self.tables = nn.ModuleDict(
            {f.name: nn.Embedding(transform.size(f), width, padding_idx=PADDING_IDX) for f in self.categorical}
        )
        self.numbers = nn.Linear(len(self.numeric), width, bias=False) if self.numeric else None

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in (*self.categorical, *self.numeric))

    def forward(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Columns of shape (B,) or (B, length); gives (B, D). Lists count by the mean of their values."""
        parts = []
        for feature in self.categorical:
            index = columns[feature.name]
            vectors = self.tables[feature.name](index)
            parts.append(mean_over_list(vectors, index) if index.dim() == 2 else vectors)
        if self.numbers is not None:
            parts.append(self.numbers(torch.stack([columns[feature.name] for feature in self.numeric], dim=1)))
        return torch.stack(parts).sum(0)


def mean_over_list(vectors_BLD: Tensor, index_BL: Tensor) -> Tensor:
    """Mean over the entries of each list that are not padding (0); zeros for an empty list."""
    held_BL1 = (index_BL != PADDING_IDX).unsqueeze(-1).to(vectors_BLD.dtype)
    return (vectors_BLD * held_BL1).sum(1) / held_BL1.sum(1).clamp(min=1)
