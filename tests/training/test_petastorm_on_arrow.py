"""petastorm, unpatched, on today's pyarrow: no row lost, none twice; pyarrow as it was for everyone else."""

import contextlib
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from training.petastorm_on_arrow import LegacyParquetDataset, LocalFileSystem, ParquetDatasetPiece, install

install()

from petastorm import make_batch_reader, make_reader  # noqa: E402
from petastorm.codecs import NdarrayCodec, ScalarCodec  # noqa: E402
from petastorm.etl.dataset_metadata import ROW_GROUPS_PER_FILE_KEY, UNISCHEMA_KEY  # noqa: E402
from petastorm.predicates import in_lambda  # noqa: E402
from petastorm.unischema import Unischema, UnischemaField  # noqa: E402
from petastorm.utils import add_to_dataset_metadata  # noqa: E402
from petastorm.workers_pool import EmptyResultError  # noqa: E402
from petastorm.workers_pool.process_pool import ProcessPool  # noqa: E402
from petastorm.workers_pool.thread_pool import ThreadPool  # noqa: E402
from petastorm.workers_pool.ventilator import ConcurrentVentilator  # noqa: E402
from petastorm.workers_pool.worker_base import WorkerBase  # noqa: E402

POOLS = ("dummy", "thread", "process")


def _write(file: Path, values: range, rows_per_group: int = 1_000) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"value": pa.array(values, pa.int64())}), file, row_group_size=rows_per_group)


def _rows(folder: Path, **options: Any) -> list[tuple]:
    """All rows that petastorm reads from the folder, sorted; a row's values are ordered by their names."""
    rows: list[tuple] = []
    with make_batch_reader(folder.as_uri(), **options) as reader:
        for batch in reader:
            columns = batch._asdict()
            rows += zip(*(columns[name].tolist() for name in sorted(columns)), strict=True)
    return sorted(rows)


@pytest.mark.parametrize("pool", POOLS)
def test_every_row_comes_once_an_epoch_from_uneven_files(
    pool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "data" / "a.parquet", range(0, 70), rows_per_group=30)
    _write(tmp_path / "data" / "b.parquet", range(70, 71))
    _write(tmp_path / "data" / "c.parquet", range(71, 100), rows_per_group=7)
    (tmp_path / "data" / "_SUCCESS").touch()
    (tmp_path / "data" / ".a.parquet.crc").touch()
    monkeypatch.chdir(tmp_path)  # a process of the pool finds the adapter wherever it is started

    rows = _rows(tmp_path / "data", reader_pool_type=pool, workers_count=3, num_epochs=2)

    assert Counter(value for (value,) in rows) == dict.fromkeys(range(100), 2)


def test_hive_folders_become_columns_at_two_levels(tmp_path: Path) -> None:
    for day in range(12):
        for region in ("eu", "us", "x:y z"):
            quoted = region.replace(":", "%3A")  # as Spark quotes it
            _write(tmp_path / f"day={day}" / f"region={quoted}" / "part.parquet", range(2))

    rows = _rows(tmp_path, reader_pool_type="thread")

    expected = [(day, region, value) for day in range(12) for region in ("eu", "us", "x:y z") for value in range(2)]
    assert rows == expected


@pytest.mark.parametrize(
    ("filters", "days"),
    [
        ([("day", "=", 2)], [2]),
        ([("day", "=", "2")], [2]),
        ([("day", ">", 2)], [3, 10]),
        ([("day", "in", {1, 10})], [1, 10]),
        ([("day", "not in", {1, 10})], [2, 3]),
        ([[("day", "<=", 1)], [("day", ">=", 3), ("day", "!=", 10)]], [1, 3]),
        ([("value", "=", 0)], [1, 2, 3, 10]),  # a column of the files: keeps all, as on pyarrow 14
    ],
)
def test_filters_choose_hive_folders(tmp_path: Path, filters: list, days: list[int]) -> None:
    for day in (1, 2, 3, 10):
        _write(tmp_path / f"day={day}" / "part.parquet", range(1))
    assert [day for day, _ in _rows(tmp_path, filters=filters, reader_pool_type="dummy")] == days


