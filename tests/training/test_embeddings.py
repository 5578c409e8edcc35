"""Embedding tables: where they lie, what they begin with, and that where they lie changes nothing."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import SnapshotDamaged
from training.embeddings.files import load_tables, save_tables
from training.embeddings.placement import place_tables
from training.embeddings.rows import RowRule, adagrad_, adam_, first_values
from training.embeddings.tables import EmbeddingTables
from training.ranks import OneRank

CPU = torch.device("cpu")
ROWS = {"user": 50, "item": 7, "city": 20, "sex": 3}


def tables(policy: str, rank: int = 0, size: int = 1, *, seed: int = 3) -> EmbeddingTables:
    ranks = OneRank(size)
    ranks.rank = rank
    plan = place_tables(ROWS, width=4, ids_per_step=dict.fromkeys(ROWS, 8), world_size=size, policy=policy)
    features = {"user_idx": "user", "item_idx": "item", "history": "item", "city": "city", "sex": "sex"}
    return EmbeddingTables(features, 4, plan, ranks, seed=seed, device=CPU)


def ids(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(seed)
    shapes = {"user_idx": (rows,), "item_idx": (rows,), "history": (rows, 3), "city": (rows,), "sex": (rows,)}
    limits = {"user_idx": 50, "item_idx": 7, "history": 7, "city": 20, "sex": 3}
    return {name: torch.from_numpy(random.integers(0, limits[name], shape)) for name, shape in shapes.items()}


def test_a_table_is_shared_out_where_its_rows_outnumber_what_a_batch_asks_for():
    plan = place_tables(
        {"small": 100, "large": 5_000_000}, width=16, ids_per_step={"small": 8192, "large": 8192}, world_size=2
    )
    assert plan.replicated == {"small": 100}
    assert plan.sharded == {"large": 5_000_000}
    # 5 M rows of 16 numbers and one of memory, halved, and 100 whole ones.
    assert plan.bytes_per_rank == 5_000_000 * 17 * 4 // 2 + 100 * 17 * 4
    assert any("large" in line and "by rows" in line for line in plan.lines())


def test_by_hand_what_a_step_with_a_table_moves():
    # 1,000 rows of 4 numbers, 10 look-ups, 2 ranks. Whole: 1,000 x 16 bytes, there and back to half, and 4 passes.
    # By rows: 10 rows, half of them away, 8 + 2 x 16 bytes each; 10 ids of 8 bytes in 6 passes, 10 rows in 4.
    (table,) = place_tables({"t": 1000}, width=4, ids_per_step={"t": 10}, world_size=2).tables
    assert table.replicated_bytes == 1000 * 16 * (2 * 0.5 + 4)
    assert table.sharded_bytes == 10 * (8 + 2 * 16) * 0.5 + 10 * 8 * 6 + 10 * 16 * 4


def test_exchanges_are_begun_only_where_the_tables_together_save_more_than_they_cost():
    # 40,000 rows of 16 numbers, 1,000 look-ups: whole 12.8 MB a step, by rows 0.37 MB: 12.4 MB saved, less than the 16
    # MB that exchanges stand for. Two such tables save more.
    one, two = ({f"t{n}": 40_000 for n in range(count)} for count in (1, 2))
    ids_per_step = {"t0": 1000, "t1": 1000}
    assert place_tables(one, width=16, ids_per_step=ids_per_step, world_size=2).sharded == {}
    assert place_tables(two, width=16, ids_per_step=ids_per_step, world_size=2).sharded == two
    # A process alone exchanges nothing; its tables by rows touch only a batch's.
    assert place_tables(one, width=16, ids_per_step=ids_per_step, world_size=1).sharded == one


def test_first_values_are_uniform_within_their_limit_and_depend_on_seed_and_row_alone():
    values = torch.empty(20_000, 8)
    first_values(torch.arange(20_000), 8, limit=0.5, seed=1, out_RD=values)
    assert values.min() >= -0.5
    assert values.max() < 0.5
    assert values.mean().abs() < 0.005
    assert values.var() == pytest.approx(1 / 12, rel=0.02)
    assert torch.corrcoef(values.T).fill_diagonal_(0).abs().max() < 0.03
    some, rows = torch.empty(3, 8), torch.tensor([19_999, 5, 700])
    first_values(rows, 8, limit=0.5, seed=1, out_RD=some)
    assert torch.equal(some, values[rows])
    first_values(rows, 8, limit=0.5, seed=2, out_RD=some)
    assert not torch.isclose(some, values[rows]).any()


def test_row_wise_adagrad_by_hand():
    weight, squares = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.0, 5.5])
    gradient = torch.tensor([[3.0, 1.0], [0.0, 0.0]])
    adagrad_(weight, squares, gradient, learning_rate=0.1, eps=0.0)
    # Mean square 5: a step of 0.1 / sqrt(5) times the gradient; the second row has none and stays.
    assert squares.tolist() == [5.0, 5.5]
    assert torch.allclose(weight, torch.tensor([[1 - 0.3 / 5**0.5, 2 - 0.1 / 5**0.5], [3.0, 4.0]]))


def test_row_wise_adam_by_hand():
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    squares = torch.tensor([0.0, 5.0, 7.0])
    gradient = torch.tensor([[3.0, 1.0], [1.0, 7.0], [0.0, 0.0]])
    adam_(weight, squares, gradient, learning_rate=0.1, eps=0.0, beta2=0.75)
    # Mean squares 5, 25 and none. The first row's mean begins with its own; the second's is 0.75 x 5 + 0.25 x 25 = 10;
    # the third row was not touched: neither it nor its memory moves.
    assert squares.tolist() == [5.0, 10.0, 7.0]
    assert torch.allclose(weight[0], torch.tensor([1 - 0.3 / 5**0.5, 2 - 0.1 / 5**0.5]))
    assert torch.allclose(weight[1], torch.tensor([3 - 0.1 / 10**0.5, 4 - 0.7 / 10**0.5]))
    assert weight[2].tolist() == [5.0, 6.0]


def test_a_row_that_nothing_ever_touched_stays_where_it_is():
    weight, squares = torch.ones(1, 2), torch.zeros(1)
    adam_(weight, squares, torch.zeros(1, 2), learning_rate=0.1, eps=1e-8, beta2=0.9)
    assert (weight.tolist(), squares.tolist()) == ([[1.0, 1.0]], [0.0])


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), beta2=st.floats(0, 0.999))
def test_adam_told_of_the_touched_rows_alone_learns_what_it_learns_of_zeros_for_the_others(seed, beta2):
    random = torch.Generator().manual_seed(seed)
    weight, squares = torch.randn(9, 3, generator=random), torch.rand(9, generator=random).round()
    gradient = torch.randn(9, 3, generator=random)
    gradient[torch.rand(9, generator=random) < 0.5] = 0
    rows = torch.nonzero(gradient.any(1)).flatten()
    some, their_squares = weight[rows], squares[rows]
    adam_(some, their_squares, gradient[rows], learning_rate=0.1, eps=1e-8, beta2=beta2)
    expected, expected_squares = weight.clone(), squares.clone()
    expected[rows], expected_squares[rows] = some, their_squares
    adam_(weight, squares, gradient, learning_rate=0.1, eps=1e-8, beta2=beta2)
    assert torch.equal(weight, expected)
    assert torch.equal(squares, expected_squares)


def learned(model: EmbeddingTables, steps: int = 4, rule: RowRule = adagrad_) -> torch.Tensor:
    """Vectors of fixed look-ups after a few steps towards targets."""
    model.train()
    for step in range(steps):
        model.zero_grad()
        (model(ids(6, seed=step)) - step).square().sum().backward()
        model.update(0.1, rule)
    model.eval()
    with torch.no_grad():
        return model(ids(40, seed=99))


@pytest.mark.parametrize("rule", [adagrad_, partial(adam_, beta2=0.9)], ids=["adagrad", "adam"])
def test_where_a_table_lies_changes_nothing_that_it_learns(rule):
    whole, shared = tables("replicated"), tables("sharded")
    with torch.no_grad():
        assert torch.equal(whole.eval()(ids(40)), shared.eval()(ids(40)))
    assert torch.allclose(learned(whole, rule=rule), learned(shared, rule=rule), atol=1e-6)


def test_a_list_is_the_mean_of_its_values_and_an_empty_one_zero():
    model = tables("sharded").eval()
    asked = ids(2) | {"history": torch.tensor([[2, 5, 0], [0, 0, 0]])}
    with torch.no_grad():
        found = model(asked)
        single = model(ids(2) | {"item_idx": torch.tensor([2, 5])})[:, 1]
    assert torch.allclose(found[0, 2], single.mean(0))
    assert torch.equal(found[1, 2], torch.zeros(4))


def test_tables_are_no_part_of_the_state_dict():
    model = tables("auto")
    assert model.state_dict() == {}
    model.load_state_dict({})


@settings(deadline=None, max_examples=25)
@given(wrote=st.integers(1, 5), reads=st.integers(1, 5), first=st.sampled_from(["replicated", "sharded"]),
       second=st.sampled_from(["replicated", "sharded"]))  # fmt: skip
def test_what_any_number_of_ranks_wrote_any_other_reads(tmp_path_factory, wrote, reads, first, second):
    folder = tmp_path_factory.mktemp("tables")
    for rank in range(wrote):
        model = tables(first, rank, wrote)
        for table in model.placement.tables:
            held = model.held(table.name)
            held.squares[:] = torch.tensor([*range(held.first, table.rows, held.step)])
        save_tables(folder, model, model.sharded.ranks)
    expected = tables("replicated")
    for rank in range(reads):
        model = tables(second, rank, reads, seed=4)
        load_tables(folder, model)
        for name in ROWS:
            held, whole = model.held(name), expected.held(name)
            assert torch.equal(held.weight, whole.weight[held.first :: held.step])
            assert held.squares.tolist() == [*range(held.first, ROWS[name], held.step)]


def test_tables_follow_their_model_to_another_device():
    model = tables("sharded").to("meta")
    assert {model.weight.device.type, model.squares.device.type} == {"meta"}
    assert {model.sharded.weight.device.type, model.sharded.squares.device.type} == {"meta"}


def test_gradients_that_were_dropped_teach_nothing():
    model = tables("sharded").train()
    before = model.sharded.weight.clone()
    model(ids(6)).square().sum().backward()
    model.sharded.drop_gradients()
    model.update(0.1)
    assert torch.equal(model.sharded.weight, before)


def test_a_file_that_is_missing_is_found_out(tmp_path):
    for rank in range(2):
        model = tables("sharded", rank, 2)
        save_tables(tmp_path, model, model.sharded.ranks)
    (tmp_path / "embeddings-00001-of-00002.safetensors").unlink()
    with pytest.raises(SnapshotDamaged, match="rows of the embedding table 'user' are not all there"):
        load_tables(tmp_path, tables("sharded"))
