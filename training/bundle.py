"""Loading a bundle: a trained model with all that is needed to use it, and nothing of Spark, petastorm or Horovod."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from schemas.bundle import BUNDLE, BundleManifest
from schemas.errors import UserError
from schemas.settings import parse_model
from training.checkpoint import WEIGHTS, load_weights
from training.embeddings.files import load_tables
from training.models.build import build_model
from training.models.ranker import Ranker
from training.models.retriever import Retriever
from training.ranks import Ranks
from training.recipe import Recipe

ITEMS = "items.parquet"


@dataclass(frozen=True)
class Bundle:
    """`items` has item_idx, item_id, title and count, in the order of item_idx; empty where the log has no items."""

    model: nn.Module
    manifest: BundleManifest
    items: pa.Table

    @property
    def retriever(self) -> Retriever:
        """UserError for a model that ranks what others retrieve."""
        if isinstance(self.model, Ranker):
            name = self.recipe.model.name
            raise UserError(f"{name} is a ranker: it judges items that a retriever, such as two_tower, finds.")
        return cast(Retriever, self.model)

    @property
    def recipe(self) -> Recipe:
        return Recipe.model_validate(self.manifest.recipe)


def load_bundle(path: Path, ranks: Ranks | None = None) -> Bundle:
    """Load a bundle, ready to score; of large tables each of `ranks` holds its share. UserError where there is none."""
    try:
        content = json.loads((path / BUNDLE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is no bundle: it has no {BUNDLE}. Has `headrace train` come to its end?") from None
    manifest = parse_model(BundleManifest, content, where=f"{path / BUNDLE}")
    model = build_model(Recipe.model_validate(manifest.recipe), manifest.transform, ranks=ranks)
    load_weights(path / WEIGHTS, model)
    load_tables(path, model)
    model.eval()
    return Bundle(model, manifest, pq.read_table(path / ITEMS) if (path / ITEMS).exists() else pa.table({}))
