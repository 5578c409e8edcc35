"""The measure of a shuffle: what a file's own order, its reverse and a full permutation come to."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.shuffle_quality import shuffle_quality

SORTED = np.repeat([0.0, 1.0], 500).astype(np.float32)


def test_the_order_of_the_file_and_its_reverse_are_tied_to_it_wholly():
    forward = shuffle_quality(np.arange(1000), SORTED, batch_size=10)
    backward = shuffle_quality(np.arange(1000)[::-1], SORTED, batch_size=10)
    assert (forward.rank_correlation, backward.rank_correlation) == (pytest.approx(1), pytest.approx(-1))
    assert forward.label_autocorrelation > 0.95  # all batches but one are followed by one of the same label
    # Batches of one label have means of 0 and 1, a spread of 0.5; drawn ones sqrt(0.25 / 10 x 990 / 999).
    assert forward.batch_label_spread == pytest.approx(0.5 / np.sqrt(0.025 * 990 / 999))


def test_a_full_permutation_is_near_0_0_and_1():
    found = [shuffle_quality(np.random.default_rng(s).permutation(1000), SORTED, batch_size=10) for s in range(40)]
    assert np.mean([one.rank_correlation for one in found]) == pytest.approx(0, abs=0.02)
    assert np.mean([one.label_autocorrelation for one in found]) == pytest.approx(0, abs=0.05)
    assert np.mean([one.batch_label_spread for one in found]) == pytest.approx(1, abs=0.05)


@pytest.mark.filterwarnings("ignore:invalid value")  # batches that are all alike have no correlation
def test_batches_that_take_one_row_of_each_place_are_more_even_than_chance():
    one_of_each_hundred = np.arange(1000).reshape(10, 100).T.ravel()
    assert shuffle_quality(one_of_each_hundred, SORTED, batch_size=10).batch_label_spread == 0


def test_an_order_that_repeats_a_row_is_no_epoch():
    with pytest.raises(AssertionError, match="an epoch gives each row once"):
        shuffle_quality(np.zeros(1000, dtype=np.int64), SORTED, batch_size=10)
