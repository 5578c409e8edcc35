"""The bundle's manifest: what a trained model is, what it was trained on, and how good it was found to be."""

from __future__ import annotations

from typing import Any

from schemas.contract import Contract
from schemas.features import FeatureTransform
from schemas.images import ImageColumn
from schemas.manifest import Parent, QueryGrain
from schemas.settings import Strict

BUNDLE = "bundle.json"
LOWER_IS_BETTER = frozenset({"log_loss", "normalised_entropy", "ece"})
"""Metrics of which less is more."""


class Confusion(Strict):
    """How many rows of a class were taken for another."""

    label: str
    taken_for: str
    rows: int
    share: float
    """Of the rows of `label`."""


class CalibrationPoint(Strict):
    """A bin of rows of about one predicted probability: what was predicted, and what came of it."""

    probability: float
    label: float
    """The rows' mean."""
    interval: tuple[float, float] | None = None
    """Where 95 of 100 such samples of users would put it."""
    rows: int


class SliceMetrics(Strict):
    """The rows that have one value of a column, or whose number lies in one range, of a ranker for one head; undefined
    left out."""

    column: str
    value: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = {}


class SplitMetrics(Strict):
    """Metrics of one split: of a retriever by full ranking and among the given negatives, of others by head."""

    num_rows: int
    row_id_sum: int
    num_queries: int = 0
    full: dict[str, float] = {}
    sampled: dict[str, float] = {}
    heads: dict[str, dict[str, float]] = {}
    """By label, as the snapshot names it."""
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    """By label and metric: where 95 of 100 such samples of users would put it."""
    confusions: tuple[Confusion, ...] = ()
    """Of an image classifier: the classes that are mixed up most often, at most a few."""
    curves: dict[str, list[CalibrationPoint]] = {}
    """By label, ascending."""
    slices: dict[str, list[SliceMetrics]] = {}
    """By label, of a retriever under `full`; the worst first."""


class VectorsOfItems(Strict):
    """Vectors that another model made of the items; they lie with the weights."""

    width: int
    digest: str
    """Of the files' content."""
    covered: int
    """Items of the snapshot that have one; the others share a learned one."""


class BundleManifest(Strict):
    """Beside `model.safetensors` (weights), embedding tables by rows, and `items.parquet` (item_idx, item_id, title,
    count) where the log has items; in `vocab/` the vocabularies (value, idx) that are not too large."""

    created_at: str
    code_version: str
    recipe: dict[str, Any]
    contract: Contract
    transform: FeatureTransform
    query_grain: QueryGrain | None = None
    snapshot: Parent
    world_size: int
    epochs: int
    best_epoch: int
    valid: SplitMetrics
    images: ImageColumn | None = None
    """Of an image classifier: the size it was trained at, and its classes."""
    warm_start: str | None = None
    """Digest of the bundle that training began with."""
    item_vectors: VectorsOfItems | None = None

    @property
    def vector_width(self) -> int:
        """Numbers of an item's given vector; 0 where items have none."""
        return self.item_vectors.width if self.item_vectors is not None else 0


class RunEvaluation(Strict):
    """A run's model on a split; beside a retriever, the popularity baseline."""

    split: str
    snapshot: Parent
    bundle: str | None = None
    """Digest of the bundle that was judged."""
    query_grain: QueryGrain | None = None
    model: SplitMetrics
    popularity: SplitMetrics | None = None
    notes: tuple[str, ...] = ()
    """On a later snapshot than the run's: which features could be translated approximately alone."""
