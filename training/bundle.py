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
from schemas.settings import digest_of, parse_model
from schemas.storage import filesystem, sha256_of
from training.checkpoint import WEIGHTS, load_weights
from training.embeddings.files import load_tables, table_files
from training.models.build import build_model
from training.models.image_classifier import ImageClassifier
from training.models.ranker import Ranker
from training.models.retriever import Retriever
from training.ranks import Ranks
from training.recipe import Recipe
from training.vocabularies import VOCABULARIES

ITEMS = "items.parquet"


def bundle_digest(path: Path) -> str:
    """SHA-256 over the names and contents of its files: what a bundle is, wherever it lies.

    What others have put beside them, as MLflow does where it fetches one, does not count.
    """
    fs, root = filesystem(str(path))
    own = (path / BUNDLE, path / WEIGHTS, path / ITEMS, *table_files(path), *(path / VOCABULARIES).glob("*.parquet"))
    files = [file.relative_to(path).as_posix() for file in own if file.is_file()]
    return digest_of({file: sha256_of(fs, f"{root}/{file}") for file in files})


@dataclass(frozen=True)
class Bundle:
    """`items` has item_idx, item_id, title and count, in the order of item_idx; empty where the log has no items."""

    model: nn.Module
    manifest: BundleManifest
    items: pa.Table

    @property
    def retriever(self) -> Retriever:
        """UserError for a model that ranks what others retrieve."""
        if isinstance(self.model, ImageClassifier):
            raise UserError(f"{self.recipe.model.name} tells what is in an image: it knows no users and no items.")
        if isinstance(self.model, Ranker):
            name = self.recipe.model.name
            raise UserError(f"{name} is a ranker: it judges items that a retriever, such as two_tower, finds.")
        return cast(Retriever, self.model)

    @property
    def recipe(self) -> Recipe:
        return Recipe.model_validate(self.manifest.recipe)


def bundle_of(path: Path) -> Path:
    """The bundle of a run's folder, or the folder itself where it is a bundle."""
    return path if (path / BUNDLE).exists() else path / "bundle"


def read_manifest(path: Path) -> BundleManifest:
    """UserError where there is no bundle."""
    try:
        content = json.loads((path / BUNDLE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is no bundle: it has no {BUNDLE}. Has `headrace train` come to its end?") from None
    return parse_model(BundleManifest, content, where=f"{path / BUNDLE}")


def load_bundle(path: Path, ranks: Ranks | None = None) -> Bundle:
    """Load a bundle, ready to score; of large tables each of `ranks` holds its share. UserError where there is none."""
    manifest = read_manifest(path)
    recipe = Recipe.model_validate(manifest.recipe)
    model = build_model(recipe, manifest.transform, vector_width=manifest.vector_width, ranks=ranks)
    load_weights(path / WEIGHTS, model)
    load_tables(path, model)
    model.eval()
    return Bundle(model, manifest, read_items(path))


def read_items(path: Path) -> pa.Table:
    return pq.read_table(path / ITEMS) if (path / ITEMS).exists() else pa.table({})
