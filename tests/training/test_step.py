"""Steps: several batches make the step of one, rates rise and fall as asked, and what is no number is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schemas.errors import LossNotFinite
from schemas.snapshot import open_snapshot
from tests.snapshots import make_snapshot
from training.batch import Batch
from training.checkpoint import Checkpoints, Progress
from training.loop import Trainer
from training.optimizers import Optimizers
from training.ranks import OneRank, as_half, from_half
from training.recipe import OptimizerSettings, read_recipe
from training.step import Stepper
from training.tasks import catalogue_of, fresh_model, task_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_snapshot(tmp_path_factory.mktemp("data") / "s", [[256, 256]], valid_rows=64)


def trainer(url: str, *overrides: str, name: str = "dlrm") -> Trainer:
    recipe, snapshot, ranks = read_recipe(name, ["model.width=4", *overrides]), open_snapshot(url), OneRank()
    catalogue = catalogue_of(snapshot)
    model = fresh_model(snapshot, catalogue, recipe, ranks, CPU)
    task = task_of(model, snapshot, catalogue, recipe, ranks, CPU)
    return Trainer(task=task, snapshot=snapshot, recipe=recipe, ranks=ranks, device=CPU, say=lambda line: None)


def stepper(of: Trainer) -> Stepper:
    return Stepper(
        task=of.task, recipe=of.recipe, ranks=of.ranks, device=CPU,
        optimizers=Optimizers(of.task.model, of.recipe.optimizer), gradients=of.ranks.summing(of.task.model),
    )  # fmt: skip


def an_epoch(url: str, *overrides: str) -> tuple[float, Trainer]:
    of = trainer(url, *overrides)
    result = of.train_epoch(of.feed("train", ("row_id", *of.task.columns)), stepper(of), Progress())
    return result.loss, of


def some_of(batch: Batch, start: int, stop: int) -> Batch:
    columns = {name: column[start:stop] for name, column in batch.columns.items() if isinstance(column, Tensor)}
    return replace(batch, columns=columns, positions=batch.positions[start:stop], global_rows=stop - start)


@pytest.mark.parametrize("tables", ["replicated", "sharded"])
def test_unequal_accumulated_batches_make_the_step_of_one(url, tables):
    whole, parts = (trainer(url, f"model.tables={tables}", "batch_size_per_rank=128") for _ in range(2))
    steppers = stepper(whole), stepper(parts)
    for number, batch in enumerate(whole.feed("train", ("row_id", *whole.task.columns))):
        cut = [some_of(batch, start, stop) for start, stop in ((0, 20), (20, 90), (90, 128))]
        (loss,) = steppers[0].step([batch], epoch=0, number=number)
        losses = steppers[1].step(cut, epoch=0, number=number)
        assert sum(losses) == pytest.approx(loss, rel=1e-5)
    with torch.no_grad():
        assert torch.allclose(whole.task.model(batch), parts.task.model(batch), atol=1e-5)


def test_bfloat16_learns_nearly_the_same_and_leaves_weights_as_they_are(url):
    exact, _ = an_epoch(url, "batch_size_per_rank=32")
    rough, of = an_epoch(url, "batch_size_per_rank=32", "precision=bfloat16")
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.02)
    assert {parameter.dtype for parameter in of.task.model.parameters()} == {torch.float32}


def optimizers(**settings: Any) -> Optimizers:
    return Optimizers(nn.Linear(2, 1), OptimizerSettings(**settings), total_steps=10)


def test_rates_rise_over_the_warm_up_and_fall_to_nothing():
    linear, cosine = optimizers(warmup_steps=2, decay="linear"), optimizers(warmup_steps=2, decay="cosine")
    assert [linear.factor(step) for step in (0, 1, 2, 6, 10, 99)] == [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert [cosine.factor(step) for step in (2, 6, 10)] == pytest.approx([1.0, 0.5, 0.0])
    assert optimizers().factor(10_000) == 1.0


def test_rates_follow_the_ranks_where_asked():
    model = nn.Linear(2, 1)
    four = Optimizers(model, OptimizerSettings(learning_rate=0.1, scale_with_ranks=True), world_size=4)
    model(torch.ones(1, 2)).sum().backward()
    four.step(0)
    assert four.dense.param_groups[0]["lr"] == pytest.approx(0.4)


def test_a_gradient_is_clipped_to_the_norm_asked_for():
    model = nn.Linear(2, 1, bias=False)
    clipped = Optimizers(model, OptimizerSettings(clip_norm=0.5))
    (model(torch.tensor([[3.0, 4.0]])) * 1.0).sum().backward()
    clipped.step(0)
    assert model.weight.grad is not None
    assert model.weight.grad.norm() == pytest.approx(0.5, rel=1e-4)


def test_rows_with_what_is_no_number_are_named_before_anything_is_learned(url):
    of = trainer(url)
    batch = next(iter(of.feed("train", ("row_id", *of.task.columns))))
    age = batch["user_age"].clone()
    age[[3, 5]] = torch.tensor([float("inf"), float("nan")])
    before = {name: value.clone() for name, value in of.task.model.state_dict().items()}
    with pytest.raises(LossNotFinite) as error:
        stepper(of).step([replace(batch, columns={**batch.columns, "user_age": age})], epoch=2, number=0)
    ids = batch["row_id"][[3, 5]].tolist()
    said = str(error.value)
    assert f"epoch 2, step {batch.step}, rank 0: the loss is nan: 2 of its rows have no finite 'user_age'" in said
    assert f"row_id {ids[0]}, {ids[1]}" in said
    assert all(torch.equal(before[name], value) for name, value in of.task.model.state_dict().items())


def test_weights_that_are_no_longer_finite_are_named(url):
    of = trainer(url)
    with torch.no_grad():
        of.task.model.heads.weight.fill_(float("inf"))
    batch = next(iter(of.feed("train", ("row_id", *of.task.columns))))
    with pytest.raises(LossNotFinite, match=r"the weights 'heads\.weight' are no longer finite: lower"):
        stepper(of).step([batch], epoch=0, number=0)


def test_rows_of_a_shared_out_table_that_are_no_longer_finite_are_named(url):
    of = trainer(url, "model.tables=sharded")
    of.task.model.embeddings.sharded.weight.fill_(float("nan"))
    batch = next(iter(of.feed("train", ("row_id", *of.task.columns))))
    with pytest.raises(LossNotFinite, match=r"the weights 'embeddings\.sharded\.weight' are no longer finite"):
        stepper(of).step([batch], epoch=0, number=0)


class Recording(Stepper):
    """Learns nothing, and keeps the number of every step."""

    def step(self, batches: Sequence[Batch], *, epoch: int, number: int) -> list[float]:
        NUMBERS.append(number)
        return [0.0 for _ in batches]


NUMBERS: list[int] = []


def test_steps_are_counted_by_rows_so_that_a_run_on_other_ranks_goes_on_where_it_was(url, tmp_path):
    # 512 rows: 8 steps an epoch with batches of 64, 16 with 32. Of epoch 1 half is done, with batches of 64.
    half = Progress(epochs_done=1)
    begun = replace(trainer(url, "batch_size_per_rank=64"), checkpoint_every=4)
    feed = begun.feed("train", ("row_id", *begun.task.columns))
    saved = Checkpoints(tmp_path)
    begun.train_epoch(feed, stepper(begun), half, saved)
    saved.settle(begun.ranks)
    (within,) = tmp_path.glob("epoch-00001-step-000000004")
    progress = Progress.model_validate_json((within / "progress.json").read_text())
    other = trainer(url, "batch_size_per_rank=32")
    NUMBERS.clear()
    recording = Recording(
        task=other.task,
        recipe=other.recipe,
        ranks=other.ranks,
        device=CPU,
        optimizers=Optimizers(other.task.model, other.recipe.optimizer),
        gradients=other.ranks.summing(other.task.model),
    )
    result = other.train_epoch(other.feed("train", ("row_id", *other.task.columns)), recording, progress)
    assert result.rows == 512
    assert [*range(16 + 8, 32)] == NUMBERS


def test_a_last_group_of_fewer_batches_is_no_checkpoint_within_the_epoch(url, tmp_path):
    # 16 batches of 32 in groups of 5: the fourth group, of one, comes when the feed is at its end.
    of = replace(trainer(url, "batch_size_per_rank=32", "accumulate=5"), checkpoint_every=2)
    saved = Checkpoints(tmp_path)
    result = of.train_epoch(of.feed("train", ("row_id", *of.task.columns)), stepper(of), Progress(), saved)
    saved.settle(of.ranks)
    assert result.rows == 512
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00000-step-000000002"]


def test_small_gradients_keep_their_digits_as_float16_and_large_ones_stay_numbers():
    gradient = torch.tensor([1.2345e-6, -3.3e-5, 0.5, 1e6])
    travelled = as_half(gradient, 2) + as_half(gradient, 2)
    summed = torch.zeros(4)
    from_half(travelled, summed)
    assert summed[:3].tolist() == pytest.approx([2.469e-6, -6.6e-5, 1.0], rel=1e-3)
    assert bool(summed.isfinite().all())
