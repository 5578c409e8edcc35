"""Matrix factorisation: one vector a user, one vector an item (Koren, Bell and Volinsky 2009)."""

from __future__ import annotations

from torch import Tensor, nn

from schemas.features import FeatureTransform
from training.batch import Batch
from training.recipe import ModelSettings


class MatrixFactorisation(nn.Module):
    """Knows users by their id alone, so every user who is new shares the vector of the unseen."""

    def __init__(self, settings: ModelSettings, transform: FeatureTransform) -> None:
        super().__init__()
        self.user_vectors = nn.Embedding(transform.vocabularies["user"].size, settings.width)
        self.item_vectors = nn.Embedding(transform.vocabularies["item"].size, settings.width)
        for table in (self.user_vectors, self.item_vectors):
            nn.init.normal_(table.weight, std=0.1 / settings.width**0.5)

    @property
    def columns(self) -> tuple[str, ...]:
        return ("user_idx",)

    def users(self, batch: Batch) -> Tensor:
        vectors: Tensor = self.user_vectors(batch["user_idx"])
        return vectors

    def items(self, item_idx_M: Tensor) -> Tensor:
        vectors: Tensor = self.item_vectors(item_idx_M)
        return vectors
