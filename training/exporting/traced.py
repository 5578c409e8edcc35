"""What is exported: columns in, by name and in a fixed order, probabilities or vectors out.

Legend: B rows of a batch, T heads, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from schemas.bundle import BundleManifest
from schemas.export import Tensor as TensorOf
from schemas.features import FeatureTransform
from training.batch import Batch
from training.models.ranker import Ranker
from training.models.retriever import Retriever
from training.recipe import HeadsSettings, Recipe


@dataclass(frozen=True)
class Traced:
    """A module that takes the inputs as keywords and gives one tensor an output, with the names of either."""

    name: str
    module: nn.Module
    inputs: tuple[TensorOf, ...]
    outputs: tuple[TensorOf, ...]


class Probabilities(nn.Module):
    """A ranker's probabilities, one tensor of shape (B,) a head."""

    def __init__(self, ranker: nn.Module) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, columns: dict[str, Tensor]) -> tuple[Tensor, ...]:
        probability_BT = self.ranker(as_batch(columns)).sigmoid()
        return tuple(probability_BT.unbind(1))


class UserTower(nn.Module):
    """A retriever's vectors of users, shape (B, D): the score of an item is the dot product with its vector."""

    def __init__(self, retriever: nn.Module) -> None:
        super().__init__()
        self.retriever = retriever

    def forward(self, columns: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return (self.retriever.users(as_batch(columns)),)  # type: ignore[operator]


def as_batch(columns: dict[str, Tensor]) -> Batch:
    rows = next(iter(columns.values())).shape[0]
    return Batch(columns=columns, positions=torch.arange(rows), global_rows=rows, step=0)


def traced(model: nn.Module, manifest: BundleManifest) -> Traced:
    """The part of a bundle's model that is asked per request."""
    recipe = Recipe.model_validate(manifest.recipe)
    if isinstance(model, Ranker):
        assert isinstance(recipe.loss, HeadsSettings)
        outputs = tuple(TensorOf(name=head, dtype="float32", shape=("batch",)) for head in recipe.loss.heads)
        return Traced(
            "ranker",
            Probabilities(model).eval(),
            inputs_of(ranker_columns(model, manifest), manifest.transform),
            outputs,
        )
    retriever: Retriever = model  # type: ignore[assignment]
    with torch.no_grad():
        width = retriever.items(torch.zeros(1, dtype=torch.int64)).shape[1]
    user = TensorOf(name="user", dtype="float32", shape=("batch", width))
    return Traced("users", UserTower(model).eval(), inputs_of(retriever.columns, manifest.transform), (user,))


def ranker_columns(model: Ranker, manifest: BundleManifest) -> tuple[str, ...]:
    """What a request must hold. Features of items come from the model's own table, as they did in training, unless the
    log's items change over time: then the caller knows which version is meant."""
    items = manifest.contract.items
    if items is not None and items.with_role("valid_from"):
        return model.columns
    kept = {name.removeprefix("item_feature_") for name, _ in model.named_buffers() if name.startswith("item_feature_")}
    return tuple(name for name in model.columns if name not in kept)


def inputs_of(columns: tuple[str, ...], transform: FeatureTransform) -> tuple[TensorOf, ...]:
    features = {feature.name: feature for feature in transform.features}
    return tuple(
        TensorOf(
            name=name,
            dtype=features[name].dtype,
            shape=("batch", transform.lengths[name]) if name in transform.lengths else ("batch",),
        )
        for name in columns
    )
