"""Batches from Parquet by torch's DataLoader: an IterableDataset over row groups, shuffled in a pool of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.training_peers.snapshot import LABEL, Snapshot

ROW_GROUPS_IN_POOL = 8

Batch = tuple[Tensor, Tensor, Tensor]
"""Numbers (B, N) float32, indices (B, F) int32, labels (B,) float32."""


class ShuffledRowGroups(IterableDataset[Batch]):
    """Epoch after epoch without end, whole batches only, so that all ranks can make the same number of steps.

    Every epoch deals out the row groups anew, to all workers of all ranks. A worker reads some into its pool, shuffles
    its rows and cuts batches; what is left goes into the next pool.
    """

    def __init__(self, snapshot: Snapshot, batch_size: int, *, rank: int, ranks: int, seed: int = 0) -> None:
        super().__init__()
        self._snapshot, self._batch_size, self._seed = snapshot, batch_size, seed
        self._rank, self._ranks = rank, ranks

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        workers, place = (worker.num_workers, worker.id) if worker else (1, 0)
        readers, reader = self._ranks * workers, self._rank * workers + place
        rows_random = np.random.default_rng([self._seed, reader])
        groups = self._groups(reader, readers)
        left: list[np.ndarray] = []
        while True:
            read = [self._read(next(groups)) for _ in range(ROW_GROUPS_IN_POOL)]
            pool = [np.concatenate(parts) for parts in zip(*([left] if left else []), *read, strict=True)]
            order = rows_random.permutation(len(pool[0]))
            cut = len(order) - len(order) % self._batch_size
            for begin in range(0, cut, self._batch_size):
                rows = order[begin : begin + self._batch_size]
                numbers, index, label = (torch.from_numpy(part[rows]) for part in pool)
                yield numbers, index, label
            left = [part[order[cut:]] for part in pool]

    def _groups(self, reader: int, readers: int) -> Iterator[int]:
        """Places in the snapshot's row groups, an epoch after the other, in an order that all ranks know."""
        random = np.random.default_rng(self._seed)
        while True:
            yield from random.permutation(len(self._snapshot.row_groups))[reader::readers].tolist()

    def _read(self, group: int) -> list[np.ndarray]:
        """The numbers, indices and labels of a row group, each row's side by side."""
        place, row_group = self._snapshot.row_groups[group]
        names = [*self._snapshot.numbers, *self._snapshot.values, LABEL]
        with pq.ParquetFile(self._snapshot.files[place], memory_map=True) as file:
            table = file.read_row_group(row_group, columns=names, use_threads=False)
        numbers = np.stack([table[name].to_numpy() for name in self._snapshot.numbers], axis=1)
        index = np.stack([table[name].to_numpy() for name in self._snapshot.values], axis=1)
        return [numbers, index, table[LABEL].to_numpy()]


def batches(snapshot: Snapshot, batch_size: int, *, rank: int, ranks: int, workers: int) -> Iterator[Batch]:
    """Without end; made by `workers` processes, or in this one where that is 0."""
    dataset = ShuffledRowGroups(snapshot, batch_size, rank=rank, ranks=ranks)
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers))
