"""Corrupt input: each fault ends the feed within seconds, with an error that names file, row group and column."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import SnapshotDamaged, UserError
from schemas.snapshot import open_snapshot
from tests.snapshots import make_snapshot
from training.feed import Feed
from training.reader import open_folder, open_part

COLUMNS = ("row_id", "item_idx", "history")
LAYOUT = [[50], [50, 30]]  # the second file is the damaged one
ROOT = Path(__file__).parents[2]


def snapshot_feed(url: str, **options: object) -> Feed:
    return Feed(open_part(open_snapshot(url), "train", columns=COLUMNS), batch_size_per_rank=16, **options)


def folder_feed(url: str, **options: object) -> Feed:
    rows = open_folder(f"{url}/train", columns=COLUMNS, lengths={"history": 4})
    return Feed(rows, batch_size_per_rank=16, **options)


HOW = {"a snapshot's part": snapshot_feed, "a folder": folder_feed}


def second_file(url: str) -> Path:
    return Path(url) / "train" / "part-00001.parquet"


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table] = lambda table: table, row_group: int = 50) -> None:
    """The file's table, changed, in row groups of this size, with a checksum for each page."""
    pq.write_table(change(pq.read_table(path)), path, row_group_size=row_group, write_page_checksum=True)


def with_values(name: str, kind: pa.DataType, change: Callable[[list], None]) -> Callable[[pa.Table], pa.Table]:
    """Another type, or other values, for a column of a table."""

    def changed(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        change(values)
        return table.set_column(table.schema.get_field_index(name), pa.field(name, kind), pa.array(values, kind))

    return changed


def cut_to(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def flip_a_bit_in(path: Path, *, row_group: int, column: str) -> None:
    """In the middle of the pages of a column."""
    group = pq.read_metadata(path).row_group(row_group)
    leaves = [group.column(number) for number in range(group.num_columns)]
    (leaf,) = [leaf for leaf in leaves if leaf.path_in_schema.split(".")[0] == column]
    start = leaf.data_page_offset if leaf.dictionary_page_offset is None else leaf.dictionary_page_offset
    content = bytearray(path.read_bytes())
    content[start + leaf.total_compressed_size - 3] ^= 0b100
    path.write_bytes(bytes(content))


def threads_of_feeds() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("headrace")]


def ends_with(says: str, run: Callable[[], object]) -> str:
    """The text of the SnapshotDamaged that `run` raises, soon and with no thread left."""
    began = time.monotonic()
    with pytest.raises(SnapshotDamaged, match=says) as caught:
        run()
    assert time.monotonic() - began < 5
    assert threads_of_feeds() == []
    return str(caught.value)


FILE = r"train/part-00001\.parquet"


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_file_cut_short_is_named(tmp_path, how, share):
    url = make_snapshot(tmp_path / "s", LAYOUT)
    cut_to(second_file(url), share)
    ends_with(f"{FILE}: its footer cannot be read: .", lambda: list(HOW[how](url)))


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("row_group", "column"), [(0, "row_id"), (1, "item_idx"), (1, "history")])
def test_a_flipped_bit_in_a_page_with_a_checksum_is_found_with_row_group_and_column(
    tmp_path, how, row_group, column, workers
):
    url = make_snapshot(tmp_path / "s", LAYOUT)
    rewrite(second_file(url))
    assert len(list(HOW[how](url))) == 9  # 130 rows: the whole file is fine
    flip_a_bit_in(second_file(url), row_group=row_group, column=column)
    says = f"{FILE}, row group {row_group}, column '{column}': it cannot be read: .*(?i:crc|checksum)"
    ends_with(says, lambda: list(HOW[how](url, workers=workers)))


def test_a_flipped_bit_in_a_column_that_is_not_read_harms_nobody(tmp_path):
    url = make_snapshot(tmp_path / "s", LAYOUT)
    rewrite(second_file(url))
    flip_a_bit_in(second_file(url), row_group=1, column="user_age")
    assert len(list(snapshot_feed(url))) == 9


