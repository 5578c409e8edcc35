"""Levers and a later snapshot on two ranks for real: the losses and metrics of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines import launch
from schemas.bundle import RunEvaluation
from tests.snapshots import make_snapshot, write_vocabularies
from tests.training.test_later_snapshot import ITEMS, LATER_ITEMS, LATER_USERS, USERS, later_than
from tests.training.test_levers import with_propensities

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SETTINGS = (
    "model.width=8",
    "model.dropout=0",
    "model.augment={share: 0.8, crop: 0.5, mask: 0.3, reorder: 0.6}",
    "loss.propensity={floor: 0.1}",
    "loss.negative_rows={below: 1}",
    "epochs=1",
)


def test_two_ranks_learn_with_every_lever_what_one_does_and_judge_it_on_a_later_snapshot_alike(tmp_path: Path) -> None:
    url = with_propensities(make_snapshot(tmp_path / "s", [[200, 150], [197]]))
    url = write_vocabularies(url, {"user": USERS, "item": ITEMS})
    later = later_than(url, tmp_path / "later", items=LATER_ITEMS, users=LATER_USERS)
    losses, judged = [], []
    for ranks in (1, 2):
        run, out = tmp_path / f"on-{ranks}", tmp_path / f"on-{ranks}.json"
        words = [word for one in (*SETTINGS, f"batch_size_per_rank={64 // ranks}") for word in ("--set", one)]
        arguments = ["--snapshot", url, "--run", str(run), "--recipe", "sasrec", *words]
        assert launch.on_ranks("training.train", arguments, ranks=ranks) == 0
        losses.append(json.loads((run / "metrics.jsonl").read_text())["loss"])
        # The run of one rank, judged by one and by two.
        words = ["--run", str(tmp_path / "on-1"), "--snapshot", later, "--slice", "label", "--out", str(out)]
        assert launch.on_ranks("training.evaluate", words, ranks=ranks) == 0
        judged.append(RunEvaluation.model_validate_json(out.read_text()).model)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert judged[1].full == pytest.approx(judged[0].full)
    assert judged[1].slices == judged[0].slices
