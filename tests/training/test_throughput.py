"""headrace throughput: on a snapshot and on a plain folder, one table and one line of JSON."""

from __future__ import annotations

import json

import pytest

from tests.snapshots import make_snapshot
from training import throughput


@pytest.mark.parametrize(
    ("what", "bytes_of_offsets"),
    [
        ("", 0),  # the snapshot promises histories of 4 items: a matrix
        ("/train", 8 * (600 + 10)),  # a folder does not: values and offsets, one more than rows in each of 10 batches
    ],
)
def test_a_snapshot_and_a_folder_are_measured(tmp_path, capsys, what, bytes_of_offsets):
    url = make_snapshot(tmp_path / "s", [[300, 200], [100]])
    arguments = [url + what, "--batch-size", "64", "--passes", "2", "--columns", "row_id,item_idx,history"]
    assert throughput.main(arguments) == 0
    shown = capsys.readouterr().out.splitlines()
    result = json.loads(shown[-1])
    assert result["rows"] == 600
    assert result["bytes"] == 600 * (8 + 4 + 4 * 4) + bytes_of_offsets
    assert result["rows_per_s"] == pytest.approx(600 / result["seconds"], rel=0.5)
    assert 0 < result["first_batch_s"] <= result["seconds"]


def test_a_mistake_is_one_line(tmp_path, capsys):
    url = make_snapshot(tmp_path / "s", [[10]])
    assert throughput.main([url, "--columns", "row_idd"]) == 2
    assert "no column 'row_idd'; did you mean 'row_id'?" in capsys.readouterr().err
