"""Which task a recipe asks for, with the model that learns it."""

from __future__ import annotations

import torch
from torch import nn

from schemas.errors import UserError, nearest
from schemas.snapshot import Snapshot
from training.catalogue import Catalogue, read_catalogue
from training.models.build import build_model
from training.models.ranker import Ranker
from training.ranking import Ranking
from training.ranks import Ranks
from training.reader import open_part
from training.recipe import HeadsSettings, Recipe
from training.retrieval import Retrieval
from training.task import Task


def catalogue_of(snapshot: Snapshot) -> Catalogue | None:
    """The items, where the log has such."""
    return read_catalogue(snapshot) if snapshot.files("items") else None


def check_fits(snapshot: Snapshot, recipe: Recipe) -> None:
    """Raise UserError where the snapshot lacks what the recipe's task needs."""
    if isinstance(recipe.loss, HeadsSettings):
        _check_heads(snapshot, recipe.loss)
    elif not (snapshot.files("items") and snapshot.transform.history_length):
        raise UserError(f"{snapshot.url} has no users and items to learn from: train a ranker, such as dlrm, on it.")


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
    snapshot: Snapshot, catalogue: Catalogue | None, recipe: Recipe, ranks: Ranks, device: torch.device
) -> nn.Module:
    features = catalogue.features if catalogue is not None else {}
    return build_model(recipe, snapshot.transform, features, ranks=ranks, device=device)


def task_of(
    model: nn.Module, snapshot: Snapshot, catalogue: Catalogue | None, recipe: Recipe, ranks: Ranks,
    device: torch.device,
) -> Task:  # fmt: skip
    """The task of a model on a snapshot that fits it."""
    if isinstance(model, Ranker):
        available = frozenset(open_part(snapshot, "train").schema.names)
        return Ranking(model=model, recipe=recipe, ranks=ranks, available=available)
    assert catalogue is not None, "a retriever is trained on a log with items"
    return Retrieval(model=model, catalogue=catalogue, recipe=recipe, ranks=ranks, device=device)
