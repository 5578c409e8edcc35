"""The image classifier on two ranks for real: losses and counts of one, and statistics that are the same on both."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import launch
from tests.image_snapshots import make_image_snapshot
from tests.image_weights import published

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_two_ranks_learn_what_one_does_and_hold_one_set_of_statistics(tmp_path):
    snapshot, weights = make_image_snapshot(tmp_path / "s"), tmp_path / "lite0.pth"
    torch.save(published(), weights)

    def on(ranks: int) -> dict[str, Any]:
        out = tmp_path / f"{ranks}.json"
        assert launch.on_ranks("tests.ranks.image_program", [snapshot.url, str(weights), str(out)], ranks=ranks) == 0
        return json.loads(out.read_text())

    alone, found = on(1)["learned"], on(2)
    assert len({round(loss, 3) for loss in alone["losses"]}) == 4
    assert found["learned"]["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert found["learned"]["metrics"] == pytest.approx(alone["metrics"], rel=1e-3)
    assert found["learned"]["confusions"] == alone["confusions"]
    before, after = (np.array(found["statistics"][when]) for when in ("before", "after"))
    assert not np.allclose(before[0], before[1], atol=1e-3)
    assert after[0].tolist() == after[1].tolist()
    assert after[0] == pytest.approx(before.mean(0), abs=1e-6)
