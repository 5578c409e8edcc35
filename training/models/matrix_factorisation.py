"""Matrix factorisation: a vector for every user, a vector and a bias for every item (Koren et al. 2009)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.features import FeatureTransform
from training.batch import Batch
from training.recipe import ModelSettings

_SCALE = 0.05


class MatrixFactorisation(nn.Module):
    """Knows users by their id alone, so every user who is new shares the vector of the unseen."""

    def __init__(self, settings: ModelSettings, transform: FeatureTransform) -> None:
        super().__init__()
        self.user_vectors = nn.Embedding(transform.vocabularies["user"].size, settings.width)
        self.item_vectors = nn.Embedding(transform.vocabularies["item"].size, settings.width)
        self.item_bias = nn.Parameter(torch.zeros(transform.vocabularies["item"].size))
        for table in (self.user_vectors, self.item_vectors):
            nn.init.normal_(table.weight, std=_SCALE)

    @property
    def columns(self) -> tuple[str, ...]:
        return ("user_idx",)

    @property
    def row_features(self) -> dict[str, str]:
        return {"user_vectors.weight": "user_idx", "item_vectors.weight": "item_idx", "item_bias": "item_idx"}

    def users(self, batch: Batch) -> Tensor:
        user_BD = self.user_vectors(batch["user_idx"])
        return torch.cat([user_BD, user_BD.new_ones(user_BD.shape[0], 1)], dim=1)  # 1: the place of the item's bias

    def items(self, item_idx_M: Tensor) -> Tensor:
        return torch.cat([self.item_vectors(item_idx_M), self.item_bias[item_idx_M].unsqueeze(1)], dim=1)
