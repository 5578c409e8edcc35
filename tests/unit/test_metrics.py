"""Ranking metrics against values worked by hand and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from training.metrics import UNREACHABLE, ranking_metrics


def test_two_queries_by_hand():
    # Query 7 has items at ranks 1 and 4 and one that cannot be reached; query 9 has one item at rank 3.
    found = ranking_metrics(
        np.array([7, 9, 7, 7], dtype=np.int64), np.array([4, 3, 1, UNREACHABLE], dtype=np.int32), [2, 4]
    )
    assert found["recall@2"] == pytest.approx((1 / 3 + 0) / 2)
    assert found["recall@4"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["hr@2"] == pytest.approx(1 / 2)
    assert found["hr@4"] == 1.0
    assert found["mrr@2"] == pytest.approx((1 + 0) / 2)
    assert found["mrr@4"] == pytest.approx((1 + 1 / 3) / 2)
    best_of_7_at_4 = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    ndcg_of_7_at_4 = (1 + 1 / math.log2(5)) / best_of_7_at_4
    assert found["ndcg@4"] == pytest.approx((ndcg_of_7_at_4 + 1 / math.log2(4)) / 2)
    assert found["ndcg@2"] == pytest.approx((1 / (1 + 1 / math.log2(3)) + 0) / 2)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_ndcg_agrees_with_scikit_learn(seed):
    random = np.random.default_rng(seed)
    num_items, num_queries = 20, 4
    order = np.argsort(random.random((num_queries, num_items)), axis=1)
    rank_of_item = np.argsort(order, axis=1) + 1
    relevant = random.random((num_queries, num_items)) < 0.3
    relevant[:, 0] = True
    query, item = np.nonzero(relevant)
    found = ranking_metrics(query.astype(np.int64), rank_of_item[query, item].astype(np.int32), [5])
    assert found["ndcg@5"] == pytest.approx(ndcg_score(relevant.astype(float), -rank_of_item.astype(float), k=5))


def test_the_order_of_rows_does_not_matter():
    random = np.random.default_rng(0)
    queries, ranks = random.integers(0, 9, 50), random.integers(1, 30, 50).astype(np.int32)
    shuffled = random.permutation(50)
    assert ranking_metrics(queries, ranks, [10]) == pytest.approx(
        ranking_metrics(queries[shuffled], ranks[shuffled], [10])
    )
