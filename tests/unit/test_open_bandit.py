"""Open Bandit Data as it is read: frequencies of the policy by position, and a reward model that never saw its row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.open_bandit import Campaign, read_campaign, reward_model

HEADER = "item_id,position,click,propensity_score,user_feature_0,user_feature_1,user_feature_2,user_feature_3"
AFFINITIES = "user-item_affinity_0,user-item_affinity_1"


def write_log(folder: Path, rows: list[tuple[int, int, int, float]]) -> None:
    """Rows of item, position from 1, click, propensity."""
    of_users = [f"a,{'xy'[n % 2]},c,d,0.{n % 7},0.{n % 3}" for n in range(len(rows))]
    lines = [",".join(map(str, (*row, user))) for row, user in zip(rows, of_users, strict=True)]
    folder.mkdir(parents=True)
    (folder / "men.csv").write_text("\n".join([f"{HEADER},{AFFINITIES}", *lines]))
    # Not in the order of their numbers.
    items = ["item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3", "1,0.5,s,t,u", "0,-0.5,s,t,v"]
    (folder / "item_context.csv").write_text("\n".join(items))


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    shown = [(n % 2, n % 3 + 1, int(n % 5 in (0, 1)), 0.5) for n in range(60)]
    write_log(tmp_path / "random" / "men", shown)
    own = [
        (0, 1, 1, 0.9),
        (0, 1, 0, 0.8),
        (0, 1, 0, 0.9),
        (1, 1, 1, 0.2),
        (1, 2, 0, 0.6),
        (0, 3, 1, 0.7),
        (1, 3, 1, 0.3),
    ]
    write_log(tmp_path / "bts" / "men", own)
    return read_campaign(tmp_path, "men")


def test_a_policy_shows_an_item_at_a_position_as_often_as_its_log_does(campaign):
    assert campaign.frequency.tolist() == [[0.75, 0.25], [0.0, 1.0], [0.5, 0.5]]
    assert campaign.own_reward.mean() == pytest.approx(4 / 7)
    # Rows of item 0, 1, 0, 1 at positions 1, 2, 3, 1.
    assert campaign.target[:4].tolist() == [0.75, 1.0, 0.5, 0.25]
    assert campaign.targets[:3].tolist() == [[0.75, 0.25], [0.0, 1.0], [0.5, 0.5]]
    assert set(campaign.propensity.tolist()) == {0.5}
    assert campaign.items["item_feature_0"].to_pylist() == [-0.5, 0.5], "by item"


def test_the_reward_model_of_a_row_never_saw_it(campaign):
    found = reward_model(campaign)
    assert found.shape == (60, 2)
    assert ((found > 0) & (found < 1)).all()
    flipped = campaign.reward.copy()
    flipped[7] = 1 - flipped[7]
    other = reward_model(replace(campaign, reward=flipped))
    assert other[7].tolist() == found[7].tolist()
    assert np.abs(other - found).max() > 1e-4, "those that learned from it are others"
