"""Hugging Face datasets: a memory-mapped Arrow data set, shuffled by `IterableDataset.shuffle`, as torch tensors.

Its torch format looks at every value of a column in Python, so rows packed as arrays (the documented Array2D) are its
best format. Tried on 4 M rows (the map-style ones on 400,000), batches of 16,384, 2 busy cores:

    to_iterable_dataset().shuffle(131,072 rows), Array2D      430 k rows/s (2.8 µs of CPU a row)
    the same, lists of fixed length                           240 k (3.2)
    the same, a column for each of the 40                     120 k (8.4)
    Dataset.shuffle() and iter(), a column each                4 k (242)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.feed_peers.loaders import Passes
from benchmarks.feed_peers.rows import Batch, Rows

SHARDS = 64
BUFFER_ROWS = 131_072
BUFFER_INPUT_SHARDS = 10


def convert(rows: Rows, out: Path) -> None:
    import datasets  # type: ignore[import-not-found]
    from datasets.features.features import Array2DExtensionType  # type: ignore[import-not-found]

    def array(values: np.ndarray) -> pa.Array:
        """A 1 x n array a row, as datasets stores it: a list of lists."""
        count, width = values.shape
        row = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * width, values.reshape(-1))
        nested = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), row)
        return pa.ExtensionArray.from_storage(Array2DExtensionType((1, width), str(values.dtype)), nested)

    table = pa.concat_tables(
        pa.table({dtype: array(records[dtype]) for dtype in records.dtype.names or ()}) for records in rows.records()
    )
    save(datasets.Dataset(table), out)


def save(dataset: Any, out: Path) -> None:
    dataset.save_to_disk(str(out), num_shards=SHARDS)


def shuffled(formats: Path, *, buffer_rows: int, input_shards: int) -> Any:
    """The rows as an IterableDataset that `set_epoch` shuffles anew."""
    import datasets

    datasets.disable_progress_bars()
    iterable = datasets.load_from_disk(str(formats)).to_iterable_dataset(num_shards=SHARDS)
    return iterable.shuffle(seed=1, buffer_size=buffer_rows, max_buffer_input_shards=input_shards)


def opened(formats: Path, rows: Rows, *, batch_size: int, workers: int) -> Passes:
    """`workers` is not used: `iter` reads in this process, and Arrow in as many threads as there are cores."""
    dataset = shuffled(formats, buffer_rows=BUFFER_ROWS, input_shards=BUFFER_INPUT_SHARDS).with_format("torch")

    def one_pass(epoch: int) -> Iterator[Batch]:
        dataset.set_epoch(epoch)
        for batch in dataset.iter(batch_size=batch_size):
            yield {dtype: values.flatten(1) for dtype, values in batch.items()}

    return one_pass
