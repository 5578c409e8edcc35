"""WebDataset: tar shards of blocks of rows, which `unbatched` takes apart before the rows are shuffled.

Tried with 2 workers, 400,000 rows, batches of 16,384, 2 busy cores: a tar entry for each row 19 k rows/s (67 µs of CPU
a row), blocks of 4,096 rows 440 k (3.4); 4 workers 310 k (3.5), a shuffle buffer of 65,536 rows instead of 20,000
243 k (3.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.feed_peers.loaders import Passes
from benchmarks.feed_peers.rows import Batch, Rows, joined, split

ROWS_PER_BLOCK = 4096
BLOCKS_PER_SHARD = 8
SHUFFLE_BUFFER_ROWS = 20_000
FIELD = "rows.npy"


def convert(rows: Rows, out: Path) -> None:
    import webdataset  # type: ignore[import-not-found]

    with webdataset.ShardWriter(str(out / "%06d.tar"), maxcount=BLOCKS_PER_SHARD, verbose=0) as writer:
        key = 0
        for records in rows.records():
            as_bytes = records.view(np.uint8).reshape(len(records), -1)
            for begin in range(0, len(records), ROWS_PER_BLOCK):
                writer.write({"__key__": f"{key:08d}", FIELD: as_bytes[begin : begin + ROWS_PER_BLOCK]})
                key += 1


def collate(samples: list[tuple[bytes]]) -> torch.Tensor:
    return joined([row for (row,) in samples])


def opened(formats: Path, rows: Rows, *, batch_size: int, workers: int) -> Passes:
    import webdataset

    shards = sorted(str(shard) for shard in formats.glob("*.tar"))
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
        .decode()
        .to_tuple(FIELD)
        .unbatched()
        .shuffle(SHUFFLE_BUFFER_ROWS, initial=SHUFFLE_BUFFER_ROWS)
        .batched(batch_size, collation_fn=collate)
    )
    # Each worker makes whole batches: one made of several workers' rows costs each row its way between processes.
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)

    def one_pass(epoch: int) -> Iterator[Batch]:  # every pass draws its own seed
        return (split(batch, rows.record) for batch in loader)

    return one_pass