def test_predicate_on_a_hive_column_skips_its_folders(tmp_path: Path) -> None:
    for day in (1, 2):
        _write(tmp_path / f"day={day}" / "part.parquet", range(3))
    only_two = in_lambda(["day"], lambda day: day == 2)
    assert _rows(tmp_path, predicate=only_two, reader_pool_type="dummy") == [(2, 0), (2, 1), (2, 2)]


def test_petastorms_own_datasets_decode_and_use_their_row_group_count(tmp_path: Path) -> None:
    from pyspark.sql.types import LongType

    schema = Unischema(
        "Rows",
        [
            UnischemaField("key", np.int64, (), ScalarCodec(LongType()), False),
            UnischemaField("matrix", np.float32, (2, 3), NdarrayCodec(), False),
        ],
    )
    matrices = np.arange(30, dtype=np.float32).reshape(5, 2, 3)
    encoded = [bytes(schema.matrix.codec.encode(schema.matrix, matrix)) for matrix in matrices]
    pq.write_table(pa.table({"key": range(5), "matrix": encoded}), tmp_path / "part.parquet", row_group_size=2)
    dataset = LegacyParquetDataset(str(tmp_path))
    add_to_dataset_metadata(dataset, UNISCHEMA_KEY, pickle.dumps(schema))
    add_to_dataset_metadata(dataset, ROW_GROUPS_PER_FILE_KEY, '{"part.parquet": 3}')

    with make_reader(tmp_path.as_uri(), reader_pool_type="thread", workers_count=2) as reader:
        read = {row.key: row.matrix for row in reader}

    assert sorted(read) == list(range(5))
    np.testing.assert_array_equal(np.stack([read[key] for key in range(5)]), matrices)


def test_pieces_say_what_pyarrow_14_said(tmp_path: Path) -> None:
    _write(tmp_path / "day=1" / "part.parquet", range(5), rows_per_group=2)
    pq.write_metadata(pa.schema([("value", pa.int64())]), tmp_path / "_common_metadata")
    dataset = LegacyParquetDataset(str(tmp_path), metadata_nthreads=10)
    (piece,) = dataset.pieces

    assert dataset.paths == str(tmp_path)
    assert (dataset.metadata_path, dataset.metadata) == (None, None)
    assert dataset.common_metadata_path == str(tmp_path / "_common_metadata")
    assert dataset.schema.to_arrow_schema().names == ["value"]
    assert dataset.partitions is not None
    assert dataset.partitions.partition_names == {"day"}
    assert dataset.partitions[0].keys == ["1"]
    assert (piece.path, piece.partition_keys) == (str(tmp_path / "day=1" / "part.parquet"), [("day", 0)])
    assert piece.get_metadata().num_row_groups == 3
    assert dataset.read().to_pydict() == {"value": [0, 1, 2, 3, 4], "day": [1] * 5}
    last = ParquetDatasetPiece(piece.path, dataset.fs.open, row_group=2, partition_keys=piece.partition_keys)
    assert pickle.loads(pickle.dumps(last)) == last
    assert last.read(columns={"value"}, partitions=dataset.partitions).to_pydict() == {
        "value": [4],
        "day": [1],
    }


def test_a_list_of_files_has_no_partitions_and_keeps_its_order(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("b.parquet", "a.parquet")]
    for file in files:
        _write(Path(file), range(1))
    dataset = LegacyParquetDataset(files)
    assert (dataset.paths, dataset.partitions, [piece.path for piece in dataset.pieces]) == (
        files,
        None,
        files,
    )


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        (("part.parquet", "day=1/part.parquet"), ValueError, "intermediate directory"),
        (("plain/part.parquet",), ValueError, "did not appear to be a partition: plain"),
        (("day=1/part.parquet", "hour=1/part.parquet"), ValueError, "day and by hour"),
        ((), OSError, "Passed non-file path"),
    ],
)
def test_folders_that_are_no_dataset_are_refused(tmp_path: Path, files: tuple, error: type, words: str) -> None:
    for file in files:
        _write(tmp_path / "data" / file, range(1))
    with pytest.raises(error, match=words):
        LegacyParquetDataset(str(tmp_path / "data"))