def test_a_missing_file_of_a_snapshot_is_named_and_not_said_to_have_been_there(tmp_path):
    url = make_snapshot(tmp_path / "s", LAYOUT)
    second_file(url).unlink()
    text = ends_with(f"{FILE}.*No such file", lambda: list(snapshot_feed(url)))
    assert "the file is not there" in text


def test_a_missing_first_file_of_a_snapshot_is_named_when_it_is_opened(tmp_path):
    url = make_snapshot(tmp_path / "s", LAYOUT)
    (Path(url) / "train" / "part-00000.parquet").unlink()
    ends_with(r"train/part-00000\.parquet: its footer cannot be read: .*No such file", lambda: snapshot_feed(url))


def test_a_folder_that_is_missing_or_holds_no_file_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"/nowhere"):
        open_folder(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"/empty: there is no Parquet file in it"):
        open_folder(str(tmp_path / "empty"))


LOSSES = {  # in mid-epoch: what happens to the file, whether its footer was read before, and what is said
    "vanishes": (
        Path.unlink,
        0,
        r"row group 0.*the file is not there: .*No such file",
    ),
    "is cut short": (lambda path: cut_to(path, 0.1), 0, "its footer cannot be read: ."),
    "vanishes half read": (Path.unlink, 200, r"row group \d+.*the file is not there: .*No such file"),
    "is cut short half read": (
        lambda path: cut_to(path, 0.1),
        200,
        r"row group \d+, column 'row_id': it cannot be read: .",
    ),
}


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_file_that_is_lost_in_mid_epoch_is_named(tmp_path, how, loss, workers):
    change, after_rows, says = LOSSES[loss]
    url = make_snapshot(tmp_path / "s", [[40] * 4, [40] * 10])
    # In the order of the files, with memory for two row groups: the second file is begun well after the first.
    feed = HOW[how](url, workers=workers, shuffle=False, memory_bytes=10_000)
    rows: list[int] = []

    def run() -> None:
        for batch in feed:
            if len(rows) <= after_rows < len(rows) + batch.num_rows:
                change(second_file(url))
            rows.extend(batch["row_id"].tolist())

    ends_with(f"{FILE}.*{says}", run)
    assert rows == list(range(1, len(rows) + 1))
    assert after_rows < len(rows) < 560


