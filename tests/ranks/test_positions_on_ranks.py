"""SASRec on all positions on two ranks for real: the losses of one, though rows hold unequal numbers of positions."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import launch
from schemas.manifest import MANIFEST, Manifest
from tests.snapshots import HISTORY, make_snapshot, write_parquet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def with_short_histories(url: str) -> None:
    """Pad the history of row i of train but for its last i % (HISTORY + 1) items."""
    root = Path(url)
    manifest = Manifest.model_validate_json((root / MANIFEST).read_text())
    files = []
    for file in manifest.parts["train"]:
        table = pq.read_table(root / file.path)
        rows = table["history"].to_pylist()
        short = [[0] * (HISTORY - i % (HISTORY + 1)) + row[HISTORY - i % (HISTORY + 1) :] for i, row in enumerate(rows)]
        field = table.schema.field("history")
        place = table.schema.get_field_index("history")
        table = table.set_column(place, field, pa.array(short, field.type))
        files.append(write_parquet(root / file.path, table, file.row_groups, root))
    parts = {**manifest.parts, "train": tuple(files)}
    (root / MANIFEST).write_text(manifest.model_copy(update={"parts": parts}).model_dump_json())


def test_two_ranks_learn_from_all_positions_what_one_does(tmp_path):
    url = make_snapshot(tmp_path / "s", [[200, 150], [197]])
    with_short_histories(url)
    found = {}
    for ranks in (1, 2):
        run = tmp_path / f"on-{ranks}"
        arguments = ["--snapshot", url, "--run", str(run), "--recipe", "sasrec"]
        for setting in ("model.width=8", "model.dropout=0", "loss.positions=all", "epochs=2", "patience=2",
                        f"batch_size_per_rank={64 // ranks}"):  # fmt: skip
            arguments += ["--set", setting]
        assert launch.on_ranks("training.train", arguments, ranks=ranks) == 0
        found[ranks] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for one, two in zip(found[1], found[2], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["diagnosis"]["gradient_norm_mean"] == pytest.approx(one["diagnosis"]["gradient_norm_mean"], rel=1e-3)
        assert two["valid"]["full"] == pytest.approx(one["valid"]["full"], abs=0.03)
