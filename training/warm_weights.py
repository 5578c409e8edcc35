"""Weights of an earlier generation's model, taken over by name where they still mean the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from schemas.errors import SnapshotDamaged
from schemas.features import FeatureTransform
from training.checkpoint import WEIGHTS
from training.embeddings.files import tables_of
from training.recipe import HeadsSettings, Recipe
from training.vocabularies import Renumbering

Generation = tuple[Recipe, FeatureTransform]
_HEADS = ("heads.weight", "heads.bias")


@torch.no_grad()
def fill_weights(
    model: nn.Module,
    bundle: Path,
    *,
    rows: Mapping[str, Renumbering | None],
    old: Generation,
    new: Generation,
) -> list[str]:
    """Fill every parameter but those of EmbeddingTables; give a line for each that begins anew, with the reason.

    `rows` are parameters with a row a value. Buffers are the new snapshot's and stay.
    """
    notes = []
    of_tables = {id(tables.weight) for tables in tables_of(model)}
    changed = _features_that_changed(old, new)
    with safe_open(bundle / WEIGHTS, framework="pt") as file:
        known = {*file.keys()}
        for name, parameter in model.named_parameters():
            if id(parameter) in of_tables:
                continue
            reason = "the earlier model has no such weights"
            if name in known:
                found = file.get_tensor(name).to(parameter.device)
                if name in rows:
                    _fill_rows(parameter, found, rows[name], f"{bundle}: {name}")
                    continue
                reason = _why_not(name, changed) or _fill(name, parameter, found, old[0], new[0])
            if reason:
                notes.append(f"{name} begins anew: {reason}")
    return notes


def _fill_rows(parameter: Tensor, old: Tensor, rows: Renumbering | None, where: str) -> None:
    if rows is None:
        return
    if old.shape[1:] != parameter.shape[1:] or len(old) != len(rows.new_of_old):
        raise SnapshotDamaged(f"{where} has the shape {tuple(old.shape)}, its features make another.")
    place = torch.from_numpy(rows.new_of_old).to(parameter.device)
    parameter[place[place >= 0]] = old[place >= 0]


def _fill(name: str, parameter: Tensor, found: Tensor, old: Recipe, new: Recipe) -> str:
    """Take dense weights over, those of heads by the label's name; or say why not."""
    places: Sequence[tuple[int, int]] = ()
    if name in _HEADS and isinstance(old.loss, HeadsSettings) and isinstance(new.loss, HeadsSettings):
        before = {head: place for place, head in enumerate(old.loss.heads)}
        places = [(place, before[head]) for place, head in enumerate(new.loss.heads) if head in before]
    compared = slice(1, None) if name in _HEADS else slice(None)
    if parameter.shape[compared] != found.shape[compared]:
        return f"its shape was {tuple(found.shape)} and is {tuple(parameter.shape)}"
    if name not in _HEADS:
        parameter.copy_(found)
        return ""
    for new_place, old_place in places:
        parameter[new_place] = found[old_place]
    return "" if len(places) == len(parameter) else f"in {len(parameter) - len(places)} of its heads, which are new"


def _why_not(name: str, changed: Mapping[str, str]) -> str:
    return next((reason for prefix, reason in changed.items() if name.startswith(prefix)), "")


def _features_that_changed(old: Generation, new: Generation) -> dict[str, str]:
    """Weights, by how their names begin, that meet other features than they learned with, though of the same number."""
    changed = {}
    if isinstance(new[0].loss, HeadsSettings):
        # A ranker's layers know features by their place.
        before, after = (_names(transform, "int32") + _names(transform, "float32") for _, transform in (old, new))
        if before != after:
            differing = sorted({*before} ^ {*after}) or ["their order"]
            changed[""] = f"the features have changed ({', '.join(differing[:5])}), which it knows by their place"
        return changed
    for bag, owners in (("about_item.numbers", ("items",)), ("about_user.numbers", ("users", "events"))):
        if _names(old[1], "float32", *owners) != _names(new[1], "float32", *owners):
            changed[bag] = "the features that are numbers have changed"
    return changed


def _names(transform: FeatureTransform, dtype: str, *owners: str) -> list[str]:
    return [
        feature.name
        for feature in transform.features
        if feature.dtype == dtype and feature.kind != "gaps" and (not owners or feature.owner in owners)
    ]
