"""The feed over an object store and other file systems: the same batches as from a disk, and failures named soon."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from schemas.errors import SnapshotDamaged, UserError
from schemas.snapshot import open_snapshot
from tests.object_store import ObjectStore
from tests.snapshots import make_snapshot
from training.batch import Batch, Ragged
from training.feed import Feed
from training.reader import open_folder, open_part
from training.row_group_cache import RowGroupCache
from training.row_groups import ParquetRows

pytestmark = pytest.mark.slow

NUM_FILES, ROWS_PER_FILE, ROWS_PER_GROUP = 4, 150, 10  # 60 row groups, of which a rank holds a few at a time
NUM_ROWS = NUM_FILES * ROWS_PER_FILE
LITTLE_MEMORY = 1 << 16  # so that the rows of an epoch are not all read before the first batch comes
SOON_S = 30.0


def write_rows(folder: Path, *, days: tuple[int, ...] = (1, 2), first: int = 0) -> str:
    for number in range(NUM_FILES):
        ids = range(first + number * ROWS_PER_FILE, first + (number + 1) * ROWS_PER_FILE)
        table = pa.table(
            {
                "row_id": pa.array(ids, pa.int64()),
                "x": pa.array([i / 2 for i in ids], pa.float32()),
                "text": [f"né {i}" for i in ids],
                "list": pa.array([[i] * (i % 4) for i in ids], pa.list_(pa.int32())),
            }
        )
        file = folder / f"day={days[number % len(days)]}" / f"part-{number}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file, row_group_size=ROWS_PER_GROUP)
    return str(folder)


def upload(store: ObjectStore, folder: str, url: str) -> None:
    """With a client of its own, as another program would."""
    fs = store.filesystem(skip_instance_cache=True)
    for file in sorted(Path(folder).rglob("*")):
        if file.is_file():
            fs.pipe_file(f"{url.removeprefix('s3://')}/{file.relative_to(folder)}", file.read_bytes())


def delete(store: ObjectStore, url: str) -> None:
    fs = store.filesystem(skip_instance_cache=True)
    fs.rm(fs.find(url.removeprefix("s3://")))


@pytest.fixture
def url(s3_environment: ObjectStore) -> str:
    """An empty folder of the store."""
    return f"s3://{s3_environment.make_bucket()}/some/rows"


def in_words(batch: Batch) -> dict[str, Any]:
    """A batch as plain values, to be compared."""
    columns = {
        name: (column.values.tolist(), column.offsets.tolist()) if isinstance(column, Ragged) else column.tolist()
        for name, column in batch.columns.items()
    }
    return {**columns, "step": batch.step, "positions": batch.positions.tolist(), "of": batch.global_rows}


def batches(rows: ParquetRows, **settings: Any) -> list[dict[str, Any]]:
    return [in_words(batch) for batch in Feed(rows, batch_size_per_rank=32, seed=7, **settings)]


def row_ids(found: list[dict[str, Any]]) -> list[int]:
    return sorted(row_id for batch in found for row_id in batch["row_id"])


@contextmanager
def soon() -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < SOON_S


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The row groups fetched from the store."""
    found: list[str] = []
    from_file = ParquetRows._from_file

    def noted(rows: ParquetRows, row_group: Any, *rest: Any, **options: Any) -> pa.Table:
        found.append(str(row_group))
        return from_file(rows, row_group, *rest, **options)

    monkeypatch.setattr(ParquetRows, "_from_file", noted)
    return found


# The same batches.


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_an_object_store_gives_the_batches_that_a_disk_gives(tmp_path, url, s3_environment, workers):
    local = write_rows(tmp_path)
    upload(s3_environment, local, url)
    expected = batches(open_folder(local))
    assert row_ids(expected) == list(range(NUM_ROWS))
    assert batches(open_folder(url), workers=workers) == expected


def test_hadoops_name_for_the_store_means_the_same(tmp_path, url, s3_environment):
    local = write_rows(tmp_path)
    upload(s3_environment, local, url)
    assert batches(open_folder(url.replace("s3://", "s3a://"))) == batches(open_folder(local))


