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
CHOOSING_CLASSIFIER = {"accuracy": True, "balanced_accuracy": True, "top5_accuracy": True, "log_loss": False}
"""The same of an image classifier."""

Layers = tuple[Annotated[int, Field(gt=0)], ...]


class AugmentSettings(Strict):
    """How histories are varied while training, each by one of the operators that are set (CL4SRec, Xie et al. 2022)."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of the rows whose history is varied."""
    crop: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the items that stay, from a place drawn at random on; null for no such operator."""
    mask: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the items that are masked."""
    reorder: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the items that are shuffled, those of one run."""


class PropensitySettings(Strict):
    """Rows count 1 / max(propensity, floor) in the loss (Schnabel et al. 2016): training/weighting.py."""

    floor: Annotated[float, Field(gt=0, le=1)] = 0.01


class NegativeRowsSettings(Strict):
    """Rows whose label is lower teach what not to recommend (Wang et al. 2023): training/weighting.py."""

    below: float
    """The first label from which on a row teaches its item, such as 4 of 5 stars, or 1 for clicks."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Of such a row; with 0 it is left out."""


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
    history_dropout: Annotated[float, Field(ge=0, lt=1)] | Literal["uniform"] = 0.0
    """Two-tower: share of history items left out at random while training; `uniform` draws a share for each row, so
    that it learns from short and long histories alike."""
    popularity_prior: bool = False
    """Two-tower: an item's score begins at the logarithm of its count in train."""
    layers: Annotated[int, Field(gt=0)] = 2
    """SASRec: transformer blocks."""
    heads: Annotated[int, Field(gt=0)] = 1
    """SASRec: attention heads; the width must be a multiple."""
    augment: AugmentSettings | None = None
    """Two-tower and SASRec: how histories are varied while training."""


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


class ClassifierSettings(Strict):
    """How EfficientNet-Lite0 is fine-tuned; its classes are the snapshot's."""

    name: Literal["image_classifier"]
    pretrained: str | None = None
    """File of the published weights, which `headrace data efficientnet-lite0` fetches; null for a random start."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Before the classifier."""
    unfreeze_every: Annotated[int, Field(ge=0)] = 0
    """Epochs after which the next stage down begins to learn, the classifier alone at first; 0: all from the start."""
    rate_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A stage's learning rate over that of the stage above it."""
    batch_norm: Literal["kept", "learned"] = "kept"
    """Statistics of batch normalisation: the pretrained ones, or of the batches and averaged over the ranks."""


class LossSettings(Strict):
    """How a row is compared with the items that were not chosen."""

    name: Literal["sampled_softmax", "bpr"]
    num_sampled: Annotated[int, Field(ge=0)] = 0
    """Sampled softmax: items drawn a step; 0 takes all items."""
    sampling_exponent: float = 0.5
    """Items are drawn in proportion to their count in train to this power."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampled softmax: scores are divided by it."""
    exclude_history: bool = False
    """Sampled softmax: the items of a row's history take no part, as they are never shown where `exclude_seen` holds.
    Else users who have taken what is popular already teach that the rest of it is not for users such as they."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """BPR: regularisation of the vectors that a row touches."""
    positions: Literal["last", "all"] = "last"
    """SASRec: whether a row teaches its own item alone, or also which item of its history follows which."""
    rows: Literal["every", "last_of_user"] = "every"
    """With all positions: every row, so that an item is learned once for each later row whose history holds it, or
    each user's last row alone."""
    propensity: PropensitySettings | None = None
    """Weighs rows by the probability with which their item was shown."""
    negative_rows: NegativeRowsSettings | None = None
    """Sampled softmax: rows of items that were shown and not wanted."""


class HeadsSettings(Strict):
    """Binary cross-entropy of a head for each label, summed with these weights."""

    name: Literal["binary_cross_entropy"]
    heads: Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)] = {"label": 1.0}
    """Weight by label, as the snapshot names them; the first is the one that `chosen_by` looks at."""
    propensity: PropensitySettings | None = None
    """Weighs rows by the probability with which their item was shown."""


