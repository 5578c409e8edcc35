"""Pre-flight: does what a model will look up exist, and does the layout fit the ranks, before a GPU is touched.

Ids are checked by the statistics that Parquet keeps of every row group; only where those are missing, or say that a
value is out of range, is a column read, to name the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import SnapshotDamaged
from schemas.manifest import SPLITS, DataFile
from schemas.snapshot import Snapshot
from schemas.storage import filesystem, join
from training.feed import Feed
from training.reader import open_part

_HELD_OUT_ITEMS = ("seen", "negatives")  # columns of held-out rows that hold items
_MOST_SKEW = 1.25


@dataclass(frozen=True, kw_only=True)
class SplitLayout:
    """How one split is shared out over the ranks."""

    split: str
    rows: int
    files: int
    row_groups: int
    largest_row_group: int
    file_skew: float
    """Rows of the largest file over those of the mean one."""
    steps: int
    last_global_batch: int
    lanes: int
    memory_bytes: int
    """Of decoded rows, a rank's."""
    warnings: tuple[str, ...]


def check_ids(snapshot: Snapshot, progress: Callable[[str], None] = lambda path: None) -> int:
    """Prove that every id of every split has its row in the vocabulary; give the number of columns that were checked.

    Raises SnapshotDamaged naming feature, file, row group, row and value.
    """
    sizes = {
        feature.name: (getattr(feature, "vocabulary", feature.name), snapshot.transform.size(feature))
        for feature in snapshot.transform.features
        if feature.dtype == "int32"
    }
    items = next((size for name, size in sizes.items() if name == "item_idx"), None)
    if items is not None:
        sizes |= dict.fromkeys(_HELD_OUT_ITEMS, items)
    fs, root = filesystem(snapshot.url)
    checked = 0
    for split in SPLITS:
        for data_file in snapshot.files(split):
            progress(data_file.path)
            with fs.open(join(root, data_file.path), "rb") as source:
                file = pq.ParquetFile(source)
                for number, column, (vocabulary, size) in _id_columns(file, sizes):
                    checked += 1
                    if not _in_range(file.metadata.row_group(number), column, size):
                        _check_values(file, data_file, number, column, vocabulary, size)
    return checked


def layouts(snapshot: Snapshot, *, world_size: int, batch_size_per_rank: int, memory_bytes: int) -> list[SplitLayout]:
    """How each split would be shared out; UserError where it cannot be."""
    return [
        _layout(snapshot, split, world_size, batch_size_per_rank, memory_bytes)
        for split in SPLITS
        if snapshot.manifest.rows(split)
    ]


def _layout(snapshot: Snapshot, split: str, world_size: int, batch_size: int, memory_bytes: int) -> SplitLayout:
    feed = Feed(
        open_part(snapshot, split),
        batch_size_per_rank=batch_size,
        world_size=world_size,
        memory_bytes=memory_bytes,
        shuffle=split == "train",
    )
    plan = feed.plan()
    rows_of_files = [file.rows for file in snapshot.files(split) if file.rows]
    skew = max(rows_of_files) / (sum(rows_of_files) / len(rows_of_files))
    row_groups = len(feed.rows.row_groups)
    last = plan.global_rows(plan.num_steps - 1)
    warnings = []
    if row_groups < world_size:
        warnings.append(f"{row_groups} row groups for {world_size} ranks: several read the same one")
    if skew > _MOST_SKEW:
        warnings.append(f"the largest file has {skew:.2f} times the rows of the mean one; the feed evens that out")
    if last < world_size:
        warnings.append(f"the last global batch has {last} rows for {world_size} ranks: some get none in that step")
    return SplitLayout(
        split=split,
        rows=plan.num_rows,
        files=len(rows_of_files),
        row_groups=row_groups,
        largest_row_group=max(plan.row_group_rows),
        file_skew=skew,
        steps=plan.num_steps,
        last_global_batch=last,
        lanes=plan.num_lanes,
        memory_bytes=feed.memory_estimate(),
        warnings=tuple(warnings),
    )


def _id_columns(file: pq.ParquetFile, sizes: dict[str, tuple[str, int]]) -> Iterator[tuple[int, int, tuple[str, int]]]:
    """Row group, column and vocabulary of each id column."""
    for number in range(file.metadata.num_row_groups):
        row_group = file.metadata.row_group(number)
        for column in range(row_group.num_columns):
            name = row_group.column(column).path_in_schema.split(".")[0]
            if name in sizes:
                yield number, column, sizes[name]


def _in_range(row_group: pq.RowGroupMetaData, column: int, size: int) -> bool:
    statistics = row_group.column(column).statistics
    if statistics is None or not statistics.has_min_max:
        return False
    return statistics.min >= 0 and statistics.max < size


def _check_values(
    file: pq.ParquetFile, data_file: DataFile, number: int, column: int, vocabulary: str, size: int
) -> None:
    name = file.metadata.row_group(number).column(column).path_in_schema.split(".")[0]
    table = file.read_row_group(number, columns=[name])
    array = table.column(0).combine_chunks()
    is_list = pa.types.is_list(array.type)
    values = (array.flatten() if is_list else array).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(~((values >= 0) & (values < size)))
    if not len(wrong):
        return
    row = int(np.searchsorted(array.offsets.to_numpy(), wrong[0], side="right")) - 1 if is_list else int(wrong[0])
    raise SnapshotDamaged(
        f"feature {name!r}: {data_file.path}, row group {number}, row {row:,} holds {values[wrong[0]]}, and the "
        f"vocabulary {vocabulary!r} has the rows 0 to {size - 1:,} ({len(wrong):,} such values in this row group). "
        "Was the file written with another snapshot's vocabulary? Run prepare again."
    )
