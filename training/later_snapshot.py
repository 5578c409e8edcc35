"""A model of one generation judged on the snapshot of a later one, whose vocabularies, moments and edges are others.

The rows stay as the later snapshot has them: its items, its users, what they have seen, the groups and slices of its
metrics. Only what the model reads is put into the encoding that it was trained on. So both generations answer the same
question, and what the earlier one does not know counts against it.

Legend: B rows of a batch, D embedding width, M items asked for, V items of the later vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from schemas.errors import UserError
from schemas.features import UNSEEN_IDX
from schemas.snapshot import Snapshot
from training.batch import Batch
from training.bundle import Bundle
from training.models.image_classifier import ImageClassifier
from training.models.ranker import Ranker
from training.models.retriever import Retriever
from training.ranking import Ranking
from training.ranks import Ranks
from training.reader import open_part
from training.retrieval import Retrieval
from training.task import Task
from training.tasks import catalogue_of, check_judges, task_of
from training.translation import Translate, index_table, translated
from training.vocabularies import Renumbering, read_vocabulary, vocabulary_of_bundle

LOWEST = -1e30
"""The score of an item that the model does not know: below all that a model gives, and a finite number."""


def task_on(bundle: Bundle, path: Path, later: Snapshot, ranks: Ranks, device: torch.device) -> tuple[Task, list[str]]:
    """The bundle's task on a later snapshot, and notes on what is approximate.

    `path` is the bundle's. On the very snapshot that it was trained on nothing is changed. UserError where a feature
    cannot be translated.
    """
    if isinstance(bundle.model, ImageClassifier):
        raise UserError(f"--snapshot: {bundle.recipe.model.name} is judged on its own snapshot: leave it out.")
    check_judges(later, bundle.recipe)
    catalogue = catalogue_of(later)
    task = task_of(bundle.model.to(device), later, catalogue, bundle.recipe, ranks, device)
    if bundle.manifest.snapshot.digest == later.manifest.digest():
        return task, []
    renumber = partial(_renumbering, path=path, bundle=bundle, later=later)
    if isinstance(task, Ranking):
        read = [name for name in task.model.columns if name in task.available]
        changes, notes = _translations(read, bundle, later, cache(renumber))
        _refuse_missing({*task.model.columns} - {*read}, bundle, later)
        return replace(task, model=_TranslatedRanker(task.model, changes)), notes  # type: ignore[arg-type]
    assert isinstance(task, Retrieval)
    read = list(task.retriever.columns)
    lacking = {*read} - {*open_part(later, "test").schema.names}
    _refuse_missing(lacking, bundle, later)
    changes, notes = _translations(read, bundle, later, cache(renumber))
    item_V = index_table(renumber("item", "item")).to(device)
    return replace(task, model=_TranslatedRetriever(task.retriever, changes, item_V)), notes


def _translations(
    names: list[str], bundle: Bundle, later: Snapshot, renumber: Callable[[str, str], Renumbering]
) -> tuple[dict[str, Translate], list[str]]:
    there = {feature.name: feature for feature in later.transform.features}
    here = {feature.name: feature for feature in bundle.manifest.transform.features}
    _refuse_missing({*names} - {*there}, bundle, later)
    changes, notes = {}, []
    for name in names:
        changes[name], said = translated(there[name], here[name], renumber)
        notes += said
    return changes, notes


def _refuse_missing(names: set[str], bundle: Bundle, later: Snapshot) -> None:
    """What the model reads of its items it may have with its weights."""
    with_weights = {name.removeprefix("item_feature_") for name, _ in bundle.model.named_buffers()}
    if missing := sorted(names - with_weights):
        raise UserError(
            f"{later.url} has no {', '.join(missing)}, which {bundle.recipe.model.name} was trained on: prepare it "
            "with the same feature set."
        )


def _renumbering(there: str, here: str, *, path: Path, bundle: Bundle, later: Snapshot) -> Renumbering:
    """From the later vocabulary's rows to those of the bundle's."""
    sizes = later.transform.vocabularies[there].size, bundle.manifest.transform.vocabularies[here].size
    before = vocabulary_of_bundle(path, bundle.manifest, here, otherwise="judge it on its own snapshot")
    return Renumbering.of(read_vocabulary(later, there), before, old_rows=sizes[0], new_rows=sizes[1])


def _translate(batch: Batch, changes: Mapping[str, Translate]) -> Batch:
    columns = {name: change(batch[name]) for name, change in changes.items()}
    return replace(batch, columns={**batch.columns, **columns})


class _TranslatedRanker(nn.Module):
    """A ranker as its task sees it."""

    def __init__(self, model: Ranker, changes: Mapping[str, Translate]) -> None:
        super().__init__()
        self.model, self._changes = model, changes

    @property
    def columns(self) -> tuple[str, ...]:
        return self.model.columns

    def forward(self, batch: Batch) -> Tensor:
        logits_BT: Tensor = self.model(_translate(batch, self._changes))
        return logits_BT


class _TranslatedRetriever(nn.Module):
    """A retriever that is asked for items of the later vocabulary; those it does not know score lowest."""

    def __init__(self, model: Retriever, changes: Mapping[str, Translate], item_V: Tensor) -> None:
        super().__init__()
        self.model, self._changes, self._item_V = model, changes, item_V
        self._all_known = bool((item_V != UNSEEN_IDX).sum() == len(item_V) - 1)  # the reserved row itself

    @property
    def columns(self) -> tuple[str, ...]:
        return self.model.columns

    @property
    def row_features(self) -> dict[str, str]:
        return self.model.row_features

    def users(self, batch: Batch) -> Tensor:
        users_BD = self.model.users(_translate(batch, self._changes))
        return users_BD if self._all_known else torch.cat([users_BD, users_BD.new_ones(len(users_BD), 1)], dim=1)

    def items(self, item_idx_M: Tensor) -> Tensor:
        known_M = self._item_V[item_idx_M].long()
        items_MD = self.model.items(known_M)
        if self._all_known:
            return items_MD
        penalty_M1 = (known_M == UNSEEN_IDX).to(items_MD.dtype).unsqueeze(1) * LOWEST
        return torch.cat([items_MD, penalty_M1], dim=1)
