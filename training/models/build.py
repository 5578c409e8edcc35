"""From a recipe's settings to a model; sizes come from the snapshot's vocabularies, nothing is typed twice."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.errors import UserError
from schemas.features import FeatureTransform
from training.models.matrix_factorisation import MatrixFactorisation
from training.models.sasrec import SASRec
from training.models.two_tower import TwoTower
from training.recipe import ModelSettings


def build_model(
    settings: ModelSettings, transform: FeatureTransform, item_features: dict[str, Tensor] | None = None
) -> nn.Module:
    """A fresh model; without `item_features` it waits for saved weights, which hold them.

    Raises UserError where the settings and the snapshot do not go together.
    """
    if settings.recent > transform.history_length:
        raise UserError(
            f"model.recent is {settings.recent}, but the snapshot's histories are {transform.history_length} long: "
            "lower it, or prepare with a larger --history-length."
        )
    if settings.name == "two_tower":
        return TwoTower(settings, transform, item_features or _blank_item_features(transform))
    if settings.name == "matrix_factorisation":
        return MatrixFactorisation(settings, transform)
    if settings.width % settings.heads:
        raise UserError(f"model.width {settings.width} is no multiple of model.heads {settings.heads}.")
    return SASRec(settings, transform)


def _blank_item_features(transform: FeatureTransform) -> dict[str, Tensor]:
    blank = {}
    rows = transform.vocabularies["item"].size
    for feature in transform.of("items"):
        if feature.name == "item_idx":
            continue
        length = transform.lengths.get(feature.name)
        shape = (rows,) if length is None else (rows, length)
        dtype = torch.float32 if feature.dtype == "float32" else torch.int32
        blank[feature.name] = torch.zeros(shape, dtype=dtype)
    return blank
