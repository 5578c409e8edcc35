"""Pre-flight: ids outside their vocabulary are named to the row; the layout is told as the feed will see it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import SnapshotDamaged, UserError
from schemas.snapshot import open_snapshot
from tests.snapshots import NUM_ITEMS, make_snapshot
from training import check
from training.preflight import check_ids, layouts

LAST_ITEM = NUM_ITEMS + 2  # three reserved rows before


def rewrite(path: Path, change: dict[str, tuple[int, object]], *, statistics: bool) -> None:
    """Set a row of a column; row groups of 10 rows."""
    table = pq.read_table(path)
    for name, (row, value) in change.items():
        values = table[name].to_pylist()
        values[row] = value
        table = table.set_column(
            table.schema.get_field_index(name), table.field(name), pa.array(values, table.field(name).type)
        )
    pq.write_table(table, path, row_group_size=10, write_statistics=statistics)


@pytest.mark.parametrize("statistics", [True, False])
def test_an_id_beyond_its_vocabulary_is_named_with_feature_file_row_group_and_value(tmp_path, statistics):
    url = make_snapshot(tmp_path / "s", [[10, 10], [10]])
    rewrite(Path(url) / "train" / "part-00000.parquet", {"item_idx": (14, LAST_ITEM + 1)}, statistics=statistics)
    says = rf"'item_idx': train/part-00000.parquet, row group 1, row 4 holds {LAST_ITEM + 1}, .* 0 to {LAST_ITEM} "
    with pytest.raises(SnapshotDamaged, match=says):
        check_ids(open_snapshot(url))


@pytest.mark.parametrize("statistics", [True, False])
def test_a_negative_id_within_a_list_is_named_with_its_row(tmp_path, statistics):
    url = make_snapshot(tmp_path / "s", [[10, 10]])
    rewrite(Path(url) / "train" / "part-00000.parquet", {"history": (17, [3, 4, -1, 5])}, statistics=statistics)
    with pytest.raises(SnapshotDamaged, match=r"'history': .*row group 1, row 7 holds -1"):
        check_ids(open_snapshot(url))


def test_items_that_a_held_out_row_lists_are_checked_too(tmp_path):
    url = make_snapshot(tmp_path / "s", [[10]])
    rewrite(Path(url) / "valid" / "part-00000.parquet", {"seen": (0, [LAST_ITEM + 5])}, statistics=True)
    with pytest.raises(
        SnapshotDamaged, match=rf"'seen': valid/part-00000.parquet, row group 0, row 0 holds {LAST_ITEM + 5}"
    ):
        check_ids(open_snapshot(url))


@pytest.mark.parametrize("statistics", [True, False])
def test_the_last_row_of_a_vocabulary_is_within_it(tmp_path, statistics):
    url = make_snapshot(tmp_path / "s", [[10]])
    rewrite(Path(url) / "train" / "part-00000.parquet", {"item_idx": (3, LAST_ITEM)}, statistics=statistics)
    # user_idx, item_idx and history of 3 splits, 1 row group but for valid and test in 1 each; seen, negatives of two
    assert check_ids(open_snapshot(url)) == 3 * 3 + 2 * 2


def test_the_layout_counts_steps_and_names_what_does_not_fit(tmp_path):
    url = make_snapshot(tmp_path / "s", [[100] * 9, [100]])
    [train, valid, _] = layouts(open_snapshot(url), world_size=3, batch_size_per_rank=16, memory_bytes=1 << 28)
    assert (train.rows, train.files, train.row_groups, train.largest_row_group) == (1000, 2, 10, 100)
    assert (train.steps, train.last_global_batch) == (21, 1000 - 20 * 48)
    assert train.file_skew == pytest.approx(1.8)
    assert train.lanes == 48  # 64 // 3 a rank, and no more than a batch has rows
    assert len(train.warnings) == 1  # one file of 900 rows beside one of 100
    assert (valid.rows, valid.steps, valid.lanes) == (40, 1, 3)
    assert valid.warnings == ("1 row groups for 3 ranks: several read the same one",)


def test_row_groups_that_do_not_fit_the_memory_are_refused_with_what_to_do(tmp_path):
    url = make_snapshot(tmp_path / "s", [[5000]])
    with pytest.raises(UserError, match=r"largest row group takes .* MB.*raise memory_bytes"):
        layouts(open_snapshot(url), world_size=1, batch_size_per_rank=10, memory_bytes=100_000)


def test_the_command_prints_the_table_and_ends_with_0_or_in_one_line_with_2(tmp_path, capsys):
    url = make_snapshot(tmp_path / "s", [[100] * 9, [100]])
    assert check.main([url, "--ranks", "2", "--batch-size", "64"]) == 0
    shown = capsys.readouterr().out
    assert "2 rank(s) x 64 rows" in shown
    assert "5 files whole and unchanged, 1,080 rows, the ledger adds up" in shown
    path = Path(url) / "train" / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    assert check.main([url]) == 2
    assert "train/part-00001.parquet has" in capsys.readouterr().err
