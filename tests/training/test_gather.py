"""Gathering rows into batches: each in its place, no other touched, in C as with numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import gather as gathering
from training.gather import Columns, gather_with_numpy

DTYPES = st.sampled_from(["int8", "bool", "int16", "float16", "int32", "float32", "int64", "float64"])
SHAPES = st.sampled_from([(), (1,), (2,), (3,), (5,), (2, 2), (0,)])


@st.composite
def gatherings(draw: st.DrawFn) -> tuple[Columns, np.ndarray, int, int, int, int, int]:
    """Columns, order, first_row, run_rows, batch_rows, offset and the number of batches of one call."""
    source_rows = draw(st.integers(1, 30))
    kinds = draw(st.lists(st.tuples(DTYPES, SHAPES), min_size=1, max_size=5))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    columns = Columns()
    for number, (dtype, shape) in enumerate(kinds):
        content = random.integers(0, 2 if dtype == "bool" else 100, (source_rows, *shape))
        columns[f"column {number}"] = np.ascontiguousarray(content.astype(dtype))
    run_rows = draw(st.integers(1, 7))
    offset = draw(st.integers(0, 5))
    batch_rows = offset + run_rows + draw(st.integers(0, 5))
    num_batches = draw(st.integers(1, 5))
    first_row = draw(st.integers(0, num_batches * run_rows))
    num_taken = draw(st.integers(0, num_batches * run_rows - first_row))
    return columns, random.integers(0, source_rows, num_taken, np.int32), first_row, run_rows, batch_rows, offset, (
        num_batches
    )  # fmt: skip


@pytest.mark.parametrize("how", ["numpy", "C"])
@given(gatherings())
@settings(max_examples=200, deadline=None)
def test_gathering_puts_each_row_in_its_place_and_touches_no_other(how, case):
    gather = gather_with_numpy if how == "numpy" else gathering.gather
    if how == "C" and gather is gather_with_numpy:
        pytest.skip("training/gather.c was not compiled: there is only numpy's to test")
    sources, order, first_row, run_rows, batch_rows, offset, num_batches = case
    rows = num_batches * batch_rows
    targets = Columns({n: np.full((rows, *array.shape[1:]), 1, array.dtype) for n, array in sources.items()})
    expected = {name: array.copy() for name, array in targets.items()}
    for number, source_row in enumerate(order):
        batch, in_run = divmod(first_row + number, run_rows)
        for name, array in sources.items():
            expected[name][batch * batch_rows + offset + in_run] = array[source_row]
    gather(sources, targets, order, first_row, run_rows, batch_rows, offset)
    for name, array in targets.items():
        assert np.array_equal(array, expected[name]), name


def test_setup_compiled_the_gathering():
    assert gathering.gather is not gather_with_numpy
