"""Row groups of a Parquet part, read in a given order by petastorm's worker pools: the one place that imports it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import SnapshotDamaged
from schemas.manifest import DataFile
from training import petastorm_on_arrow

petastorm_on_arrow.install()

from petastorm.arrow_reader_worker import ArrowReaderWorker  # noqa: E402
from petastorm.fs_utils import get_filesystem_and_path_or_paths  # noqa: E402
from petastorm.reader import Reader  # noqa: E402
from petastorm.workers_pool import EmptyResultError  # noqa: E402
from petastorm.workers_pool.dummy_pool import DummyPool  # noqa: E402
from petastorm.workers_pool.thread_pool import ThreadPool  # noqa: E402
from petastorm.workers_pool.ventilator import ConcurrentVentilator  # noqa: E402

_RESULTS_QUEUE_SIZE = 8


class _RowGroupWorker(ArrowReaderWorker):
    """Reads one row group as it lies in the file, and says which read it was, for pools answer in any order."""

    @staticmethod
    def new_results_queue_reader() -> _ResultsQueueReader:
        return _ResultsQueueReader()

    def process(self, read_index: int, piece_index: int) -> None:
        piece = self._split_pieces[piece_index]
        columns = list(self._schema.fields)
        try:
            with pq.ParquetFile(self._filesystem.open(piece.path)) as file:
                table = file.read_row_group(piece.row_group, columns, use_threads=False)
        except (OSError, pa.ArrowInvalid) as error:
            raise SnapshotDamaged(f"{piece.path}, row group {piece.row_group}: cannot be read: {error}") from error
        self.publish_func((read_index, table))


class _ResultsQueueReader:
    batched_output = True

    def read_next(self, workers_pool: Any, schema: Any, ngram: Any) -> Any:
        try:
            return workers_pool.get_results()
        except EmptyResultError:
            raise StopIteration from None


class _OrderedReader(Reader):
    """petastorm's reader, told which row groups to read and in which order instead of a shard and a seed."""

    def __init__(self, *arguments: Any, piece_of: dict[tuple[str, int], int], reads: Sequence[int], **options: Any):
        self._row_group_at = piece_of
        self._reads = reads
        super().__init__(*arguments, **options)

    def _filter_row_groups(self, dataset: Any, row_groups: Any, *_: Any) -> tuple[list[int], None]:
        """The index of petastorm's piece for each read."""
        index_of = {
            self._row_group_at[piece.path.rsplit("/", 1)[-1], piece.row_group]: index
            for index, piece in enumerate(row_groups)
        }
        return [index_of[row_group] for row_group in self._reads], None

    def _create_ventilator(self, pieces: list[int], _shuffle: Any, _drop: Any, _epochs: Any, _predicate: Any,
                           max_in_flight: int, _seed: Any) -> ConcurrentVentilator:  # fmt: skip
        items = [{"read_index": index, "piece_index": piece} for index, piece in enumerate(pieces)]
        return ConcurrentVentilator(
            self._workers_pool.ventilate, items, iterations=1, max_ventilation_queue_size=max_in_flight
        )


def read_row_groups(
    urls: Sequence[str], files: Sequence[DataFile], columns: Sequence[str], reads: Sequence[int], *, workers: int
) -> Iterator[pa.Table]:
    """Yield the row groups `reads`, in that order, each as an Arrow table of `columns`.

    Row groups are numbered through all files in order. `workers` threads read ahead (0: none, reading happens in the
    caller); what is in flight is bounded by petastorm's queues, and waits here when the one before it is late.
    """
    if not reads:
        return
    numbered = [(file.path.rsplit("/", 1)[-1], group) for file in files for group in range(len(file.row_groups))]
    filesystem, paths = get_filesystem_and_path_or_paths([_file_url(url) for url in urls])
    reader = _OrderedReader(
        filesystem,
        paths,
        piece_of={place: number for number, place in enumerate(numbered)},
        reads=reads,
        schema_fields=[f"^{column}$" for column in columns],
        worker_class=_RowGroupWorker,
        reader_pool=ThreadPool(workers, _RESULTS_QUEUE_SIZE) if workers else DummyPool(),
        is_batched_reader=True,
    )
    early: dict[int, pa.Table] = {}
    try:
        for index in range(len(reads)):
            while index not in early:
                read_index, table = next(reader)
                early[read_index] = table
            yield early.pop(index)
    finally:
        reader.stop()
        reader.join()


def _file_url(url: str) -> str:
    return url if "://" in url else f"file://{url}"
