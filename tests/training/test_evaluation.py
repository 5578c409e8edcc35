"""Ranks of held-out items, worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from schemas.features import NUM_RESERVED
from training.batch import Batch, Ragged
from training.evaluation import evaluate, full_ranks, sampled_ranks
from training.metrics import UNREACHABLE
from training.ranks import OneRank

SCORES = torch.tensor([[5.0, 3.0, 4.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 9.0, 8.0, 7.0]])


def lists(*rows: list[int]) -> Ragged:
    """Lists of item places, as rows of the vocabulary."""
    sizes = torch.tensor([0, *(len(row) for row in rows)])
    values = torch.tensor([place + NUM_RESERVED for row in rows for place in row], dtype=torch.int32)
    return Ragged(values, sizes.cumsum(0))


class Fixed(nn.Module):
    """Gives the rows of SCORES to the batch's rows."""

    columns = ("user_idx",)

    def users(self, batch: Batch) -> Tensor:
        return SCORES[batch["user_idx"]]

    def items(self, item_idx_M: Tensor) -> Tensor:
        return torch.eye(4)[item_idx_M - NUM_RESERVED]


def test_full_ranks_leave_out_what_was_seen_and_settle_ties_by_the_lower_index():
    # Row 0: item 2 (4.0) stands behind item 0 (5.0), which was seen: rank 1. Row 1: four equal scores, item 2 third.
    # Row 2: item 3 (7.0) behind 9 and 8, of which 9 was seen: rank 2.
    ranks = full_ranks(SCORES, torch.tensor([2, 2, 3]), lists([0], [], [1]))
    assert ranks.tolist() == [1, 3, 2]


def test_an_item_that_was_seen_before_is_still_ranked_as_the_rows_own():
    assert full_ranks(SCORES[:1], torch.tensor([2]), lists([2, 0])).tolist() == [1]


def test_an_item_that_was_not_in_train_cannot_be_reached():
    target = torch.tensor([2 - NUM_RESERVED, 0, 0])  # idx 2: unseen
    assert full_ranks(SCORES, target, lists([], [], []))[0] == UNREACHABLE
    assert sampled_ranks(SCORES, target, lists([1], [], []))[0] == UNREACHABLE


def test_sampled_ranks_count_the_negatives_that_score_as_high():
    ranks = sampled_ranks(SCORES, torch.tensor([2, 0, 3]), lists([0, 1], [1, 2, 3], []))
    assert ranks.tolist() == [2, 4, 1]


def test_an_evaluation_by_hand():
    batch = Batch(
        columns={
            "user_idx": torch.tensor([0, 2]),
            "row_id": torch.tensor([10, 11]),
            "query_id": torch.tensor([1, 2]),
            "item_idx": torch.tensor([1, 0]) + NUM_RESERVED,
            "seen": lists([0], []),
            "negatives": lists([3], [1, 2]),
        },
        positions=torch.arange(2),
        global_rows=2,
        step=0,
    )
    found = evaluate(
        Fixed(), [batch], OneRank(), counts=torch.tensor([8, 4, 2, 2]), ks=(1, 2), device=torch.device("cpu")
    )
    # Row 0: item 1 (3.0) behind item 2 (4.0), item 0 was seen: rank 2. Row 1: item 0 (0.0) is last: rank 4.
    assert found.full["recall@1"] == 0.0
    assert found.full["recall@2"] == 0.5
    assert found.full["mrr@2"] == pytest.approx(0.25)
    # Firsts: item 2 for row 0, item 1 for row 1; first two: 2 and 1, 1 and 2.
    assert found.full["coverage@1"] == 0.5
    assert found.full["coverage@2"] == 0.5
    # Shares of train: 1/2, 1/4, 1/8, 1/8; so 3 bits for item 2, 2 for item 1.
    assert found.full["novelty@1"] == found.full["novelty@2"] == 2.5
    # Listed first, on average (1/8 + 1/4) / 2 = 3/16; chosen, items 1 and 0: (1/4 + 1/2) / 2 = 6/16.
    assert found.full["popularity_lift@1"] == pytest.approx(3 / 6 - 1)
    # Among negatives: row 0 before item 3: rank 1; row 1 behind both: rank 3.
    assert found.sampled["recall@1"] == 0.5
    assert found.sampled["recall@2"] == 0.5
    assert (found.num_rows, found.num_queries, found.row_id_sum) == (2, 2, 21)


def test_scores_that_are_no_numbers_are_refused():
    class Broken(Fixed):
        def users(self, batch: Batch) -> Tensor:
            return SCORES[batch["user_idx"]] * float("nan")

    batch = Batch(
        columns={name: torch.tensor([3]) for name in ("user_idx", "row_id", "query_id", "item_idx")}
        | {"user_idx": torch.tensor([0]), "seen": lists([]), "negatives": lists([])},
        positions=torch.arange(1),
        global_rows=1,
        step=0,
    )
    with pytest.raises(ValueError, match="no finite numbers"):
        evaluate(Broken(), [batch], OneRank(), counts=torch.ones(4), ks=(1,), device=torch.device("cpu"))
