"""Warm start: a new generation begins with what an earlier one has learned, though its vocabularies have changed.

Rows of tables are found again by the value that they stand for: new values begin as fresh rows, those of values that
are gone are left behind, the reserved ones (padding, null, unseen) stay. Hashes are matched where they hash the same
columns into as many buckets, and intervals of a number by place where they are as many, for their edges are quantiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from schemas.bundle import BUNDLE, BundleManifest
from schemas.errors import UserError
from schemas.features import BucketFeature, Feature, HashFeature, TokensFeature
from schemas.snapshot import Snapshot
from training.bundle import bundle_digest, read_manifest
from training.embeddings.files import tables_of, take_over_rows
from training.models.ranker import table_of
from training.ranks import Ranks
from training.recipe import ClassifierSettings, ModelSettings, Recipe
from training.vocabularies import Renumbering, read_vocabulary, vocabulary_of_bundle
from training.warm_weights import fill_weights

Rows = dict[str, Renumbering | None]
"""By table; None for one that begins anew."""


class DoesNotFit(UserError):
    """The bundle holds another model than the recipe trains."""


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """An earlier generation's bundle, for a model of `recipe` on another snapshot."""

    bundle: Path
    digest: str
    old: BundleManifest
    recipe: Recipe
    snapshot: Snapshot

    def match(self, model: nn.Module) -> Rows:
        """Where the rows of the model's tables lie in the bundle's; UserError where a vocabulary is nowhere."""
        new = {table_of(feature): feature for feature in self.snapshot.transform.features}
        old = {table_of(feature): feature for feature in self.old.transform.features}
        return {
            table: self._renumbering(new[table], old[table]) if table in old else None
            for table in (*_tables(model), *self._parameters(model).values())
        }

    def _renumbering(self, new: Feature, old: Feature) -> Renumbering | None:
        old_rows, new_rows = self.old.transform.size(old), self.snapshot.transform.size(new)
        vocabulary: str | None = getattr(new, "vocabulary", None)
        if vocabulary is None:
            return Renumbering.same(new_rows) if old_rows == new_rows and _means(old) == _means(new) else None
        if self.old.snapshot.digest == self.snapshot.manifest.digest():
            return Renumbering.same(new_rows)
        before = vocabulary_of_bundle(self.bundle, self.old, vocabulary)
        after = read_vocabulary(self.snapshot, vocabulary)
        return Renumbering.of(before, after, old_rows=old_rows, new_rows=new_rows)

    def fill(self, model: nn.Module, rows: Rows) -> list[str]:
        """Fill a fresh model, of sharded tables this rank's rows; give what there is to say about it.

        The memory of row-wise Adagrad travels with its row: it is how much a row has learned, and without it the first
        steps would move rows that millions of events have settled as far as rows that none has. AdamW's moments are in
        no bundle: dense weights, and a retriever's tables, begin without.
        """
        found = {name: mapped for name in _tables(model) if (mapped := rows[name]) is not None}
        take_over_rows(
            self.bundle, model, {name: torch.from_numpy(mapped.new_of_old) for name, mapped in found.items()}
        )
        notes = fill_weights(
            model,
            self.bundle,
            rows={parameter: rows[table] for parameter, table in self._parameters(model).items()},
            old=(Recipe.model_validate(self.old.recipe), self.old.transform),
            new=(self.recipe, self.snapshot.transform),
        )
        return [f"begins with the weights of {self.bundle}", *_lines(rows), *notes]

    def _parameters(self, model: nn.Module) -> dict[str, str]:
        """A retriever's parameters with a row a value, with the table that each is of."""
        features = {feature.name: feature for feature in self.snapshot.transform.features}
        there = {name for name, _ in model.named_parameters()}
        of_model: dict[str, str] = getattr(model, "row_features", {})
        return {name: table_of(features[feature]) for name, feature in of_model.items() if name in there}


def _has_prior(recipe: Recipe) -> bool:
    return isinstance(recipe.model, ModelSettings) and recipe.model.popularity_prior


def _tables(model: nn.Module) -> list[str]:
    return [table.name for tables in tables_of(model) for table in tables.placement.tables]


def _lines(rows: Rows) -> list[str]:
    """The tables as a person reads them, the largest first."""
    if not rows:
        return []
    wide = max(map(len, rows))
    lines = [f"{'table':<{wide}} {'taken over':>12} {'new':>12} {'gone':>12}"]
    for name, mapped in sorted(rows.items(), key=lambda one: (-one[1].new_rows if one[1] else 0, one[0])):
        if mapped is None:
            lines.append(f"{name:<{wide}} begins anew: it was another feature, or none")
        else:
            lines.append(f"{name:<{wide}} {mapped.kept:>12,} {mapped.new:>12,} {mapped.gone:>12,}")
    return lines


def plan_warm_start(bundle: Path, snapshot: Snapshot, recipe: Recipe, ranks: Ranks) -> WarmStart:
    """See what fits; DoesNotFit where the bundle holds another model, or vectors of another width.

    On every rank, too, where some do not see the bundle: rank 0 alone would speak, which may see it.
    """
    is_there = (bundle / BUNDLE).exists()
    seeing, blind = ranks.sum(torch.tensor([int(is_there), int(not is_there)]), "ranks_that_see_the_bundle").tolist()
    if seeing and blind:
        raise UserError(f"--warm-start: {blind} ranks do not see {bundle}: give a folder that all hosts share.")
    old = read_manifest(bundle)
    before = Recipe.model_validate(old.recipe)
    if before.model.name != recipe.model.name:
        raise DoesNotFit(
            f"--warm-start: {bundle} holds a {before.model.name}, and the recipe trains a {recipe.model.name}: give "
            "that recipe, or train without it."
        )
    if isinstance(before.model, ClassifierSettings) or isinstance(recipe.model, ClassifierSettings):
        raise DoesNotFit("--warm-start: an image classifier begins with model.pretrained; train without --warm-start.")
    if before.model.width != recipe.model.width:
        raise DoesNotFit(
            f"--warm-start: vectors of {bundle} have {before.model.width} numbers, the recipe's {recipe.model.width}: "
            f"set model.width={before.model.width}, or train without it."
        )
    if (had := _has_prior(before)) != _has_prior(recipe):
        raise DoesNotFit(
            f"--warm-start: {bundle} was trained {'with' if had else 'without'} a popularity prior, which its "
            f"items' biases go with: set model.popularity_prior={str(had).lower()}, or train without it."
        )
    if before.optimizer.table_optimizer != recipe.optimizer.table_optimizer:
        raise DoesNotFit(
            f"--warm-start: the tables of {bundle} learned by {before.optimizer.table_optimizer}, whose memory "
            f"{recipe.optimizer.table_optimizer} cannot use: set optimizer.table_optimizer="
            f"{before.optimizer.table_optimizer}, or train without it."
        )
    return WarmStart(bundle=bundle, digest=_digest(bundle, ranks), old=old, recipe=recipe, snapshot=snapshot)


def _digest(bundle: Path, ranks: Ranks) -> str:
    """Read by one rank for all: a bundle may be as large as its tables."""
    mine = bytes.fromhex(bundle_digest(bundle)) if ranks.rank == 0 else b""
    return ranks.gather(np.frombuffer(mine, np.uint8), "bundle_digest").tobytes().hex()


def _means(feature: Feature) -> tuple[object, ...]:
    """What a row of its table stands for, beside its number."""
    if isinstance(feature, HashFeature):
        return (feature.kind, feature.sources)
    if isinstance(feature, TokensFeature | BucketFeature):
        return (feature.kind, feature.source)
    return (feature.kind,)