def test_columns_and_filters_hold_there_too(tmp_path, url, s3_environment):
    local = write_rows(tmp_path)
    upload(s3_environment, local, url)
    chosen = {"columns": ["text", "row_id"], "filters": [[("day", "=", 2), ("x", "<", 100)], [("row_id", "=", 0)]]}
    found = batches(open_folder(url, **chosen))
    assert row_ids(found) == [0, *range(150, 200)]
    assert found == batches(open_folder(local, **chosen))


def test_one_file_is_opened_by_its_own_url(tmp_path, url, s3_environment):
    upload(s3_environment, write_rows(tmp_path), url)
    assert row_ids(batches(open_folder(f"{url}/day=2/part-1.parquet", columns=["row_id"]))) == list(range(150, 300))


def test_an_epoch_begun_on_a_disk_goes_on_from_the_store(tmp_path, url, s3_environment):
    local = write_rows(tmp_path)
    upload(s3_environment, local, url)
    first = Feed(open_folder(local), batch_size_per_rank=32, seed=7)
    begun = iter(first)
    before = [in_words(next(begun)) for _ in range(5)]
    second = Feed(open_folder(url), batch_size_per_rank=32, seed=7)
    second.load_state_dict(first.state_dict())
    assert before + [in_words(batch) for batch in second] == batches(open_folder(local))


@pytest.mark.parametrize("scheme", ["s3", "s3a"])
def test_a_snapshots_part_gives_the_batches_that_a_disk_gives(tmp_path, url, s3_environment, scheme):
    local = make_snapshot(tmp_path / "snapshot", [[40, 30], [50]])
    upload(s3_environment, local, url)
    snapshot = open_snapshot(url.replace("s3", scheme, 1))
    snapshot.verify()
    for part in ("train", "valid", "items"):
        there, here = open_part(snapshot, part), open_part(open_snapshot(local), part)
        assert batches(there, workers=2) == batches(here)
    first = next(iter(Feed(open_part(snapshot, "train"), batch_size_per_rank=8)))
    assert first["history"].shape == (8, 4)
    assert first["history"].dtype == torch.int32


def test_files_that_came_since_are_seen_when_the_folder_is_opened_again(tmp_path, url, s3_environment):
    upload(s3_environment, write_rows(tmp_path / "first"), url)
    assert len(row_ids(batches(open_folder(url)))) == NUM_ROWS
    upload(s3_environment, write_rows(tmp_path / "second", days=(3,), first=NUM_ROWS), url)
    assert row_ids(batches(open_folder(url))) == list(range(2 * NUM_ROWS))


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_any_file_system_that_fsspec_knows_will_do(tmp_path, workers):
    local = write_rows(tmp_path)
    fs = fsspec.filesystem("memory")
    fs.put(local, "/of-this-test/rows", recursive=True)
    try:
        assert batches(open_folder("memory://of-this-test/rows"), workers=workers) == batches(open_folder(local))
        with pytest.raises(UserError, match="memory://of-this-test/nowhere"):
            open_folder("memory://of-this-test/nowhere")
    finally:
        fs.rm("/of-this-test", recursive=True)


# The cache.


@pytest.mark.parametrize("workers", [0, 4])
def test_a_second_epoch_comes_from_the_cache_though_the_store_has_lost_everything(
    tmp_path, url, s3_environment, workers
):
    local = write_rows(tmp_path / "rows")
    upload(s3_environment, local, url)
    cache = RowGroupCache(tmp_path / "cache", 1 << 30)
    there, here = (
        Feed(open_folder(place, cache=kept), batch_size_per_rank=32, seed=7, workers=workers)
        for place, kept in ((url, cache), (local, None))
    )
    assert [in_words(batch) for batch in there] == [in_words(batch) for batch in here]
    delete(s3_environment, url)
    second = [in_words(batch) for batch in there]
    assert row_ids(second) == list(range(NUM_ROWS))
    assert second == [in_words(batch) for batch in here]


def test_a_feed_that_is_started_again_finds_what_the_one_before_kept(tmp_path, url, s3_environment, read):
    upload(s3_environment, write_rows(tmp_path / "rows"), url)
    cache = RowGroupCache(tmp_path / "cache", 1 << 30)
    first = batches(open_folder(url, cache=cache))
    assert len(read) == len(set(read)) == NUM_ROWS // ROWS_PER_GROUP
    del read[:]
    assert batches(open_folder(url, cache=cache)) == first
    assert read == []


