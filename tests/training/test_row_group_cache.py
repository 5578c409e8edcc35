"""The cache of row groups: what was kept comes back whole or is fetched again, in bounded space, whoever shares it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.feed import Feed
from training.reader import open_folder
from training.row_group_cache import RowGroupCache, default_folder
from training.row_groups import ParquetRows

LARGE = 1 << 30


def table(value: int = 0, rows: int = 1_000) -> pa.Table:
    """8 KB of one number."""
    return pa.table({"x": pa.array(np.full(rows, value, dtype=np.int64))})


class Source:
    """Gives tables by number, and counts."""

    def __init__(self, cache: RowGroupCache):
        self.cache, self.fetched = cache, []

    def get(self, number: int) -> pa.Table:
        def fetch() -> pa.Table:
            self.fetched.append(number)
            return table(number)

        found = self.cache.get(("part.parquet", "v1", number), fetch)
        assert found.equals(table(number))
        return found


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.arrow"))


def grow_older(folder: Path, by_s: float = 100.0) -> None:
    """As if everything in the folder had been used that much earlier."""
    for path in folder.iterdir():
        used = path.stat().st_mtime - by_s
        os.utime(path, (used, used))


def test_what_was_fetched_once_comes_from_the_folder(tmp_path):
    source = Source(RowGroupCache(tmp_path / "cache", LARGE))
    for number in (1, 2, 1, 2, 1):
        source.get(number)
    assert source.fetched == [1, 2]
    later = Source(RowGroupCache(tmp_path / "cache", LARGE))
    later.get(1)
    assert later.fetched == []


@pytest.mark.parametrize(
    "other",
    [
        ("b.parquet", "v1", 0, "x"),
        ("a.parquet", "v2", 0, "x"),
        ("a.parquet", "v1", 1, "x"),
        ("a.parquet", "v1", 0, "y"),
    ],
    ids=["file", "version", "row group", "column"],
)
def test_another_key_is_fetched_for_itself(tmp_path, other):
    cache = RowGroupCache(tmp_path, LARGE)
    cache.get(("a.parquet", "v1", 0, "x"), lambda: table(1))
    assert cache.get(other, lambda: table(2)).equals(table(2))
    assert cache.get(("a.parquet", "v1", 0, "x"), lambda: table(3)).equals(table(1))


def test_tables_of_any_types_come_back_as_they_were(tmp_path):
    kinds = pa.table(
        {
            "text": ["né", "", None],
            "lists": pa.array([[1, 2], [], None], pa.list_(pa.int32())),
            "category": pa.array(["a", "b", "a"]).dictionary_encode(),
            "pair": pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32(), 2)),
            "day": pa.array([1, 2, 3], pa.int32()).cast(pa.date32()),
            "yes": [True, None, False],
        }
    )
    cache = RowGroupCache(tmp_path, LARGE)
    cache.get(("kinds",), lambda: kinds)
    found = cache.get(("kinds",), lambda: pytest.fail("fetched again"))
    assert found.equals(kinds)
    assert found.schema.equals(kinds.schema)


def test_a_table_without_columns_keeps_its_rows(tmp_path):
    cache = RowGroupCache(tmp_path, LARGE)
    cache.get(("rows",), lambda: table(rows=7).select([]))
    assert cache.get(("rows",), lambda: pytest.fail("fetched again")).num_rows == 7


# Its size.


def test_the_folder_never_holds_more_than_it_may(tmp_path):
    source = Source(RowGroupCache(tmp_path, 40_000))
    for number in range(12):
        source.get(number)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 40_000
    assert len(kept(tmp_path)) == 4


def test_many_small_row_groups_do_not_outgrow_the_folder(tmp_path):
    # A file takes some hundred bytes beside its values.
    cache = RowGroupCache(tmp_path, 10_000)
    for number in range(40):
        cache.get((number,), lambda: table(rows=4))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000


def test_what_was_used_longest_ago_goes_first(tmp_path):
    source = Source(RowGroupCache(tmp_path, 30_000))  # three tables and a little
    for number in (1, 2, 3, 1, 4):  # 2 is the one used longest ago when room is made for 4
        source.get(number)
        grow_older(tmp_path)
    assert source.fetched == [1, 2, 3, 4]
    for number in (1, 3, 4):
        source.get(number)
    assert source.fetched == [1, 2, 3, 4]
    source.get(2)
    assert source.fetched == [1, 2, 3, 4, 2]


def test_a_table_larger_than_the_folder_may_be_is_given_and_drives_nothing_out(tmp_path):
    cache = RowGroupCache(tmp_path, 10_000)
    source = Source(cache)
    source.get(1)
    large = table(rows=10_000)
    assert cache.get(("large",), lambda: large).equals(large)
    source.get(1)
    assert source.fetched == [1]


def test_a_table_stays_readable_after_it_was_evicted(tmp_path):
    source = Source(RowGroupCache(tmp_path, 10_000))
    source.get(1)
    mapped = source.get(1)
    source.get(2)
    assert len(kept(tmp_path)) == 1
    assert mapped.equals(table(1))


def test_files_that_the_cache_did_not_write_stay(tmp_path):
    (tmp_path / "thesis.txt").write_text("x" * 50_000)
    (tmp_path / "folder").mkdir()
    grow_older(tmp_path, by_s=1e6)
    source = Source(RowGroupCache(tmp_path, 20_000))
    for number in range(5):
        source.get(number)
    assert (tmp_path / "thesis.txt").stat().st_size == 50_000
    assert (tmp_path / "folder").is_dir()
    assert len(kept(tmp_path)) == 2


# What is damaged.


def damaged(content: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "zeros": bytes(len(content)),
        "half": content[: len(content) // 2],
        "without its last byte": content[:-1],
        "without its footer": content[:-200],
        "zeros at its end": content[:-200] + bytes(200),
        "another file": b"this is no Arrow file" * 100,
    }


@pytest.mark.parametrize("damage", list(damaged(b"")))
def test_a_file_that_cannot_be_read_is_fetched_again_and_kept_anew(tmp_path, damage):
    source = Source(RowGroupCache(tmp_path, LARGE))
    source.get(1)
    (path,) = kept(tmp_path)
    path.write_bytes(damaged(path.read_bytes())[damage])
    source.get(1)
    assert source.fetched == [1, 1]
    source.get(1)
    assert source.fetched == [1, 1]


def test_no_flipped_byte_of_a_files_head_or_foot_is_an_error(tmp_path):
    cache = RowGroupCache(tmp_path, LARGE)
    cache.get(("a",), lambda: table(1))
    (path,) = kept(tmp_path)
    content = path.read_bytes()
    assert 8_300 < len(content) < 8_800  # 8,000 bytes are values
    for place in [*range(200), *range(len(content) - 300, len(content))]:
        for flipped in (0x01, 0x80, 0xFF):
            path.unlink()
            path.write_bytes(content[:place] + bytes([content[place] ^ flipped]) + content[place + 1 :])
            assert isinstance(cache.get(("a",), lambda: table(1)), pa.Table), place


def test_a_folder_that_is_gone_in_the_middle_slows_and_does_not_stop(tmp_path):
    folder = tmp_path / "cache"
    source = Source(RowGroupCache(folder, LARGE))
    folder.rmdir()
    source.get(1)
    source.get(1)


# Who shares it.

SHARER = """
import sys, numpy as np, pyarrow as pa
from pathlib import Path
from training.row_group_cache import RowGroupCache
cache = RowGroupCache(Path(sys.argv[1]), int(sys.argv[2]))
table = lambda number, rows: pa.table({"x": pa.array(np.full(rows, number, dtype=np.int64))})
random = np.random.default_rng(int(sys.argv[3]))
rows = int(sys.argv[4])
print("started", flush=True)
for _ in range(int(sys.argv[5])):
    number = int(random.integers(0, 8))
    found = cache.get((number,), lambda: table(number, rows))
    assert found.equals(table(number, rows)), (number, found)
