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


def fresh_model(
    snapshot: Snapshot, catalogue: Catalogue | None, recipe: Recipe, ranks: Ranks, device: torch.device
) -> nn.Module:
    features = catalogue.features if catalogue is not None else {}
    return build_model(recipe, snapshot.transform, features, ranks=ranks, device=device)


def task_of(
    model: nn.Module, snapshot: Snapshot, catalogue: Catalogue | None, recipe: Recipe, ranks: Ranks,
    device: torch.device,
) -> Task:  # fmt: skip
    """The task of a model; UserError where the snapshot lacks what it needs."""
    if isinstance(model, Ranker):
        available = frozenset(open_part(snapshot, "train").schema.names)
        assert isinstance(recipe.loss, HeadsSettings)
        labels = [*snapshot.manifest.contract.labels]
        for head in recipe.loss.heads:
            if head not in available:
                has = f"it has {', '.join(labels)}" if labels else "no column of its contract has the role label"
                raise UserError(f"{snapshot.url} has no label {head!r}{nearest(head, labels)}: {has}.")
        return Ranking(model=model, recipe=recipe, ranks=ranks, available=available)
    if catalogue is None or not snapshot.transform.history_length:
        raise UserError(f"{snapshot.url} has no users and items to learn from: train a ranker, such as dlrm, on it.")
    return Retrieval(model=model, catalogue=catalogue, recipe=recipe, ranks=ranks, device=device)
