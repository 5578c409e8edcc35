"""The manifest of an export: what a program that knows nothing of this project must know to ask the model."""

from __future__ import annotations

from typing import Literal

from schemas.settings import Strict

EXPORT = "export.json"


class Tensor(Strict):
    """An input or output of the exported model; its first dimension is the batch."""

    name: str
    dtype: Literal["int32", "float32"]
    shape: tuple[int | Literal["batch"], ...]


class Check(Strict):
    """The exported model beside the one it was made from, on the same rows."""

    rows_from: str
    """A split of the snapshot, or the ranges of its features."""
    batch_sizes: tuple[int, ...]
    tolerance: float
    largest_difference: dict[str, float]
    """By file: of any output of any row."""


class TableCost(Strict):
    """What smaller tables save and cost."""

    bytes: dict[str, int]
    """By table, and what they were as float32."""
    float32_bytes: dict[str, int]
    rows: int = 0
    """Of valid, on which what follows was found; 0 where the snapshot could not be opened."""
    largest_difference: dict[str, float] = {}
    """By head: of a row's probability."""
    mean_difference: dict[str, float] = {}
    before: dict[str, dict[str, float]] = {}
    """By head: AUC and log loss with float32 tables."""
    after: dict[str, dict[str, float]] = {}


class ExportManifest(Strict):
    """Beside the exported files; written with them, whole or not at all."""

    created_at: str
    code_version: str
    bundle_digest: str
    """SHA-256 over the bundle's files."""
    model: str
    files: dict[str, str]
    """SHA-256 by file."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    heads: tuple[str, ...] = ()
    """A ranker's labels, in the order of the outputs."""
    tables: Literal["float32", "bf16", "int8"] = "float32"
    opset: int | None = None
    """Of the ONNX file."""
    versions: dict[str, str]
    """Of the libraries that wrote the files."""
    check: Check
    cost: TableCost | None = None
