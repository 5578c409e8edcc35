"""What every ranker is: a row's features in, one logit a head out.

Legend: B rows of a batch, F features that are vectors (indices, and the given one of the item), D embedding width,
N numbers, T heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from schemas.errors import UserError
from schemas.features import Feature, FeatureTransform
from training.batch import Batch
from training.embeddings.placement import Placement, place_tables
from training.embeddings.tables import EmbeddingTables
from training.models.item_vectors import ItemVectors
from training.ranks import Ranks
from training.recipe import RankerSettings


class Ranker(nn.Module):
    """The inputs of a ranker; what is made of them is its subclass's `logits`.

    A batch has what is known of user and event. Where it lacks features of its item, as a log whose items do not
    change over time leaves them out, they come from the table of items, which is kept with the weights.
    """

    def __init__(
        self,
        settings: RankerSettings,
        transform: FeatureTransform,
        item_features: Mapping[str, Tensor],
        *,
        ranks: Ranks,
        batch_size: int,
        seed: int,
        device: torch.device,
        vector_width: int = 0,
    ) -> None:
        super().__init__()
        self.settings = settings
        known = [feature for feature in transform.features if feature.kind != "gaps"]
        self.indices = tuple(feature.name for feature in known if feature.dtype == "int32")
        self.numbers = tuple(feature.name for feature in known if feature.dtype == "float32")
        if not known:
            raise UserError(f"{settings.name} has nothing to learn from: the snapshot has no features.")
        for name, values in item_features.items():
            self.register_buffer(f"item_feature_{name}", values)
        features = {feature.name: feature for feature in known}
        tables = {name: table_of(features[name]) for name in self.indices}
        self.embeddings = EmbeddingTables(
            tables,
            settings.width,
            placement(tables, transform, settings, batch_size=batch_size, world_size=ranks.size),
            ranks,
            seed=seed,
            device=device,
        )
        self.item_vectors: ItemVectors | None = None
        if vector_width:
            assert "item_idx" in self.indices, "a row without an item has no vector of one"
            self.item_vectors = ItemVectors(transform.vocabularies["item"].size, vector_width, settings.width)

    @property
    def num_vectors(self) -> int:
        """F."""
        return len(self.indices) + (self.item_vectors is not None)

    @property
    def columns(self) -> tuple[str, ...]:
        """All that can be read from a batch; features of items may be missing there."""
        return (*self.indices, *self.numbers)

    def forward(self, batch: Batch) -> Tensor:
        """Logits, shape (B, T)."""
        numbers_BN = None
        if self.numbers:
            numbers_BN = torch.stack([self._column(batch, name) for name in self.numbers], dim=1)
        if self.indices:
            vectors_BFD = self.embeddings({name: self._column(batch, name) for name in self.indices})
        else:
            assert numbers_BN is not None
            vectors_BFD = numbers_BN.new_zeros(numbers_BN.shape[0], 0, self.settings.width)
        if self.item_vectors is not None:
            given_BD = self.item_vectors(batch["item_idx"].long())
            vectors_BFD = torch.cat([vectors_BFD, given_BD.unsqueeze(1)], dim=1)
        return self.logits(vectors_BFD, numbers_BN)

    def logits(self, vectors_BFD: Tensor, numbers_BN: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _column(self, batch: Batch, name: str) -> Tensor:
        if name in batch.columns:
            return batch[name]
        return self.get_buffer(f"item_feature_{name}")[batch["item_idx"].long()]


def table_of(feature: Feature) -> str:
    """Features of one vocabulary share a table: an item is the same item as candidate and in a history."""
    vocabulary: str | None = getattr(feature, "vocabulary", None)
    return feature.name if vocabulary is None else f"vocab/{vocabulary}"  # as the snapshot's folder is called


def placement(
    tables: Mapping[str, str],
    transform: FeatureTransform,
    settings: RankerSettings,
    *,
    batch_size: int,
    world_size: int,
) -> Placement:
    """Where the tables of these features lie when a rank's batch has so many rows."""
    features = {feature.name: feature for feature in transform.features}
    rows: dict[str, int] = {}
    ids: dict[str, int] = {}
    for name, table in tables.items():
        rows[table] = transform.size(features[name])
        ids[table] = ids.get(table, 0) + batch_size * transform.lengths.get(name, 1)
    return place_tables(rows, width=settings.width, ids_per_step=ids, world_size=world_size, policy=settings.tables)


def layers(sizes: Sequence[int], *, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers from one size to the next, each followed by a ReLU."""
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
        parts += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*parts)
