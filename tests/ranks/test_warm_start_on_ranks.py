"""Warm start on two ranks for real: the model of one, from a bundle that one rank or two have written."""

from __future__ import annotations

import json

import pytest

from pipelines import launch
from pipelines.cli import main
from tests.snapshots import NUM_ITEMS, NUM_USERS, make_snapshot, write_vocabularies

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SETTINGS = ["model.width=4", "model.top=[8]", "model.tables=sharded", "epochs=1", "batch_size_per_rank=64",
            "optimizer.table_learning_rate=0.3"]  # fmt: skip


def test_two_ranks_begin_with_the_rows_that_one_rank_begins_with(tmp_path, capfd):
    items = [f"i{i}" for i in range(NUM_ITEMS)]
    users = [f"u{i}" for i in range(NUM_USERS)]
    first = write_vocabularies(make_snapshot(tmp_path / "one", [[300]]), {"user": users, "item": items})
    turned = {"user": users[::-1], "item": ["new", *items[:0:-1]]}
    second = write_vocabularies(make_snapshot(tmp_path / "two", [[300]]), turned)
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    arguments = ["--recipe", "dlrm", *settings]
    begun = [*arguments, "--snapshot", first, "--run", str(tmp_path / "first")]
    assert launch.on_ranks("training.train", begun, ranks=2) == 0
    bundle = tmp_path / "first" / "bundle"
    assert len([*bundle.glob("embeddings-*-of-00002.safetensors")]) == 2

    found = {}
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.json"
        program = [second, str(bundle), str(out)]
        assert launch.on_ranks("tests.ranks.warm_start_program", program, ranks=ranks) == 0
        found[ranks] = json.loads(out.read_text())
    assert found[1] == pytest.approx(found[2], abs=1e-6)
    assert len({round(value, 4) for value in found[1]}) > 10  # it has learned something

    (tmp_path / "seen-by-0").symlink_to(bundle)
    capfd.readouterr()
    program = [second, str(tmp_path / "seen-by-{rank}"), str(tmp_path / "none.json")]
    assert launch.on_ranks("tests.ranks.warm_start_program", program, ranks=2) != 0
    blind = f"1 ranks do not see {tmp_path / 'seen-by-0'}: give a folder that all hosts share."
    assert f"warm_start: --warm-start: {blind}" in capfd.readouterr().out

    goes_on = [*arguments, "--warm-start", str(tmp_path / "first"), "--ranks", "2"]
    assert main(["train", *goes_on, "--snapshot", second, "--run", str(tmp_path / "second")]) == 0
    shown = capfd.readouterr().out
    assert f"begins with the weights of {bundle}" in shown
    counts = [line.removeprefix("train: ").split() for line in shown.splitlines()]
    assert ["vocab/item", "32", "1", "1"] in counts
    assert ["vocab/user", "23", "0", "0"] in counts