def test_a_file_with_other_columns_is_refused_unless_told_not_to_look(tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", range(1))
    pq.write_table(pa.table({"other": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet was different"):
        LegacyParquetDataset(str(tmp_path))
    assert len(LegacyParquetDataset(str(tmp_path), validate_schema=False).pieces) == 2


@pytest.mark.parametrize(
    "wrap", [lambda local: local, lambda local: pa.fs.SubTreeFileSystem("/", pa.fs.LocalFileSystem())]
)
def test_any_fsspec_or_arrow_file_system_will_do(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    _write(tmp_path / "day=1" / "part.parquet", range(3))
    dataset = LegacyParquetDataset(str(tmp_path), filesystem=wrap(fsspec.filesystem("file")))
    assert dataset.read().to_pydict() == {"value": [0, 1, 2], "day": [1, 1, 1]}


def test_local_files_are_read_by_arrow_and_the_file_system_travels(tmp_path: Path) -> None:
    class Mine(LocalFileSystem):
        """A class of a function, which cloudpickle sends by value."""

    _write(tmp_path / "part.parquet", range(3))
    for file_system in (pickle.loads(pickle.dumps(pa.localfs)), cloudpickle.loads(cloudpickle.dumps(Mine))()):
        with file_system.open(str(tmp_path / "part.parquet")) as file:
            assert isinstance(file, pa.OSFile)
            assert pq.read_metadata(file).num_rows == 3


def test_pyarrow_is_as_it_was_for_everyone_else(tmp_path: Path) -> None:
    _write(tmp_path / "day=1" / "part.parquet", range(3))
    _write(tmp_path / "day=2" / "part.parquet", range(3))
    dataset = pq.ParquetDataset(tmp_path, filters=[("day", "=", 2)])

    assert isinstance(dataset, pq.ParquetDataset)
    assert dataset.read()["day"].to_pylist() == [2, 2, 2]
    assert pq.read_table(tmp_path, filters=[("value", ">", 1)]).num_rows == 2
    assert pd.read_parquet(tmp_path, filters=[("day", "=", 1)])["value"].tolist() == [0, 1, 2]
    with pytest.raises(TypeError):
        pq.ParquetDataset(tmp_path, validate_schema=False)


def test_a_second_install_changes_nothing() -> None:
    before = (
        pq.ParquetDataset,
        pa.localfs,
        pa.filesystem,
        np.__dict__["in1d"],
        ThreadPool.current_worker_done,
        ProcessPool.get_results,
    )
    install()
    after = (
        pq.ParquetDataset,
        pa.localfs,
        pa.filesystem,
        np.__dict__["in1d"],
        ThreadPool.current_worker_done,
        ProcessPool.get_results,
    )
    assert all(one is other for one, other in zip(before, after, strict=True))


class _LateVentilator:
    """Hands out at a chosen question whether all is handed out, which comes between other looks of a pool."""

    _stop_requested = False

    def __init__(self, hand_out: Callable[[], None], at_question: int, yes_from: int):
        self._hand_out = hand_out
        self._at_question = at_question
        self._yes_from = yes_from
        self._questions = 0

    def completed(self) -> bool:
        self._questions += 1
        if self._questions == self._at_question:
            self._hand_out()
        return self._questions >= self._yes_from

    def processed_item(self) -> None: ...

    def stop(self) -> None: ...


class _Echo(WorkerBase):
    def process(self, item: str) -> None:
        self.publish_func(item)


class _ThreadPoolAsShipped(ThreadPool):
    current_worker_done = ThreadPool.current_worker_done.__wrapped__


def _results_of_threads(kind: type[ThreadPool], items: list[str], at_question: int, yes_from: int) -> list[str]:
    pool = kind(workers_count=len(items))
    pool.start(_Echo)

    def hand_out() -> None:
        for item in items:
            pool.ventilate(item)

    pool._ventilator = _LateVentilator(hand_out, at_question, yes_from)
    results = []
    with contextlib.suppress(EmptyResultError):
        while True:
            results.append(pool.get_results())
    pool.stop()
    pool.join()
    return results


def test_threads_do_not_lose_what_is_handed_out_between_two_looks() -> None:
    assert _results_of_threads(_ThreadPoolAsShipped, ["only"], at_question=1, yes_from=1) == []
    assert _results_of_threads(ThreadPool, ["only"], at_question=1, yes_from=1) == ["only"]


def test_threads_are_read_in_turn_even_before_they_have_work() -> None:
    as_shipped = _results_of_threads(_ThreadPoolAsShipped, ["first", "second"], at_question=2, yes_from=3)
    assert as_shipped == ["second", "first"]
    assert _results_of_threads(ThreadPool, ["first", "second"], at_question=2, yes_from=3) == ["first", "second"]


def _process_pool_with_a_late_item() -> ProcessPool:
    from petastorm.workers_pool import VentilatedItemProcessedMessage

    class Wire:
        """What the one worker would send."""

        def __init__(self) -> None:
            processed = pickle.dumps(VentilatedItemProcessedMessage())
            self.left = [(pickle.dumps("the item"), pickle.dumps(None)), (b"", processed)]

        def poll(self, _: float) -> bool:
            return bool(self.left)

        def recv_multipart(self, copy: bool) -> tuple[bytes, bytes]:
            return self.left.pop(0)

    def hand_out() -> None:
        pool._ventilated_items += 1

    pool = ProcessPool(1)
    pool._results_receiver = pool._results_receiver_poller = Wire()
    pool._ventilator = _LateVentilator(hand_out, at_question=2, yes_from=2)  # the first is for its log
    return pool


def test_processes_do_not_lose_what_is_handed_out_between_two_looks() -> None:
    as_shipped, repaired = _process_pool_with_a_late_item(), _process_pool_with_a_late_item()
    with pytest.raises(EmptyResultError):
        ProcessPool.get_results.__wrapped__(as_shipped)
    assert repaired.get_results() == "the item"
    with pytest.raises(EmptyResultError):
        repaired.get_results()


def test_every_epoch_of_a_single_row_group_has_its_rows(tmp_path: Path) -> None:
    _write(tmp_path / "part.parquet", range(10))
    rows_per_epoch = [len(_rows(tmp_path, workers_count=2)) for _ in range(40)]
    with make_batch_reader(tmp_path.as_uri(), workers_count=2) as reader:
        for _ in range(40):
            rows_per_epoch.append(sum(len(batch.value) for batch in reader))
            reader.reset()
    rows_per_epoch.append(len(_rows(tmp_path, workers_count=2, num_epochs=200)) // 200)
    assert rows_per_epoch == [10] * 81


def test_one_seed_gives_one_order(tmp_path: Path) -> None:
    for file in range(20):
        _write(tmp_path / f"{file:02}.parquet", range(file * 5, file * 5 + 5))

    def order() -> tuple[int, ...]:
        with make_batch_reader(tmp_path.as_uri(), workers_count=4, seed=7, shuffle_rows=True) as reader:
            return tuple(value for batch in reader for value in batch.value.tolist())

    assert len({order() for _ in range(20)}) == 1


def test_a_reset_waits_for_the_thread_of_the_last_pass() -> None:
    handed_out: list[int] = []
    ventilator = ConcurrentVentilator(lambda item: handed_out.append(item), [{"item": 1}, {"item": 2}])
    ventilator.start()
    for passes in range(1, 50):
        while not ventilator.completed():
            ventilator.processed_item()
        last = ventilator._ventilation_thread
        assert len(handed_out) == 2 * passes
        ventilator._processed_items_count = ventilator._ventilated_items_count
        ventilator.reset()
        assert not last.is_alive()
    ventilator.stop()