class CrossEntropySettings(Strict):
    """Cross-entropy over the classes."""

    name: Literal["cross_entropy"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread evenly over all classes (Szegedy et al. 2016, section 7)."""


class OptimizerSettings(Strict):
    """AdamW (Loshchilov and Hutter 2019); row-wise Adagrad or Adam for a ranker's tables."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    table_learning_rate: Annotated[float, Field(gt=0)] = 0.05
    """Of the embedding tables of a ranker."""
    table_optimizer: Literal["adagrad", "adam"] = "adagrad"
    """Theirs; either keeps one number a row. Adam's rates do not fall as a row is seen more often."""
    table_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Adam's: a row remembers about its last 1 / (1 - table_beta2) gradients."""
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

    model: Annotated[ModelSettings | RankerSettings | ClassifierSettings, Field(discriminator="name")]
    loss: Annotated[LossSettings | HeadsSettings | CrossEntropySettings, Field(discriminator="name")]
    optimizer: OptimizerSettings = OptimizerSettings()
    batch_size_per_rank: Annotated[int, Field(gt=0)] = 512
    accumulate: Annotated[int, Field(gt=0)] = 1
    """Batches whose gradients make one step, exchanged once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products while training; weights, sums and tables stay float32."""
    exchanged_as: Literal["float32", "float16"] = "float32"
    """Gradients on their way between ranks, but for those of tables by rows; float16 halves what travels."""
    epochs: Annotated[int, Field(gt=0)] = 50
    patience: Annotated[int, Field(gt=0)] = 5
    """Epochs without a better `chosen_by` on valid after which training ends."""
    keep: Literal["best", "last"] = "best"
    """Which epoch's weights the bundle holds; `last` where valid is too small to choose by, or of few users."""
    chosen_by: str = "ndcg@10"
    ks: tuple[Annotated[int, Field(gt=0)], ...] = (10, 20)
    seed: int = 0


def read_recipe(name_or_path: str, overrides: list[str]) -> Recipe:
    """Read a built-in recipe by name or a file by path, then apply overrides such as `optimizer.learning_rate=0.01`."""
    raw, where = read_yaml(name_or_path, catalogue=RECIPES, what="recipe")
    for override in overrides:
        _set(raw, override)
    recipe = parse_model(Recipe, raw, where=where)
    loss_kind, fits = _LOSSES[type(recipe.model)]
    if not isinstance(recipe.loss, loss_kind):
        raise UserError(f"{where}: model {recipe.model.name} learns by {fits}, not by {recipe.loss.name}.")
    metrics = _choosing(recipe)
    if recipe.chosen_by not in metrics:
        raise UserError(f"{where}: chosen_by {recipe.chosen_by!r} is none of {', '.join(metrics)}.")
    if isinstance(recipe.model, ClassifierSettings):
        _check_start(recipe.model, where)
    if isinstance(recipe.loss, LossSettings):
        _check_positions(recipe, recipe.loss, where)
        _check_levers(recipe, recipe.loss, where)
    return recipe


_LOSSES: dict[type[Strict], tuple[type[Strict], str]] = {
    ModelSettings: (LossSettings, "sampled_softmax or bpr"),
    RankerSettings: (HeadsSettings, "binary_cross_entropy"),
    ClassifierSettings: (CrossEntropySettings, "cross_entropy"),
}


def _choosing(recipe: Recipe) -> list[str]:
    if isinstance(recipe.model, RankerSettings):
        return [*CHOOSING]
    if isinstance(recipe.model, ClassifierSettings):
        return [*CHOOSING_CLASSIFIER]
    return [f"{metric}@{k}" for metric in ("recall", "ndcg", "hr", "mrr") for k in recipe.ks]


def _check_start(settings: ClassifierSettings, where: str) -> None:
    """Weights from a random start have nothing in them that is worth keeping."""
    if settings.pretrained is None and (settings.unfreeze_every or settings.batch_norm == "kept"):
        raise UserError(
            f"{where}: model.pretrained is null, and a random start takes model.unfreeze_every=0 and "
            "model.batch_norm=learned. `headrace data efficientnet-lite0 --to DIR` fetches pretrained weights."
        )


def _check_positions(recipe: Recipe, loss: LossSettings, where: str) -> None:
    if loss.positions == "all" and (recipe.model.name != "sasrec" or loss.name != "sampled_softmax"):
        raise UserError(f"{where}: loss.positions: all is for sasrec and sampled_softmax: take `last`.")
    if loss.rows != "every" and loss.positions == "last":
        raise UserError(f"{where}: loss.rows: {loss.rows} would leave one item a user: set loss.positions to all, too.")


def _check_levers(recipe: Recipe, loss: LossSettings, where: str) -> None:
    assert isinstance(recipe.model, ModelSettings)
    if loss.positions == "all":
        given = {
            "loss.propensity": loss.propensity,
            "loss.negative_rows": loss.negative_rows,
            "loss.exclude_history": loss.exclude_history,
        }
        for name in (name for name, settings in {**given, "model.augment": recipe.model.augment}.items() if settings):
            raise UserError(
                f"{where}: {name} is of a row and its own item, and loss.positions: all learns those of the history, "
                "too: take `last`."
            )
    for name, given_one in (("negative_rows", loss.negative_rows), ("exclude_history", loss.exclude_history)):
        if given_one and loss.name != "sampled_softmax":
            raise UserError(f"{where}: loss.{name} is for sampled_softmax, not for {loss.name}.")
    augment = recipe.model.augment
    if augment is not None and recipe.model.name == "matrix_factorisation":
        raise UserError(f"{where}: model.augment varies histories, and matrix_factorisation reads none: leave it out.")
    if augment is not None and {augment.crop, augment.mask, augment.reorder} == {None}:
        raise UserError(f"{where}: model.augment varies nothing: set crop, mask or reorder.")


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
