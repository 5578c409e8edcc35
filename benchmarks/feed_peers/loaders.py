"""The loaders by name: where each one's code is, which environment runs it and what it is."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from benchmarks.feed_peers.rows import Batch, Rows

Passes = Callable[[int], Iterator[Batch]]
"""Of an epoch's number: one shuffled pass over all rows, in an order that no other epoch has."""


class Code(Protocol):
    """What the file of a loader has."""

    def convert(self, rows: Rows, out: Path) -> None:
        """Write the rows below `out` in the loader's own best format."""

    def opened(self, formats: Path, rows: Rows, *, batch_size: int, workers: int) -> Passes:
        """Open what `convert` wrote, for any number of passes."""


@dataclass(frozen=True, kw_only=True)
class Loader:
    name: str
    title: str
    basis: Literal["rows", "columns"]
    environment: Literal["main", "peers"]
    module: str
    reads_parquet: bool = False  # all rows are read where they are; only fewer than all are copied

    @property
    def code(self) -> Code:
        return importlib.import_module(f"benchmarks.feed_peers.{self.module}")

    def folder(self, formats: Path, rows: Rows) -> Path:
        """Where the loader finds its rows."""
        return rows.data if self.reads_parquet and rows.is_all else formats / f"{self.module}-{rows.count}"


_ALL = (
    Loader(name="mosaic", title="Mosaic Streaming", basis="rows", environment="peers", module="mosaic"),
    Loader(name="litdata", title="litdata", basis="rows", environment="peers", module="lit"),
    Loader(name="webdataset", title="WebDataset", basis="rows", environment="peers", module="wds"),
    Loader(
        name="datasets",
        title="Hugging Face datasets, torch format",
        basis="columns",
        environment="peers",
        module="hugging_face",
    ),
    Loader(
        name="datasets_arrow",
        title="Hugging Face datasets, arrow format",
        basis="columns",
        environment="peers",
        module="hugging_face_arrow",
    ),
    Loader(
        name="ray",
        title="Ray Data",
        basis="columns",
        environment="peers",
        module="ray_data",
        reads_parquet=True,
    ),
    Loader(
        name="petastorm_batched",
        title="petastorm BatchedDataLoader",
        basis="columns",
        environment="main",
        module="petastorm_batched",
        reads_parquet=True,
    ),
    Loader(
        name="petastorm_loader",
        title="petastorm DataLoader",
        basis="rows",
        environment="main",
        module="petastorm_rows",
        reads_parquet=True,
    ),
)
LOADERS = {loader.name: loader for loader in _ALL}