print("done")
"""


def sharer(folder: Path, max_bytes: int, seed: int, rows: int, rounds: int, before: str = "") -> subprocess.Popen[str]:
    """A process of its own that asks the cache for 8 tables again and again, and looks at what it gets."""
    arguments = [str(argument) for argument in (folder, max_bytes, seed, rows, rounds)]
    command = [sys.executable, "-c", before + SHARER, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_processes_that_evict_from_one_another_get_whole_tables(tmp_path):
    running = [sharer(tmp_path, 30_000, seed, rows=1_000, rounds=400) for seed in range(2)]
    assert [process.communicate(timeout=120)[0].split()[-1] for process in running] == ["done", "done"]
    assert [process.returncode for process in running] == [0, 0]
    assert not list(tmp_path.glob("*.unfinished"))


def test_threads_that_evict_from_one_another_get_whole_tables(tmp_path):
    source = Source(RowGroupCache(tmp_path, 30_000))
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(source.get, [number % 7 for number in range(300)]))
    assert len(tables) == 300


def test_a_writer_that_is_killed_before_it_has_finished_leaves_nothing_that_is_taken_for_a_row_group(tmp_path):
    stuck = "import os, time; os.replace = lambda *paths: (print('written', flush=True), time.sleep(600))\n"
    process = sharer(tmp_path, LARGE, 0, rows=1_000, rounds=1, before=stuck)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["started\n", "written\n"]
    process.kill()
    process.wait()
    (debris,) = tmp_path.iterdir()
    assert kept(tmp_path) == []

    source = Source(RowGroupCache(tmp_path, LARGE))
    source.get(1)
    assert debris.exists()  # for all that is known, its writer may still be at it
    grow_older(tmp_path, by_s=2 * 3600)
    source.get(2)
    assert not debris.exists()
    source.get(1)
    assert source.fetched == [1, 2]


@pytest.mark.slow
def test_every_file_is_whole_however_often_a_writer_is_killed(tmp_path):
    for seed in range(8):
        process = sharer(tmp_path, 40 << 20, seed, rows=1 << 20, rounds=100_000)  # 8 MB a table
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        until = time.monotonic() + 60
        while not kept(tmp_path) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05 * seed)
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL  # it had not failed by itself
    assert kept(tmp_path)
    for path in kept(tmp_path):
        column = pa.ipc.open_file(path).read_all()["x"].to_numpy()
        assert len(column) == 1 << 20
        assert column.min() == column.max()
    assert sharer(tmp_path, 40 << 20, 0, rows=1 << 20, rounds=20).communicate(timeout=120)[0].split()[-1] == "done"


# A full disk.

FULL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # no file grows further: writing fails as on a full disk
from pathlib import Path
from training.feed import Feed
from training.reader import open_folder
from training.row_group_cache import RowGroupCache
rows = open_folder(sys.argv[1], cache=RowGroupCache(Path(sys.argv[2]), 1 << 30))
for _ in range(2):
    print(sorted(i for batch in Feed(rows, batch_size_per_rank=500) for i in batch["x"].tolist()) == list(range(3000)))
"""


