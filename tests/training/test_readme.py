"""The README's example of the feed runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

README = Path(__file__).parent.parent.parent / "README.md"


def test_the_example_of_the_feed_sees_each_row_three_times(tmp_path, monkeypatch):
    [example] = [block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "Feed(" in block]
    (tmp_path / "clicks").mkdir()
    ids = np.arange(10_000, dtype=np.int32)
    pq.write_table(pa.table({"user_idx": ids, "item_idx": ids, "label": ids % 2}), tmp_path / "clicks" / "a.parquet")
    monkeypatch.chdir(tmp_path)
    seen: list[int] = []
    names = {"seen": seen}
    exec(example.replace("...  # your step", "seen.extend(users.tolist())"), names)
    assert sorted(seen) == sorted(ids.tolist() * 3)
    assert names["checkpoint"]["epoch"] == 2