WRONG_SCHEMAS = {
    "no such column": (lambda table: table.drop_columns(["item_idx"]), "the file has no such column"),
    "wider": (with_values("item_idx", pa.int64(), lambda values: None), "its type is int64, in the first file it is"),
    "text": (
        with_values("item_idx", pa.string(), lambda values: values.__setitem__(slice(None), map(str, values))),
        "its type is string, in the first file it is int32",
    ),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("fault", WRONG_SCHEMAS)
def test_another_schema_in_a_later_file_is_named_with_its_column(tmp_path, how, fault):
    url = make_snapshot(tmp_path / "s", LAYOUT)
    change, says = WRONG_SCHEMAS[fault]
    rewrite(second_file(url), change)
    # A folder's footers are all read when it is opened, and then the whole file is at fault.
    where = f"{FILE}, column" if how == "a folder" else f"{FILE}, row group 0, column"
    ends_with(f"{where} 'item_idx': {says}", lambda: list(HOW[how](url, shuffle=False)))


WRONG_VALUES = {
    "a null": (
        with_values("item_idx", pa.int32(), lambda values: values.__setitem__(60, None)),
        "column 'item_idx': 1 nulls, the first in row 10",
    ),
    "a list of another length": (
        with_values(
            "history",
            pa.list_(pa.field("element", pa.int32(), nullable=False)),
            lambda values: values.__setitem__(60, [1, 2, 3]),
        ),
        "column 'history': row 10 holds a list of 3 values, where every list should be 4 long",
    ),
    "a null for a list": (
        with_values(
            "history",
            pa.list_(pa.field("element", pa.int32(), nullable=False)),
            lambda values: values.__setitem__(60, None),
        ),
        "column 'history': 1 nulls, the first in row 10",
    ),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("fault", WRONG_VALUES)
def test_a_value_that_was_not_promised_is_named_with_row_group_column_and_row(tmp_path, how, fault):
    url = make_snapshot(tmp_path / "s", LAYOUT)
    change, says = WRONG_VALUES[fault]
    rewrite(second_file(url), change)
    ends_with(f"{FILE}, row group 1, {says}", lambda: list(HOW[how](url)))


def test_lists_of_unequal_length_with_as_many_values_in_all_are_refused(tmp_path):
    """3 + 5 values in two rows of 4: a reshape alone would take them."""
    url = make_snapshot(tmp_path / "s", LAYOUT)

    def shift(values: list) -> None:
        values[60], values[61] = values[60][:3], [*values[61], 1]

    kind = pa.list_(pa.field("element", pa.int32(), nullable=False))
    rewrite(second_file(url), with_values("history", kind, shift))
    ends_with("row 10 holds a list of 3 values", lambda: list(snapshot_feed(url)))


def test_a_row_group_with_fewer_rows_than_the_manifest_says_is_named(tmp_path):
    url = make_snapshot(tmp_path / "s", LAYOUT)
    rewrite(second_file(url), lambda table: table.slice(0, 70))
    ends_with(f"{FILE}, row group 1: it holds 20 rows, 30 were planned", lambda: list(snapshot_feed(url)))


def test_a_row_group_that_the_file_does_not_have_is_named_and_no_column_is_blamed(tmp_path):
    url = make_snapshot(tmp_path / "s", LAYOUT)
    rewrite(second_file(url), lambda table: table.slice(0, 50))
    text = ends_with(f"{FILE}, row group 1", lambda: list(snapshot_feed(url)))
    assert "column" not in text


# --- on two ranks ---


PROGRAM = """
import os, sys
from pathlib import Path
import horovod.torch as hvd
import torch
from schemas.snapshot import open_snapshot
from training.feed import Feed
from training.reader import open_part

url, folder = sys.argv[1:]
hvd.init()
Path(folder, f"rank-{hvd.rank()}").write_text(str(os.getpid()))
rows = open_part(open_snapshot(url), "train", columns=("row_id",))
feed = Feed(rows, batch_size_per_rank=5, rank=hvd.rank(), world_size=hvd.size(), shuffle=False)
for batch in feed:
    hvd.allreduce(batch["row_id"].sum(), name="step")
"""


def two_ranks(arguments: list[str]) -> tuple[int, str, float]:
    """Exit code, output and seconds of `python ARGUMENTS` under horovodrun."""
    horovodrun = Path(sys.executable).parent / "horovodrun"
    command = [str(horovodrun), "-np", "2", "--gloo", sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - began


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("damaged", [0, 1, 2, 3])
def test_a_file_cut_short_that_one_of_two_ranks_reads_ends_both(tmp_path, damaged):
    # Unshuffled, rank 0 reads the files 0 and 1, rank 1 the others; file 0 is opened by both.
    url = make_snapshot(tmp_path / "s", [[50]] * 4)
    cut_to(Path(url) / "train" / f"part-{damaged:05d}.parquet", 0.7)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    code, output, seconds = two_ranks([str(program), url, str(tmp_path)])
    assert code != 0
    assert seconds < 60
    assert re.search(rf"SnapshotDamaged: .*train/part-0000{damaged}\.parquet: its footer cannot be read", output)
    pids = [int((tmp_path / f"rank-{rank}").read_text()) for rank in range(2)]
    assert not any(map(is_running, pids))


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("damaged", [0, 1])
def test_a_file_that_only_one_rank_of_a_training_reads_ends_it_with_the_files_name(tmp_path, damaged):
    # In the first epoch each rank reads one of the two row groups; which one, the seed decides.
    url = make_snapshot(tmp_path / "s", [[100], [100]])
    path = Path(url) / "train" / f"part-{damaged:05d}.parquet"
    content = bytearray(path.read_bytes())
    content[20:600] = bytes(580)  # of the same size, so that only reading finds it
    path.write_bytes(bytes(content))
    arguments = ["-m", "training.train", "--snapshot", url, "--run", str(tmp_path / "run"), "--recipe", "two_tower"]
    code, output, seconds = two_ranks([*arguments, "--set", "model.recent=2", "--set", "batch_size_per_rank=20"])
    assert code != 0
    assert seconds < 60
    assert f"part-0000{damaged}.parquet, row group 0, column" in output
