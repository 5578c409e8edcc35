"""Folders of Parquet: Hive's name=value folders as columns, names of any kind, and what is no folder of rows."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from schemas.errors import UserError
from tests.training.test_columns import EACH, FIRST_FILE, dtype_of, fed, in_bytes, with_row_id, write
from training.feed import Feed
from training.reader import open_folder


def hive_folder(root: Path) -> str:
    """Days 1, 2 and 10 of two regions, three rows each; row_id = 6 * place of the day + 3 * place of the region + i."""
    row_id = 0
    for day in (1, 2, 10):
        for region in ("eu", "us west"):
            folder = root / f"day={day}" / f"region={region}"
            folder.mkdir(parents=True)
            table = pa.table({"row_id": range(row_id, row_id + 3), "x": [f"{day} {region}"] * 3})
            pq.write_table(table, folder / "part.parquet", row_group_size=2)
            row_id += 3
    return str(root)


DAYS = [1] * 6 + [2] * 6 + [10] * 6
REGIONS = in_bytes((["eu"] * 3 + ["us west"] * 3) * 3)


def test_hive_folders_are_columns_of_whole_numbers_and_of_texts(tmp_path):
    rows = open_folder(hive_folder(tmp_path))
    assert rows.schema.names == ["row_id", "x", "day", "region"]
    assert dtype_of(rows, "day") == torch.int64
    found = fed(rows)
    assert found["day"] == DAYS
    assert found["region"] == REGIONS
    assert found["x"] == in_bytes([f"{day} {region}" for day in (1, 2, 10) for region in ["eu"] * 3 + ["us west"] * 3])


@pytest.mark.parametrize("columns", [["day", "row_id"], ["row_id", "region"], ["region", "row_id", "day"]])
def test_of_hive_folders_only_the_columns_asked_for_come(tmp_path, columns):
    found = fed(open_folder(hive_folder(tmp_path), columns=columns))
    expected = {"row_id": list(range(18)), "day": DAYS, "region": REGIONS}
    assert found == {name: expected[name] for name in columns}


def test_columns_of_hive_folders_come_alone_too(tmp_path):
    batches = list(Feed(open_folder(hive_folder(tmp_path), columns=["day"]), batch_size_per_rank=5))
    assert sorted(day for batch in batches for day in batch["day"].tolist()) == DAYS


def test_days_are_texts_where_one_is_no_number(tmp_path):
    for row_id, day in enumerate(["1", "two", "3", "4", "5", "6"]):
        (tmp_path / f"day={day}").mkdir()
        pq.write_table(pa.table({"row_id": [row_id]}), tmp_path / f"day={day}" / "part.parquet")
    assert fed(open_folder(str(tmp_path)))["day"] == in_bytes(["1", "two", "3", "4", "5", "6"])


def test_a_column_that_folders_and_files_hold_comes_once_as_the_folders_say(tmp_path):
    for row_id, day in enumerate([1, 2, 3, 4, 5, 6]):
        (tmp_path / f"day={day}").mkdir()
        pq.write_table(pa.table({"row_id": [row_id], "day": [day]}), tmp_path / f"day={day}" / "part.parquet")
    assert fed(open_folder(str(tmp_path)))["day"] == [1, 2, 3, 4, 5, 6]


# Names of folders.


@pytest.mark.parametrize("name", ["with space", "100%", "a%20b", "run#3", "what?", "ü", "a;b", "list[0]", "a+b=c"])
def test_a_folder_of_any_name_is_opened(tmp_path, name):
    url = write(tmp_path / name / "train", with_row_id())
    assert fed(open_folder(url)) == {"row_id": list(EACH)}
    assert fed(open_folder(f"{url}/part-0.parquet")) == {"row_id": list(range(FIRST_FILE))}


def test_a_folder_is_found_from_where_one_stands(tmp_path, monkeypatch):
    write(tmp_path / "rows", with_row_id())
    monkeypatch.chdir(tmp_path)
    assert fed(open_folder("rows")) == {"row_id": list(EACH)}
    assert fed(open_folder((tmp_path / "rows").as_uri())) == {"row_id": list(EACH)}


@pytest.mark.parametrize("url", ["/nowhere/at/all", "nosuch://bucket/rows"])
def test_what_cannot_be_opened_is_named(url):
    with pytest.raises(UserError, match=re.escape(url)):
        open_folder(url)


def test_a_folder_without_parquet_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}: there is no Parquet file in it"):
        open_folder(str(tmp_path))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["part.parquet", "day=1/part.parquet"], "intermediate directory"),
        (["eu/part.parquet"], "eu"),
        (["day=1/part.parquet", "region=eu/part.parquet"], "day and by region"),
    ],
    ids=["files at two levels", "a folder without a name and value", "two names at one level"],
)
def test_folders_that_make_no_columns_are_refused_by_what_is_wrong(tmp_path, files, said):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        pq.write_table(with_row_id(), tmp_path / file)
    with pytest.raises(UserError, match=rf"{tmp_path}.*{said}"):
        open_folder(str(tmp_path))
