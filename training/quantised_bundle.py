"""A ranker with smaller tables on disk: loaded for inference as a bundle is, and never larger in memory than on disk.

bundle.json          as in the bundle that it was made from
model.safetensors    all weights; tables as codes, beside int8 a scale a row; its metadata say which precision
items.parquet        where the log has items
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from schemas.bundle import BUNDLE
from schemas.errors import UserError
from training.bundle import ITEMS, Bundle, read_items, read_manifest
from training.checkpoint import WEIGHTS
from training.embeddings.quantised import PRECISIONS, Precision, QuantisedTables
from training.models.build import blank_item_features, build_ranker
from training.models.ranker import Ranker
from training.ranks import OneRank
from training.recipe import RankerSettings, Recipe

_PRECISION = "tables"


def with_tables(model: Ranker, tables: QuantisedTables) -> Ranker:
    """The same model, all else shared, with other tables."""
    other = copy.copy(model)
    other.__dict__["_modules"] = {**model._modules, "embeddings": tables}
    return other.eval()


def save_quantised(folder: Path, model: Ranker, precision: Precision, bundle: Path) -> None:
    """Write a model that `with_tables` made, beside what its bundle says of it."""
    folder.mkdir()
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={_PRECISION: precision})
    for name in (BUNDLE, ITEMS):
        if (bundle / name).exists():
            shutil.copyfile(bundle / name, folder / name)


def load_quantised(path: Path) -> Bundle:
    """Load what `save_quantised` wrote, ready to score; UserError where there is none."""
    manifest = read_manifest(path)
    recipe = Recipe.model_validate(manifest.recipe)
    with safe_open(path / WEIGHTS, framework="pt") as file:
        precision = (file.metadata() or {}).get(_PRECISION)
    if precision not in PRECISIONS or not isinstance(recipe.model, RankerSettings):
        raise UserError(f"{path} is no ranker with quantised tables: load it as a bundle.")
    # Its own tables take no memory: they are never filled.
    model = build_ranker(
        recipe,
        manifest.transform,
        blank_item_features(manifest.transform),
        ranks=OneRank(),
        device=torch.device("meta"),
        vector_width=manifest.vector_width,
    )
    model = with_tables(model, QuantisedTables.blank(model.embeddings, cast(Precision, precision)))
    model.load_state_dict(load_file(path / WEIGHTS), assign=True)
    return Bundle(model, manifest, read_items(path))