def test_an_object_that_was_written_again_is_fetched_again(tmp_path, url, s3_environment):
    upload(s3_environment, write_rows(tmp_path / "first"), url)
    cache = RowGroupCache(tmp_path / "cache", 1 << 30)
    assert row_ids(batches(open_folder(url, cache=cache))) == list(range(NUM_ROWS))
    upload(s3_environment, write_rows(tmp_path / "second", first=1_000), url)
    assert row_ids(batches(open_folder(url, cache=cache))) == list(range(1_000, 1_000 + NUM_ROWS))


def test_a_snapshots_row_groups_are_kept_by_their_content(tmp_path, url, s3_environment, read):
    local = make_snapshot(tmp_path / "snapshot", [[40, 30], [50]])
    cache = RowGroupCache(tmp_path / "cache", 1 << 30)
    upload(s3_environment, local, url)
    first = batches(open_part(open_snapshot(url), "train", cache=cache))
    assert len(read) == 3
    upload(s3_environment, local, url)  # later, and the same
    assert batches(open_part(open_snapshot(url), "train", cache=cache)) == first
    assert len(read) == 3


# What fails.


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_an_object_that_vanishes_in_mid_epoch_is_named_soon(tmp_path, url, s3_environment, workers):
    upload(s3_environment, write_rows(tmp_path), url)
    begun = iter(Feed(open_folder(url), batch_size_per_rank=8, workers=workers, memory_bytes=LITTLE_MEMORY))
    next(begun)
    delete(s3_environment, url)
    place = rf"{url.removeprefix('s3://')}/day=[12]/part-\d.parquet, row group \d+"
    with soon(), pytest.raises(SnapshotDamaged, match=place):
        list(begun)


def test_an_object_that_is_cut_short_in_mid_epoch_is_named_soon(tmp_path, url, s3_environment):
    upload(s3_environment, write_rows(tmp_path), url)
    begun = iter(Feed(open_folder(url), batch_size_per_rank=8, memory_bytes=LITTLE_MEMORY))
    next(begun)
    fs = s3_environment.filesystem(skip_instance_cache=True)
    for path in fs.find(url.removeprefix("s3://")):
        fs.pipe_file(path, fs.cat_file(path)[:100])
    place = rf"{url.removeprefix('s3://')}/day=[12]/part-\d.parquet, row group \d+"
    with soon(), pytest.raises(SnapshotDamaged, match=place):
        list(begun)


def test_an_object_that_is_no_parquet_is_named(tmp_path, url, s3_environment):
    local = write_rows(tmp_path)
    (tmp_path / "day=1" / "part-2.parquet").write_bytes(b"junk" * 100)
    upload(s3_environment, local, url)
    with soon(), pytest.raises(SnapshotDamaged, match=r"day=1/part-2.parquet"):
        open_folder(url)


def open_snapshots_part(url: str) -> ParquetRows:
    return open_part(open_snapshot(url), "train")


OPENERS = pytest.mark.parametrize("opener", [open_folder, open_snapshots_part], ids=["folder", "snapshot"])


@OPENERS
@pytest.mark.parametrize("where", ["s3://nobody-made-this/rows", "{url}/nowhere"])
def test_a_bucket_or_folder_that_is_not_there_is_named_soon(url, opener, where):
    place = where.format(url=url)
    with soon(), pytest.raises(UserError, match=place):
        opener(place)


@OPENERS
@pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_refused_soon_with_the_url(tmp_path, url, s3_environment, monkeypatch, opener, wrong):
    upload(s3_environment, make_snapshot(tmp_path / "snapshot", [[40]]), url)
    monkeypatch.setenv(wrong, "wrong")
    with soon(), pytest.raises(UserError, match=url):
        opener(url)


@OPENERS
def test_no_credentials_are_refused_soon_with_the_url(url, monkeypatch, opener):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with soon(), pytest.raises(UserError, match=url):
        opener(url)


@OPENERS
def test_a_store_that_does_not_answer_is_named_soon(url, monkeypatch, opener):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")  # nobody listens there any more
    with soon(), pytest.raises(UserError, match=url):
        opener(url)
