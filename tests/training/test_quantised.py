"""Smaller tables: what a number becomes, by hand and within its bound, and what a table weighs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.embeddings.placement import place_tables
from training.embeddings.quantised import QuantisedTable, QuantisedTables, quantised
from training.embeddings.tables import EmbeddingTables
from training.ranks import OneRank

CPU = torch.device("cpu")
NUMBERS = st.one_of(st.just(0.0), st.floats(1e-20, 1e20), st.floats(-1e20, -1e-20))


def test_a_row_of_known_numbers():
    # The largest is 1.27, so a step is 0.01: 1.27 is 127 of them, -0.5 is -50, 0.104 about 10, 0.106 about 11.
    codes, scales = quantised(torch.tensor([[1.27, -0.5, 0.104, 0.106]]))
    assert codes.tolist() == [[127, -50, 10, 11]]
    assert scales.tolist() == pytest.approx([0.01])
    table = QuantisedTable.of(torch.tensor([[1.27, -0.5, 0.104, 0.106]]), "int8")
    assert table(torch.tensor([0]))[0].tolist() == pytest.approx([1.27, -0.5, 0.10, 0.11])


def test_a_row_of_zeros_stays_one():
    codes, scales = quantised(torch.tensor([[0.0, 0.0], [2.54, 0.0]]))
    assert codes.tolist() == [[0, 0], [127, 0]]
    assert scales.tolist() == pytest.approx([0.0, 0.02])
    assert QuantisedTable.of(torch.zeros(3, 2), "int8")(torch.tensor([0, 2])).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=6))
def test_no_number_is_off_by_more_than_half_a_step_of_its_row(rows):
    weight = torch.tensor(rows, dtype=torch.float32)
    _, scales = quantised(weight)
    found = QuantisedTable.of(weight, "int8")(torch.arange(len(rows)))
    assert ((found - weight).abs() <= 0.5001 * scales.unsqueeze(1)).all()


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=6))
def test_bfloat16_keeps_eight_bits_of_every_number(rows):
    weight = torch.tensor(rows, dtype=torch.float32)
    found = QuantisedTable.of(weight, "bf16")(torch.arange(len(rows)))
    assert ((found - weight).abs() <= weight.abs() / 256).all()


def tables_of_two_kinds(width: int) -> EmbeddingTables:
    rows = {"items": 40, "colours": 7}
    placed = place_tables(rows, width=width, ids_per_step={"items": 4, "colours": 4}, world_size=1, policy="sharded")
    of_feature = {"item": "items", "past": "items", "colour": "colours"}
    return EmbeddingTables(of_feature, width, placed, OneRank(), seed=3, device=CPU)


def test_as_float32_they_are_the_tables_themselves():
    tables = tables_of_two_kinds(4)
    whole = QuantisedTables.of(tables, "float32")
    ids = {
        "item": torch.tensor([3, 39], dtype=torch.int32),
        "past": torch.tensor([[0, 5, 6], [0, 0, 0]], dtype=torch.int32),
        "colour": torch.tensor([0, 6], dtype=torch.int32),
    }
    assert torch.equal(whole(ids), tables.eval()(ids))
    assert whole.tables[0].codes.data_ptr() == tables.held("items").weight.data_ptr()  # no copy


def test_int8_takes_a_quarter_and_bfloat16_a_half():
    tables = tables_of_two_kinds(64)
    exact, half, quarter = (sum(QuantisedTables.of(tables, p).bytes_by_table().values())
                            for p in ("float32", "bf16", "int8"))  # fmt: skip
    assert exact == 47 * 64 * 4
    assert half == exact / 2
    assert quarter == 47 * (64 + 4)  # a byte a number and a scale a row: 27 %
