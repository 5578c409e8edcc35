"""A snapshot as the peers see it: plain Parquet files, and in the manifest the sizes of the tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

LABEL = "label"


@dataclass(frozen=True)
class Snapshot:
    """The train split of a folder that `headrace prepare` published."""

    files: tuple[Path, ...]
    row_groups: tuple[tuple[int, int], ...]
    """(place in `files`, row group)."""
    rows: int
    numbers: tuple[str, ...]
    """Names of the float32 columns."""
    values: tuple[str, ...]
    """Names of the int32 columns, which are rows of tables."""
    rows_of_tables: tuple[int, ...]
    """In the order of `values`."""

    def is_sparse(self, batch_size: int) -> bool:
        """Whether a batch has fewer indices than the tables rows, so that their sparse gradient is the smaller one."""
        return batch_size * len(self.values) < sum(self.rows_of_tables)

    @classmethod
    def read(cls, folder: Path) -> Snapshot:
        manifest = json.loads((folder / "manifest.json").read_text())
        parts = manifest["parts"]["train"]
        features, vocabularies = manifest["transform"]["features"], manifest["transform"]["vocabularies"]
        indexed = [feature for feature in features if feature["kind"] == "index"]
        return cls(
            files=tuple(folder / part["path"] for part in parts),
            row_groups=tuple(
                (place, group) for place, part in enumerate(parts) for group in range(len(part["row_groups"]))
            ),
            rows=sum(sum(part["row_groups"]) for part in parts),
            numbers=tuple(feature["name"] for feature in features if feature["kind"] == "number"),
            values=tuple(feature["name"] for feature in indexed),
            rows_of_tables=tuple(vocabularies[feature["vocabulary"]]["size"] for feature in indexed),
        )
