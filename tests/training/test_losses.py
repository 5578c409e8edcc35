"""Losses by hand, and what their randomness may depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.features import NUM_RESERVED
from training.batch import Batch
from training.losses import ItemSampler, bpr, counted, sampled_softmax

NUM_ITEMS, WIDTH = 50, 4


class Vectors(nn.Module):
    """Users and items are rows of fixed random tables."""

    columns = ("user_idx",)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.u = torch.randn(10, WIDTH, generator=generator)
        self.i = torch.randn(NUM_ITEMS + NUM_RESERVED, WIDTH, generator=generator)

    def users(self, batch: Batch) -> Tensor:
        return self.u[batch["user_idx"]]

    def items(self, item_idx_M: Tensor) -> Tensor:
        return self.i[item_idx_M]


def batch(step: int = 0, rows: int = 6, of: int = 6, first: int = 0) -> Batch:
    users = torch.arange(first, first + rows)
    return Batch(
        columns={"user_idx": users, "item_idx": (users * 7) % NUM_ITEMS + NUM_RESERVED},
        positions=users,
        global_rows=of,
        step=step,
    )


def sampler(exponent: float = 0.5) -> ItemSampler:
    return ItemSampler(torch.arange(1, NUM_ITEMS + 1), exponent, seed=3)


def full_softmax(rows: Batch) -> Tensor:
    model = Vectors()
    scores = model.users(rows) @ model.i[NUM_RESERVED:].T
    return F.cross_entropy(scores, rows["item_idx"] - NUM_RESERVED, reduction="none")


def test_with_all_items_the_loss_is_the_softmax_over_all_items():
    rows = batch()
    found = sampled_softmax(Vectors(), rows, sampler(), num_sampled=0, epoch=0, temperature=1.0)
    assert torch.allclose(found, full_softmax(rows))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_the_correction_makes_the_sampled_sum_right_on_average_whatever_the_sampling(exponent):
    rows = batch()
    losses = [
        sampled_softmax(Vectors(), batch(step), sampler(exponent), num_sampled=NUM_ITEMS - 1, epoch=0, temperature=1.0)
        for step in range(400)
    ]
    own = (Vectors().users(rows) * Vectors().items(rows["item_idx"])).sum(1)
    estimated_sum = torch.stack([(loss + own).exp() for loss in losses]).mean(0)
    true_sum = (full_softmax(rows) + own).exp()
    assert torch.allclose(estimated_sum, true_sum, rtol=0.1)


def test_excluded_items_take_no_part_but_for_the_rows_own():
    rows = batch(rows=2)  # their items are the first and the eighth
    padding, first, third = 0, NUM_RESERVED, NUM_RESERVED + 2
    excluded_BL = torch.tensor([[padding, first, third], [padding, padding, padding]], dtype=torch.int32)
    found = sampled_softmax(
        Vectors(), rows, sampler(), num_sampled=0, epoch=0, temperature=1.0, excluded_BL=excluded_BL
    )
    scores_N = Vectors().u[0] @ Vectors().i[NUM_RESERVED:].T
    without_third = torch.cat([scores_N[:2], scores_N[3:]])
    assert found[0].item() == pytest.approx(float(without_third.logsumexp(0) - scores_N[0]), rel=1e-5)
    assert torch.equal(found[1], full_softmax(rows)[1])


def test_of_sampled_items_excluded_ones_are_left_out_alike():
    rows, items = batch(), torch.arange(NUM_RESERVED, NUM_RESERVED + NUM_ITEMS)
    all_of_them, excluded_BL = items.expand(6, -1), items[items % 3 > 0].expand(6, -1)
    settings = {"num_sampled": NUM_ITEMS - 1, "epoch": 0, "temperature": 1.0}
    nothing_left = sampled_softmax(Vectors(), rows, sampler(), excluded_BL=all_of_them, **settings)
    assert torch.allclose(nothing_left, torch.zeros(6), atol=1e-6)
    losses = [
        sampled_softmax(Vectors(), batch(step), sampler(), excluded_BL=excluded_BL, **settings) for step in range(400)
    ]
    own_B = (Vectors().users(rows) * Vectors().items(rows["item_idx"])).sum(1)
    exact = sampled_softmax(
        Vectors(), rows, sampler(), num_sampled=0, epoch=0, temperature=1.0, excluded_BL=excluded_BL
    )
    estimated_sum = torch.stack([(loss + own_B).exp() for loss in losses]).mean(0)
    assert torch.allclose(estimated_sum, (exact + own_B).exp(), rtol=0.1)


def test_bpr_by_hand():
    rows = batch(rows=2, of=2)
    negatives = sampler().draw(2, epoch=5, step=0)
    model = Vectors()
    expected = []
    for row in range(2):
        difference = model.u[row] @ (model.i[rows["item_idx"][row]] - model.i[negatives[row]])
        expected.append(-math.log(1 / (1 + math.exp(-float(difference)))))
    assert bpr(model, rows, sampler(), l2=0.0, epoch=5).tolist() == pytest.approx(expected, rel=1e-4)


def test_a_rank_draws_for_its_rows_what_one_rank_would_have_drawn_for_them():
    whole = bpr(Vectors(), batch(rows=6, of=6), sampler(), l2=0.1, epoch=1)
    part = bpr(Vectors(), batch(rows=3, of=6, first=3), sampler(), l2=0.1, epoch=1)
    assert torch.equal(whole[3:], part)


def test_items_are_drawn_in_proportion_to_their_count_to_the_power():
    counts = torch.tensor([1, 4, 16])
    drawn = ItemSampler(counts, 0.5, seed=0).draw(70_000, epoch=0, step=0) - NUM_RESERVED
    shares = np.bincount(drawn.numpy(), minlength=3) / 70_000
    assert shares == pytest.approx([1 / 7, 2 / 7, 4 / 7], abs=0.01)


def test_rows_whose_item_the_vocabulary_left_out_teach_nothing():
    rows = batch(rows=2)
    unknown = Batch(
        columns={**rows.columns, "item_idx": torch.tensor([2, 5])}, positions=rows.positions, global_rows=2, step=0
    )
    loss = counted(sampled_softmax(Vectors(), unknown, sampler(), num_sampled=0, epoch=0, temperature=1.0), unknown)
    assert loss[0] == 0
    assert loss[1] > 0
