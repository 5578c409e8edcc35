"""Which task a recipe asks for, with the model that learns it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from schemas.errors import UserError, nearest
from schemas.snapshot import Snapshot
from training.catalogue import Catalogue, read_catalogue
from training.classification import Classification
from training.models.build import build_model
from training.models.image_classifier import ImageClassifier
from training.models.item_vectors import ItemVectors
from training.models.published_weights import load_published
from training.models.ranker import Ranker
from training.models.two_tower import TwoTower
from training.ranking import Ranking
from training.ranks import Ranks
from training.reader import open_part
from training.recipe import ClassifierSettings, HeadsSettings, Recipe
from training.retrieval import Retrieval
from training.task import Task
from training.vector_files import GivenVectors, VectorFiles

TAKE_VECTORS = ("dlrm", "dcn_v2", "two_tower")
"""Models that learn from given vectors of items."""


def catalogue_of(snapshot: Snapshot) -> Catalogue | None:
    """The items, where the log has such."""
    return read_catalogue(snapshot) if snapshot.files("items") else None


def check_fits(snapshot: Snapshot, recipe: Recipe) -> None:
    """Raise UserError where the snapshot lacks what the recipe's task needs, to learn or to be judged."""
    check_judges(snapshot, recipe)
    _check_levers(snapshot, recipe)


def check_judges(snapshot: Snapshot, recipe: Recipe) -> None:
    """Raise UserError where the snapshot cannot tell how good a model of this recipe is."""
    if isinstance(recipe.model, ClassifierSettings) != (snapshot.manifest.images is not None):
        has, takes = ("no images", "a retriever or a ranker") if snapshot.manifest.images is None else (
            "images", "image_classifier"
        )  # fmt: skip
        raise UserError(f"{snapshot.url} has {has}: train {takes} on it, not {recipe.model.name}.")
    if isinstance(recipe.model, ClassifierSettings):
        return
    if isinstance(recipe.loss, HeadsSettings):
        _check_heads(snapshot, recipe.loss)
    elif not (snapshot.files("items") and snapshot.transform.history_length):
        raise UserError(f"{snapshot.url} has no users and items to learn from: train a ranker, such as dlrm, on it.")


def _check_levers(snapshot: Snapshot, recipe: Recipe) -> None:
    has = {role: bool(snapshot.manifest.contract.events.with_role(role)) for role in ("propensity", "label")}
    if getattr(recipe.loss, "propensity", None) is not None and not has["propensity"]:
        raise UserError(
            f"loss.propensity: {snapshot.url} says of no row with what probability its item was shown: log it in a "
            "column with the role propensity, as `headrace feedback` does, or leave this out."
        )
    if getattr(recipe.loss, "negative_rows", None) is not None and not has["label"]:
        raise UserError(
            f"loss.negative_rows: {snapshot.url} says of no row what came of it: no column of its contract has the "
            "role label. Leave this out."
        )


def find_vectors(url: str | None, snapshot: Snapshot, recipe: Recipe, ranks: Ranks) -> VectorFiles | None:
    """Files of vectors of items, where some were given; UserError where there is no model, or no item, to have them."""
    if url is None:
        return None
    if recipe.model.name not in TAKE_VECTORS:
        raise UserError(
            f"--item-vectors: {recipe.model.name} takes none: train a recipe of {', '.join(TAKE_VECTORS)}, or leave it "
            "out."
        )
    if not snapshot.files("items"):
        raise UserError(f"--item-vectors: {snapshot.url} has no items that could have vectors: leave it out.")
    return VectorFiles.find(url, ranks)


def _check_heads(snapshot: Snapshot, settings: HeadsSettings) -> None:
    labels = snapshot.manifest.contract.labels
    for head in settings.heads:
        if head not in labels:
            has = f"it has {', '.join(labels)}" if labels else "no column of its contract has the role label"
            raise UserError(f"{snapshot.url} has no label {head!r}{nearest(head, labels)}: {has}.")
        column = labels[head]
        if column.type != "boolean" and not (column.one_of and {*column.one_of} <= {"0", "1"}):
            raise UserError(
                f"{snapshot.url}: the label {head!r} is {column.name!r}, which its contract allows other values than 0 "
                "and 1. A ranker learns yes or no: log a column that says so, with `one_of: ['0', '1']`."
            )


def fresh_model(
    snapshot: Snapshot,
    catalogue: Catalogue | None,
    recipe: Recipe,
    ranks: Ranks,
    device: torch.device,
    vectors: GivenVectors | None = None,
) -> nn.Module:
    features = catalogue.features if catalogue is not None else {}
    width = vectors.width if vectors is not None else 0
    model = build_model(recipe, snapshot.transform, features, vector_width=width, ranks=ranks, device=device)
    if isinstance(model, TwoTower) and model.item_prior is not None:
        assert catalogue is not None
        model.fill_prior(catalogue.counts)
    if vectors is not None:
        given = model.get_submodule("item_vectors")
        assert isinstance(given, ItemVectors)
        given.fill(vectors.vectors, vectors.has_vector)
    if isinstance(model, ImageClassifier) and model.settings.pretrained is not None:
        path = Path(model.settings.pretrained)
        blind = int(ranks.sum(torch.tensor([0 if path.exists() else 1]), "ranks_without_weights"))
        if blind and path.exists():  # a rank without says what is missing, but only rank 0 is heard
            raise UserError(f"model.pretrained: {blind} rank(s) do not see {path}: put it where all hosts find it.")
        load_published(model.network, path)
    return model


def fresh_task(
    snapshot: Snapshot, recipe: Recipe, ranks: Ranks, device: torch.device, *, item_vectors: str | None = None
) -> Task:
    """The task of a fresh model, with vectors of items where some were given; UserError where they do not fit."""
    check_fits(snapshot, recipe)
    files, catalogue = find_vectors(item_vectors, snapshot, recipe, ranks), catalogue_of(snapshot)
    vectors = files.read(catalogue) if files is not None and catalogue is not None else None
    model = fresh_model(snapshot, catalogue, recipe, ranks, device, vectors)
    return task_of(model, snapshot, catalogue, recipe, ranks, device)


def task_of(
    model: nn.Module, snapshot: Snapshot, catalogue: Catalogue | None, recipe: Recipe, ranks: Ranks,
    device: torch.device,
) -> Task:  # fmt: skip
    """The task of a model on a snapshot that fits it."""
    if isinstance(model, Ranker):
        available = frozenset(open_part(snapshot, "train").schema.names)
        return Ranking(model=model, recipe=recipe, ranks=ranks, available=available)
    if isinstance(model, ImageClassifier):
        assert snapshot.manifest.images is not None, "a classifier is trained on images"
        return Classification(model=model, recipe=recipe, ranks=ranks, images=snapshot.manifest.images)
    assert catalogue is not None, "a retriever is trained on a log with items"
    return Retrieval(model=model, snapshot=snapshot, catalogue=catalogue, recipe=recipe, ranks=ranks, device=device)