def test_a_full_disk_does_not_stop_the_feed(tmp_path):
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table({"x": range(3_000)}), tmp_path / "rows" / "part.parquet", row_group_size=1_000)
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "rows"), str(tmp_path / "cache")]
    shown = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2], check=False
    )
    assert shown.stdout.split() == ["True", "True"], shown.stderr
    assert list((tmp_path / "cache").iterdir()) == []


# Below the feed.


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The row groups read from their files, by file name and number."""
    found: list[tuple[str, int]] = []
    from_file = ParquetRows._from_file

    def noted(rows: ParquetRows, row_group: Any, *rest: Any, **options: Any) -> pa.Table:
        found.append((Path(row_group.path).name, row_group.index))
        return from_file(rows, row_group, *rest, **options)

    monkeypatch.setattr(ParquetRows, "_from_file", noted)
    return found


def values(folder: Path, cache: RowGroupCache, **options: Any) -> list[int]:
    feed = Feed(open_folder(str(folder), cache=cache, **options), batch_size_per_rank=4)
    return sorted(x for batch in feed for x in batch["x"].tolist())


def test_a_feed_reads_each_row_group_once_and_then_from_the_cache(tmp_path, read):
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table({"x": range(10)}), tmp_path / "rows" / "part.parquet", row_group_size=5)
    cache = RowGroupCache(tmp_path / "cache", LARGE)
    for _ in range(3):
        assert values(tmp_path / "rows", cache) == list(range(10))
    assert sorted(read) == [("part.parquet", 0), ("part.parquet", 1)]


def test_hive_folders_and_filters_come_on_top_of_what_is_kept(tmp_path):
    for day in (1, 2):
        (tmp_path / "rows" / f"day={day}").mkdir(parents=True)
        pq.write_table(pa.table({"x": range(10)}), tmp_path / "rows" / f"day={day}" / "part.parquet", row_group_size=5)
    cache = RowGroupCache(tmp_path / "cache", LARGE)
    for _ in range(2):
        assert values(tmp_path / "rows", cache, filters=[("x", ">", 6), ("day", "=", 1)]) == [7, 8, 9]
        assert values(tmp_path / "rows", cache, filters=[("x", "<", 6)]) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        assert len(values(tmp_path / "rows", cache)) == 20


def test_a_file_that_was_changed_is_read_again(tmp_path):
    (tmp_path / "rows").mkdir()
    path, cache = tmp_path / "rows" / "part.parquet", RowGroupCache(tmp_path / "cache", LARGE)
    pq.write_table(pa.table({"x": range(10)}), path, compression="none")
    before = path.stat().st_size
    assert values(tmp_path / "rows", cache) == list(range(10))
    pq.write_table(pa.table({"x": range(10, 20)}), path, compression="none")
    assert path.stat().st_size == before  # so the size alone would not tell
    assert values(tmp_path / "rows", cache) == list(range(10, 20))


def test_a_category_with_more_values_than_its_dictionary_page_holds_is_kept(tmp_path, read):
    rows, folder = 20_000, tmp_path / "rows"
    folder.mkdir()
    texts = pa.array([f"{i:020d}" for i in range(rows)]).dictionary_encode()
    written = pa.table({"x": range(rows), "text": texts})
    pq.write_table(written, folder / "part.parquet", row_group_size=rows, dictionary_pagesize_limit=2_000)
    cache = RowGroupCache(tmp_path / "cache", LARGE)
    for _ in range(2):
        feed = Feed(open_folder(str(folder), cache=cache), batch_size_per_rank=7_000)
        for batch in feed:
            assert batch.ragged("text").texts() == [f"{x:020d}" for x in batch["x"].tolist()]
    assert read == [("part.parquet", 0)]


# Where it is.


def test_the_folder_is_below_the_users_own_cache_folder(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/one")
    one = default_folder()
    assert one == Path("/home/one/.cache/headrace/row_groups")
    monkeypatch.setenv("HOME", "/home/other")
    assert default_folder() == Path("/home/other/.cache/headrace/row_groups")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/one")
    assert default_folder() == Path("/scratch/one/headrace/row_groups")


def test_the_folder_is_made_for_its_user_alone(tmp_path):
    RowGroupCache(tmp_path / "some" / "where", LARGE)
    assert (tmp_path / "some" / "where").stat().st_mode & 0o777 == 0o700
