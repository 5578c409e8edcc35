"""The recipe: a model, a loss and how to train it, in one small YAML file; everything else comes from the snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from schemas.errors import UserError
from schemas.settings import Strict, parse_model, read_yaml

RECIPES = Path(__file__).parent / "recipes"
CHOOSING = {"auc": True, "gauc": True, "log_loss": False, "normalised_entropy": False}
"""Metrics by which a ranker's best epoch can be chosen, and whether more is better."""

Layers = tuple[Annotated[int, Field(gt=0)], ...]


class ModelSettings(Strict):
    """Which retriever, and its sizes that the data does not decide."""

    name: Literal["two_tower", "matrix_factorisation", "sasrec"]
    width: Annotated[int, Field(gt=0)] = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    user_id: bool = False
    """Two-tower: a vector of its own for every user, beside the history."""
    user_features: bool = True
    """Two-tower: the contract's categorical and numeric columns of users and events."""
    recent: Annotated[int, Field(ge=0)] = 0
    """Two-tower: newest items of the history that are averaged apart, with learned weights."""
    history_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Two-tower: share of history items left out at random while training."""
    layers: Annotated[int, Field(gt=0)] = 2
    """SASRec: transformer blocks."""
    heads: Annotated[int, Field(gt=0)] = 1
    """SASRec: attention heads; the width must be a multiple."""


class RankerSettings(Strict):
    """Which ranker, and its sizes that the data does not decide."""

    name: Literal["dlrm", "dcn_v2"]
    width: Annotated[int, Field(gt=0)] = 16
    """Of every embedding."""
    bottom: Layers = (64,)
    """DLRM: hidden layers over the numbers; a last one of the embeddings' width follows."""
    top: Layers = (128, 64)
    """Hidden layers over the interactions (DLRM), or of the deep part (DCN-v2)."""
    cross_layers: Annotated[int, Field(ge=0)] = 3
    """DCN-v2."""
    cross_rank: Annotated[int, Field(ge=0)] = 0
    """DCN-v2: rank of the cross layers' matrices; 0 for full ones."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """After each hidden layer of `top`."""
    tables: Literal["auto", "replicated", "sharded"] = "auto"
    """Where embedding tables lie: each where the planner finds it cheaper, or all in one way."""


class LossSettings(Strict):
    """How a row is compared with the items that were not chosen."""

    name: Literal["sampled_softmax", "bpr"]
    num_sampled: Annotated[int, Field(ge=0)] = 0
    """Sampled softmax: items drawn a step; 0 takes all items."""
    sampling_exponent: float = 0.5
    """Items are drawn in proportion to their count in train to this power."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampled softmax: scores are divided by it."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """BPR: regularisation of the vectors that a row touches."""


class HeadsSettings(Strict):
    """Binary cross-entropy of a head for each label, summed with these weights."""

    name: Literal["binary_cross_entropy"]
    heads: Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)] = {"label": 1.0}
    """Weight by label, as the snapshot names them; the first is the one that `chosen_by` looks at."""


class OptimizerSettings(Strict):
    """AdamW (Loshchilov and Hutter 2019); row-wise Adagrad for a ranker's tables."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    table_learning_rate: Annotated[float, Field(gt=0)] = 0.05
    """Of the embedding tables of a ranker."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rates rise evenly from nothing."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """How they fall from there to nothing over the epochs."""
    scale_with_ranks: bool = False
    """Multiply them by the ranks, whose batches are so many times as large (Goyal et al. 2017, section 2.1)."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of the dense gradient; 0 leaves it as it is."""


class Recipe(Strict):
    """A whole training run, apart from the snapshot and the ranks."""

    model: Annotated[ModelSettings | RankerSettings, Field(discriminator="name")]
    loss: Annotated[LossSettings | HeadsSettings, Field(discriminator="name")]
    optimizer: OptimizerSettings = OptimizerSettings()
    batch_size_per_rank: Annotated[int, Field(gt=0)] = 512
    accumulate: Annotated[int, Field(gt=0)] = 1
    """Batches whose gradients make one step, exchanged once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products while training; weights, sums and tables stay float32."""
    epochs: Annotated[int, Field(gt=0)] = 50
    patience: Annotated[int, Field(gt=0)] = 5
    """Epochs without a better `chosen_by` on valid after which training ends."""
    chosen_by: str = "ndcg@10"
    ks: tuple[Annotated[int, Field(gt=0)], ...] = (10, 20)
    seed: int = 0


def read_recipe(name_or_path: str, overrides: list[str]) -> Recipe:
    """Read a built-in recipe by name or a file by path, then apply overrides such as `optimizer.learning_rate=0.01`."""
    raw, where = read_yaml(name_or_path, catalogue=RECIPES, what="recipe")
    for override in overrides:
        _set(raw, override)
    recipe = parse_model(Recipe, raw, where=where)
    ranks_clicks = isinstance(recipe.model, RankerSettings)
    if ranks_clicks != isinstance(recipe.loss, HeadsSettings):
        fits = "binary_cross_entropy" if ranks_clicks else "sampled_softmax or bpr"
        raise UserError(f"{where}: model {recipe.model.name} learns by {fits}, not by {recipe.loss.name}.")
    retrieval = [f"{metric}@{k}" for metric in ("recall", "ndcg", "hr", "mrr") for k in recipe.ks]
    metrics = [*CHOOSING] if ranks_clicks else retrieval
    if recipe.chosen_by not in metrics:
        raise UserError(f"{where}: chosen_by {recipe.chosen_by!r} is none of {', '.join(metrics)}.")
    return recipe


def _set(raw: Any, override: str) -> None:
    place, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"--set {override!r}: write it as KEY=VALUE, for example model.width=64.")
    *outer, last = place.split(".")
    for key in outer:
        raw = raw.setdefault(key, {}) if isinstance(raw, dict) else raw
    if not isinstance(raw, dict):
        raise UserError(f"--set {override!r}: {'.'.join(outer)} holds no keys.")
    try:
        raw[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {override!r}: {value!r} is no YAML.") from None
