"""From a recipe's settings to a model; sizes come from the snapshot's vocabularies, nothing is typed twice."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from schemas.errors import UserError
from schemas.features import NUM_RESERVED, FeatureTransform
from training.models.dcn_v2 import DCNv2
from training.models.dlrm import DLRM
from training.models.image_classifier import ImageClassifier
from training.models.matrix_factorisation import MatrixFactorisation
from training.models.ranker import Ranker
from training.models.sasrec import SASRec
from training.models.two_tower import TwoTower
from training.ranks import OneRank, Ranks
from training.recipe import ClassifierSettings, HeadsSettings, ModelSettings, RankerSettings, Recipe


def build_model(
    recipe: Recipe,
    transform: FeatureTransform,
    item_features: dict[str, Tensor] | None = None,
    *,
    vector_width: int = 0,
    ranks: Ranks | None = None,
    device: torch.device | None = None,
) -> nn.Module:
    """A fresh model; without `item_features` it waits for saved weights, which hold them.

    Where `vector_width` is not 0 it has a table for vectors of items with so many numbers, to be filled. Raises
    UserError where the settings and the snapshot do not go together.
    """
    device = device or torch.device("cpu")
    torch.manual_seed(recipe.seed)
    if isinstance(recipe.model, ClassifierSettings):
        return ImageClassifier(recipe.model, transform.vocabularies["class"].size - NUM_RESERVED).to(device)
    features = item_features if item_features is not None else blank_item_features(transform)
    if isinstance(recipe.model, RankerSettings):
        ranker = build_ranker(
            recipe, transform, features, ranks=ranks or OneRank(), device=device, vector_width=vector_width
        )
        return ranker.to(device)
    return build_retriever(recipe.model, transform, features, vector_width=vector_width).to(device)


def build_ranker(
    recipe: Recipe, transform: FeatureTransform, item_features: Mapping[str, Tensor], *, ranks: Ranks,
    device: torch.device, vector_width: int = 0,
) -> Ranker:  # fmt: skip
    assert isinstance(recipe.model, RankerSettings)
    assert isinstance(recipe.loss, HeadsSettings)
    kind = {"dlrm": DLRM, "dcn_v2": DCNv2}[recipe.model.name]
    return kind(
        recipe.model,
        transform,
        item_features,
        heads=len(recipe.loss.heads),
        ranks=ranks,
        batch_size=recipe.batch_size_per_rank,
        seed=recipe.seed,
        device=device,
        vector_width=vector_width,
    )


def build_retriever(
    settings: ModelSettings, transform: FeatureTransform, item_features: dict[str, Tensor], *, vector_width: int = 0
) -> nn.Module:
    if settings.recent > transform.history_length:
        raise UserError(
            f"model.recent is {settings.recent}, but the snapshot's histories are {transform.history_length} long: "
            "lower it, or prepare with a larger --history-length."
        )
    if settings.name == "two_tower":
        return TwoTower(settings, transform, item_features, vector_width=vector_width)
    assert not vector_width, "the other retrievers take no vectors of items"
    if settings.name == "matrix_factorisation":
        return MatrixFactorisation(settings, transform)
    if settings.width % settings.heads:
        raise UserError(f"model.width {settings.width} is no multiple of model.heads {settings.heads}.")
    return SASRec(settings, transform)


def blank_item_features(transform: FeatureTransform) -> dict[str, Tensor]:
    blank = {}
    for feature in transform.of("items"):
        if feature.name == "item_idx":
            continue
        length = transform.lengths.get(feature.name)
        rows = transform.vocabularies["item"].size
        shape = (rows,) if length is None else (rows, length)
        dtype = torch.float32 if feature.dtype == "float32" else torch.int32
        blank[feature.name] = torch.zeros(shape, dtype=dtype)
    return blank
