"""Histories cropped, masked and reordered: by hand, whatever batch and rank a row is in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.snapshots import make_snapshot
from tests.training.test_levers import batch_of, learner, with_propensities
from training.click_metrics import mixed
from training.history_augmentation import augmented, cropped, masked, reordered
from training.recipe import AugmentSettings
from training.row_random import _mixed, uniform

HISTORY = torch.tensor([[0, 0, 11, 12, 13, 14], [0, 0, 0, 0, 0, 0], [21, 22, 23, 24, 25, 26]], dtype=torch.int32)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return with_propensities(make_snapshot(tmp_path_factory.mktemp("data") / "s", [[90, 70], [40]]))


def test_a_part_of_a_history_by_hand():
    where = torch.tensor([0.0, 0.5, 0.99])
    # Two of four from the first on; none of none; three of six from the last place on where there are three.
    assert cropped(HISTORY, 0.5, where).tolist() == [[0, 0, 0, 0, 11, 12], [0] * 6, [0, 0, 0, 24, 25, 26]]
    # At least one: a tenth of four is none.
    assert cropped(HISTORY[:1], 0.1, torch.tensor([0.5])).tolist() == [[0, 0, 0, 0, 0, 13]]


def test_masked_items_by_hand():
    numbers = torch.tensor([[0.0, 0.0, 0.9, 0.2, 0.1, 0.5], [0.1] * 6, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]])
    found = masked(HISTORY, 0.5, numbers.double(), 1)
    assert found.tolist() == [[0, 0, 11, 1, 1, 14], [0] * 6, [21, 22, 23, 1, 1, 1]]
    assert found.dtype == torch.int32


def test_a_part_in_another_order_by_hand():
    numbers = torch.tensor([[0.0, 0.0, 0.9, 0.2, 0.1, 0.5], [0.1] * 6, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]]).double()
    # Half of four from the second on (places 3 and 4: 0.2, 0.1), and three of six from the third on.
    where = torch.tensor([0.4, 0.5, 0.5])
    assert reordered(HISTORY, 0.5, where, numbers).tolist() == [
        [0, 0, 11, 13, 12, 14], [0] * 6, [21, 22, 25, 24, 23, 26],
    ]  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=8),
    st.sampled_from([{"crop": 0.6}, {"mask": 0.4}, {"reorder": 0.7}, {"crop": 0.3, "mask": 0.9, "reorder": 1.0}]),
    st.integers(0, 5),
)
def test_what_is_left_of_a_history_are_its_own_items_left_padded(lengths, operators, epoch):
    histories = [[0] * (6 - n) + [10 * row + place + 3 for place in range(n)] for row, n in enumerate(lengths)]
    rows = batch_of(history=histories, row_id=list(range(len(lengths))))
    found = augmented(rows, AugmentSettings(share=1.0, **operators), mask=1, seed=3, epoch=epoch)["history"]
    for before, after, n in zip(histories, found.tolist(), lengths, strict=True):
        held = [item for item in after if item]
        assert after == [0] * (6 - len(held)) + held
        assert {*held} - {1} <= {*before}
        assert len(held) >= min(1, n)
        if "crop" not in operators:
            assert len(held) == n
        if "mask" not in operators:
            assert 1 not in held


def test_what_is_drawn_depends_on_seed_epoch_and_row_alone():
    ids = torch.tensor([5, -7, 9, 1 << 60])
    drawn = uniform(ids, 4, seed=1, epoch=2, salt=1)
    assert torch.equal(uniform(ids[2:], 4, seed=1, epoch=2, salt=1), drawn[2:])
    for other in ({"seed": 2}, {"epoch": 3}, {"salt": 2}):
        assert not (uniform(ids, 4, **({"seed": 1, "epoch": 2, "salt": 1} | other)) == drawn).any()
    numbers = uniform(torch.arange(2000), 5, seed=0, epoch=0, salt=0)
    assert bool(((numbers >= 0) & (numbers < 1)).all())
    assert numbers.mean(0).tolist() == pytest.approx([0.5] * 5, abs=0.02)  # 3 standard errors
    assert np.corrcoef(numbers.numpy().T)[~np.eye(5, dtype=bool)] == pytest.approx(0, abs=0.08)
    values = np.array([0, 1, -1, 1 << 62, -(1 << 62)])
    assert _mixed(torch.from_numpy(values)).numpy().tobytes() == mixed(values).tobytes()  # numpy has unsigned numbers


def test_half_of_the_rows_are_varied_and_evaluation_and_other_columns_are_left_alone(url):
    trainer = learner(url, "sasrec", "model.augment={share: 0.5, reorder: 1.0}")
    assert "row_id" in trainer.task.columns
    rows = batch_of(history=[[3, 4, 5, 6]] * 1000, row_id=list(range(1000)), user_idx=[4] * 1000)
    found = augmented(rows, AugmentSettings(share=0.5, reorder=1.0), mask=1, seed=0, epoch=0)
    changed = (found["history"] != rows["history"]).any(1).double().mean()
    assert float(changed) == pytest.approx(0.5 * 23 / 24, abs=0.05)  # one order of 24 is the one it was
    assert found["user_idx"] is rows["user_idx"]
    once, again = trainer.evaluate("valid"), trainer.evaluate("valid")
    assert once == again
