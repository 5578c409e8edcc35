"""The bundle's manifest: what a trained model is, what it was trained on, and how good it was found to be."""

from __future__ import annotations

from typing import Any

from schemas.contract import Contract
from schemas.features import FeatureTransform
from schemas.manifest import Parent, QueryGrain
from schemas.settings import Strict

BUNDLE = "bundle.json"


class SplitMetrics(Strict):
    """Metrics of one split: of a retriever by full ranking and among the given negatives, of a ranker by head."""

    num_rows: int
    row_id_sum: int
    num_queries: int = 0
    full: dict[str, float] = {}
    sampled: dict[str, float] = {}
    heads: dict[str, dict[str, float]] = {}
    """By label, as the snapshot names it."""
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    """By label and metric: where 95 of 100 such samples of users would put it."""


class BundleManifest(Strict):
    """Beside `model.safetensors` (weights), embedding tables by rows, and `items.parquet` (item_idx, item_id, title,
    count) where the log has items."""

    created_at: str
    code_version: str
    recipe: dict[str, Any]
    contract: Contract
    transform: FeatureTransform
    query_grain: QueryGrain
    snapshot: Parent
    world_size: int
    epochs: int
    best_epoch: int
    valid: SplitMetrics


class RunEvaluation(Strict):
    """A run's model on a split; beside a retriever, the popularity baseline."""

    split: str
    snapshot: Parent
    query_grain: QueryGrain
    model: SplitMetrics
    popularity: SplitMetrics | None = None
