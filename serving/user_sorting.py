"""users.arrow: a snapshot's users sorted by a hash of their id, so that one is found without reading the others.

Sorted within bounded memory: users are parted by ranges of the hash, and one part is sorted at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from schemas.features import SPARK_SEED
from schemas.snapshot import Snapshot
from schemas.storage import filesystem, join

PART_BYTES = 256 << 20
_ROWS_AT_ONCE = 65_536
_BYTES_IN_MEMORY = 3  # of a part: as read, its order, and as written


def user_key(user_id: str) -> int:
    return xxhash.xxh64_intdigest(user_id.encode(), seed=SPARK_SEED)


def write_users(
    snapshot: Snapshot,
    columns: list[str],
    target: Path,
    *,
    borrowed: pa.Table | None = None,
    part_bytes: int = PART_BYTES,
) -> int:
    """Write the users as batches of Arrow by ascending key; give their number.

    `columns` are those beside user_id that are kept. `borrowed` has user_id and raw columns of the users' table.
    """
    num_parts = max(1, -(-_BYTES_IN_MEMORY * _uncompressed_bytes(snapshot) // part_bytes))
    parts = target.parent / f".{target.name}-parts"
    parts.mkdir()
    try:
        _scatter(_batches(snapshot, columns), parts, num_parts)
        rows = 0
        with ExitStack() as stack:
            writer: pa.RecordBatchFileWriter | None = None
            for number in range(num_parts):
                path = parts / f"{number:05d}"
                if not path.exists():
                    continue
                with pa.memory_map(str(path)) as source:
                    part = (
                        pa.ipc.open_stream(source).read_all().sort_by([("key", "ascending"), ("user_id", "ascending")])
                    )
                part = _with_borrowed(part, borrowed)
                if writer is None:
                    writer = stack.enter_context(pa.ipc.new_file(str(target), part.schema))
                for batch in part.combine_chunks().to_batches():
                    writer.write_batch(batch)
                rows += part.num_rows
                path.unlink()
        return rows
    finally:
        shutil.rmtree(parts)


def _uncompressed_bytes(snapshot: Snapshot) -> int:
    fs, root = filesystem(snapshot.url)
    total = 0
    for file in snapshot.files("users"):
        with fs.open(join(root, file.path), "rb") as opened:
            footer = pq.read_metadata(opened)
        total += sum(footer.row_group(group).total_byte_size for group in range(footer.num_row_groups))
    return total


def _batches(snapshot: Snapshot, columns: list[str]) -> Iterator[pa.RecordBatch]:
    fs, root = filesystem(snapshot.url)
    for file in snapshot.files("users"):
        with fs.open(join(root, file.path), "rb") as opened:
            for batch in pq.ParquetFile(opened).iter_batches(_ROWS_AT_ONCE, columns=["user_id", *columns]):
                keys = np.fromiter((user_key(user) for user in batch["user_id"].to_pylist()), np.uint64, batch.num_rows)
                yield batch.select(["user_id", *columns]).add_column(0, "key", pa.array(keys))


def _scatter(batches: Iterator[pa.RecordBatch], folder: Path, num_parts: int) -> None:
    """Append each row to the file of its part, equal ranges of the key in rising order."""
    with ExitStack() as stack:
        writers: dict[int, pa.RecordBatchStreamWriter] = {}
        for batch in batches:
            part = _part_of(batch["key"].to_numpy(), num_parts)
            for number in np.unique(part).tolist():
                if number not in writers:
                    writers[number] = stack.enter_context(
                        pa.ipc.new_stream(str(folder / f"{number:05d}"), batch.schema)
                    )
                writers[number].write_batch(batch.filter(pa.array(part == number)))


def _part_of(keys: NDArray[np.uint64], num_parts: int) -> NDArray[np.int64]:
    return ((keys >> np.uint64(32)) * np.uint64(num_parts) >> np.uint64(32)).astype(np.int64)


def _with_borrowed(part: pa.Table, borrowed: pa.Table | None) -> pa.Table:
    if borrowed is None:
        return part
    place = pc.index_in(part["user_id"].cast(pa.string()), value_set=borrowed["user_id"].combine_chunks())
    for name in borrowed.column_names:
        if name != "user_id":
            part = part.append_column(name, borrowed[name].take(place))
    return part


def latest_rows(table: pa.Table, key: str, valid_from: str | None) -> pa.Table:
    """The newest version of each key; the table itself where rows are no versions."""
    if valid_from is None:
        return table
    ordered = table.sort_by([(valid_from, "ascending")])
    last = (
        ordered.append_column("_row", pa.array(np.arange(ordered.num_rows))).group_by(key).aggregate([("_row", "max")])
    )
    return ordered.take(last["_row_max"])
