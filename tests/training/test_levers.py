"""What a row counts: by hand, whatever batch and rank it is in, and after a resume."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from schemas.contract import Column
from schemas.errors import UserError
from schemas.manifest import MANIFEST, Manifest
from schemas.snapshot import open_snapshot
from tests.snapshots import make_snapshot, write_parquet
from training.batch import Batch
from training.checkpoint import Checkpoints
from training.loop import Trainer
from training.losses import sampled_softmax
from training.models.two_tower import TwoTower
from training.ranking import Ranking
from training.ranks import OneRank
from training.recipe import NegativeRowsSettings, PropensitySettings, Recipe, read_recipe
from training.retrieval import Retrieval
from training.run_folder import RunFolder
from training.tasks import catalogue_of, check_fits, fresh_model, task_of
from training.train import train
from training.weighting import by_propensity, not_to_recommend

CPU = torch.device("cpu")
NAN = float("nan")
SMALL = ["model.width=4", "batch_size_per_rank=32", "epochs=2", "patience=2"]
VARIED = "model.augment={share: 0.8, crop: 0.5, mask: 0.3, reorder: 0.6}"


def with_propensities(url: str) -> str:
    """The snapshot with a column of propensities in all splits, and the role in its contract."""
    root = Path(url)
    manifest = Manifest.model_validate_json((root / MANIFEST).read_text())
    parts: dict[str, Any] = dict(manifest.parts)
    for split in ("train", "valid", "test"):
        files = []
        for file in parts[split]:
            table = pq.read_table(root / file.path)
            values = np.where(table["row_id"].to_numpy() % 5 == 0, np.nan, 1 / (1 + table["row_id"].to_numpy() % 7))
            field = pa.field("propensity", pa.float32(), nullable=False)
            table = table.append_column(field, pa.array(values.astype(np.float32)))
            files.append(write_parquet(root / file.path, table, file.row_groups, root))
        parts[split] = tuple(files)
    events = manifest.contract.events
    column = Column(name="propensity", type="float32", role="propensity", meaning="how likely it was shown")
    events = events.model_copy(update={"columns": (*events.columns, column)})
    contract = manifest.contract.model_copy(update={"events": events})
    changed = manifest.model_copy(update={"parts": parts, "contract": contract})
    (root / MANIFEST).write_text(changed.model_dump_json())
    return url


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return with_propensities(make_snapshot(tmp_path_factory.mktemp("data") / "s", [[90, 70], [40]]))


def small(name: str, *overrides: str) -> Recipe:
    recent = ["model.recent=2"] if name == "two_tower" else []
    return read_recipe(name, [*SMALL, *recent, *overrides])


def learner(url: str, name: str, *overrides: str) -> Trainer:
    recipe, snapshot, ranks = small(name, *overrides), open_snapshot(url), OneRank()
    check_fits(snapshot, recipe)
    catalogue = catalogue_of(snapshot)
    model = fresh_model(snapshot, catalogue, recipe, ranks, CPU)
    task = task_of(model, snapshot, catalogue, recipe, ranks, CPU)
    return Trainer(task=task, snapshot=snapshot, recipe=recipe, ranks=ranks, device=CPU, say=lambda line: None)


def first_batch(trainer: Trainer) -> Batch:
    return next(iter(trainer.feed("train", ("row_id", *trainer.task.columns))))


def batch_of(**columns: list[Any]) -> Batch:
    rows = len(next(iter(columns.values())))
    tensors = {name: torch.tensor(values) for name, values in columns.items()}
    return Batch(columns=tensors, positions=torch.arange(rows), global_rows=rows, step=0)


def test_weights_by_propensity_by_hand():
    rows = batch_of(propensity=[0.5, 0.1, 0.001, NAN])
    found = by_propensity(rows, PropensitySettings(floor=0.01), OneRank())
    # 1 / 0.5, 1 / 0.1, 1 / the floor, 1 where it is not known; their mean is 113 / 4.
    assert found.tolist() == pytest.approx([2 * 4 / 113, 10 * 4 / 113, 100 * 4 / 113, 4 / 113])


def test_equal_propensities_change_nothing(url):
    plain, weighted = learner(url, "two_tower"), learner(url, "two_tower", "loss.propensity={floor: 0.01}")
    assert "propensity" in weighted.task.columns
    assert "propensity" not in plain.task.columns
    rows = first_batch(weighted)
    rows = replace(rows, columns={**rows.columns, "propensity": torch.full((rows.num_rows,), 0.25)})
    plain.task.model.eval()
    weighted.task.model.eval()
    assert weighted.task.loss_sum(rows, 0).item() == pytest.approx(plain.task.loss_sum(rows, 0).item(), rel=1e-6)


@pytest.mark.parametrize("name", ["dlrm", "two_tower", "matrix_factorisation"])
def test_the_loss_is_that_of_the_rows_with_their_weights(url, name):
    trainer = learner(url, name, "loss.propensity={floor: 0.2}")
    task = trainer.task
    assert isinstance(task, Ranking | Retrieval)
    assert "propensity" not in task.held_out_columns
    task.model.eval()
    rows = first_batch(trainer)
    found = task.loss_sum(rows, 0).item()
    recipe = trainer.recipe.model_copy(update={"loss": trainer.recipe.loss.model_copy(update={"propensity": None})})
    each = []
    for place in range(rows.num_rows):
        columns = {column: values[place : place + 1] for column, values in rows.columns.items()}  # type: ignore[index]
        one = replace(rows, columns=columns, positions=rows.positions[place : place + 1])
        each.append(replace(task, recipe=recipe).loss_sum(one, 0).item())
    weights = [1.0 if math.isnan(p) else 1 / max(p, 0.2) for p in rows["propensity"].tolist()]
    mean = sum(weights) / len(weights)
    assert found == pytest.approx(sum(w / mean * loss for w, loss in zip(weights, each, strict=True)), rel=1e-4)


class OneOfTwo(OneRank):
    """A rank whose other one has as large a sum."""

    def sum(self, values: torch.Tensor, name: str) -> torch.Tensor:
        return values * 2


def test_weights_are_of_the_global_batch_and_a_rank_without_rows_takes_part():
    rows = replace(batch_of(propensity=[0.5, 0.25]), global_rows=4)
    # Both ranks together: 2 + 4 + 2 + 4 over 4 rows: a mean of 3.
    assert by_propensity(rows, PropensitySettings(), OneOfTwo()).tolist() == pytest.approx([2 / 3, 4 / 3])
    asked = []

    class Asked(OneRank):
        def sum(self, values: torch.Tensor, name: str) -> torch.Tensor:
            asked.append((values.tolist(), name))
            return values + 1

    nothing = replace(batch_of(propensity=[0.5]), columns={"propensity": torch.empty(0)}, positions=torch.arange(0))
    assert by_propensity(nothing, PropensitySettings(), Asked()).tolist() == []
    assert asked == [([0.0], "propensity_weights")]


def test_what_was_shown_and_not_wanted_is_learned_the_other_way_round_by_hand():
    loss = torch.tensor([math.log(4), math.log(4), math.log(4), 0.0, 30.0])  # p = 1/4 in the first three
    rows = batch_of(label=[5.0, 3.0, NAN, 1.0, 2.0])
    found = not_to_recommend(loss, rows, NegativeRowsSettings(below=4, weight=2.0)).tolist()
    assert found[:3] == pytest.approx([math.log(4), 2 * math.log(4 / 3), 0.0])
    assert found[3] == pytest.approx(-2 * math.log(1 - math.exp(-0.001)), rel=1e-3)  # bounded, though p = 1
    assert found[4] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("num_sampled", [0, 12])
def test_a_step_on_an_unwanted_row_lowers_its_items_score_and_with_no_weight_leaves_it(url, num_sampled):
    def change(below: float, weight: float) -> float:
        trainer = learner(
            url, "sasrec", "model.dropout=0", f"loss.num_sampled={num_sampled}",
            f"loss.negative_rows={{below: {below}, weight: {weight}}}",
        )  # fmt: skip
        task = trainer.task
        assert isinstance(task, Retrieval)
        assert "label" in task.columns
        one = first_batch(trainer)
        one = replace(one, columns={n: c[:1] for n, c in one.columns.items()}, positions=one.positions[:1])  # type: ignore[index]
        one = replace(one, columns={**one.columns, "label": torch.tensor([3.0])}, global_rows=1)
        optimizer = torch.optim.SGD(task.model.parameters(), lr=1e-4)

        def loss() -> float:
            with torch.no_grad():
                return float(
                    sampled_softmax(
                        task.retriever, one, task.sampler, num_sampled=num_sampled, epoch=0, temperature=1.0
                    )
                )

        before = loss()
        task.loss_sum(one, 0).backward()
        optimizer.step()
        return loss() - before

    assert change(3, 1.0) < -1e-5  # a label of 3 is as wanted as any
    assert change(4, 1.0) > 1e-6  # by a p of 1 in 30 at first
    assert change(4, 0.0) == 0.0


def test_rows_that_count_nothing_are_not_scored_and_the_others_as_ever(url):
    plain = ["model.dropout=0", "model.history_dropout=0", "loss.propensity={floor: 0.1}"]

    def loss(*overrides: str) -> tuple[float, int]:
        trainer = learner(url, "two_tower", *plain, *overrides)
        task, one = trainer.task, first_batch(learner(url, "two_tower", *plain, "loss.negative_rows={below: 4}"))
        assert isinstance(task, Retrieval)
        label_B = torch.tensor([5.0, 3.0, NAN, 4.0]).repeat(len(one.positions))[: len(one.positions)]
        scored: list[int] = []
        users = task.retriever.users
        task.model.users = lambda batch: scored.append(batch.num_rows) or users(batch)  # type: ignore[assignment, method-assign, func-returns-value]
        found = task.loss_sum(replace(one, columns={**one.columns, "label": label_B}), 0)
        return found.item(), scored[0]

    left_out, few = loss("loss.negative_rows={below: 4, weight: 0}")
    nearly, all_of_them = loss("loss.negative_rows={below: 4, weight: 1.0e-9}")
    assert left_out == pytest.approx(nearly, rel=1e-5)
    assert few == all_of_them / 2


@pytest.mark.parametrize("num_sampled", [0, 12])
def test_what_a_user_has_seen_is_not_pushed_down_whatever_the_model_is_shown_of_it(url, num_sampled):
    def gradient(*overrides: str) -> tuple[Tensor, Tensor]:
        trainer = learner(
            url, "two_tower", f"loss.num_sampled={num_sampled}", "model.augment={share: 1, mask: 0.9}", *overrides
        )
        task = trainer.task
        assert isinstance(task, Retrieval)
        one = first_batch(trainer)
        one = replace(one, columns={n: c[:1] for n, c in one.columns.items()}, positions=one.positions[:1])  # type: ignore[index]
        one = replace(
            one,
            columns={
                **one.columns,
                "history": torch.tensor([[0, 0, 11, 12, 13, 14]], dtype=torch.int32),
                "item_idx": torch.tensor([20]),
            },
            global_rows=1,
        )
        task.loss_sum(one, 0).backward()
        assert isinstance(task.model, TwoTower)
        assert task.model.item_bias.grad is not None
        return task.model.item_bias.grad, task.sampler.draw(12, epoch=0, step=one.step)

    pushed, sampled = gradient("loss.exclude_history=true")
    assert float(pushed[20]) < 0
    assert pushed[11:15].tolist() == [0, 0, 0, 0]  # its history, most of which is hidden from the model
    everything, _ = gradient()
    drawn = set(range(11, 15)) if num_sampled == 0 else set(range(11, 15)) & set(sampled.tolist())
    assert {place for place in range(11, 15) if everything[place] > 0} == drawn


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        (
            "two_tower",
            [VARIED, "loss.propensity={floor: 0.1}", "model.history_dropout=0.3", "loss.exclude_history=true"],
        ),
        ("sasrec", [VARIED, "loss.negative_rows={below: 1}", "loss.propensity={floor: 0.1}"]),
        ("dlrm", ["model.top=[8]", "loss.propensity={floor: 0.1}"]),
    ],
)
def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(url, tmp_path, monkeypatch, name, overrides):
    recipe = small(name, *overrides)

    def run(folder: Path) -> None:
        train(
            OneRank(), snapshot_url=url, recipe=recipe, folder=RunFolder(folder), check_only=False, checkpoint_every=3,
            tensorboard=False,
        )  # fmt: skip

    run(tmp_path / "whole")
    kept, saved = Checkpoints.save, []

    class Killed(Exception):
        pass

    def save(self: Checkpoints, *arguments: Any) -> None:
        kept(self, *arguments)
        saved.append(None)
        if len(saved) == 1:  # in the middle of the first epoch
            self.settle(OneRank())
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(Killed):
        run(tmp_path / "killed")
    assert os.listdir(tmp_path / "killed" / "checkpoints") == ["epoch-00000-step-000000003"]
    run(tmp_path / "killed")
    lines = [(tmp_path / of / "metrics.jsonl").read_text().splitlines() for of in ("whole", "killed")]
    losses = [[json.loads(line)["loss"] for line in of] for of in lines]
    assert losses[0] == losses[1]
    weights = [load_file(tmp_path / of / "bundle" / "model.safetensors") for of in ("whole", "killed")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("matrix_factorisation", [VARIED], "matrix_factorisation reads none"),
        ("sasrec", ["model.augment={share: 0.5}"], "model.augment varies nothing: set crop, mask or reorder"),
        ("sasrec", ["loss.positions=all", VARIED], "model.augment is of a row and its own item"),
        ("sasrec", ["loss.positions=all", "loss.propensity={}"], "loss.propensity is of a row and its own item"),
        ("sasrec", ["loss.positions=all", "loss.exclude_history=true"], "loss.exclude_history is of a row and its own"),
        ("matrix_factorisation", ["loss.exclude_history=true"], "loss.exclude_history is for sampled_softmax, not"),
        ("matrix_factorisation", ["loss.negative_rows={below: 4}"], "is for sampled_softmax, not for bpr"),
        ("dlrm", ["loss.negative_rows={below: 4}"], "unknown key 'loss.negative_rows'"),
        ("dlrm", ["loss.propensity={floor: 0}"], "loss.propensity.floor"),
    ],
)
def test_a_lever_that_does_not_apply_is_refused_in_one_line(name, overrides, says):
    with pytest.raises(UserError) as error:
        read_recipe(name, overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_log_without_propensities_is_named(tmp_path):
    plain = make_snapshot(tmp_path / "s", [[40]])
    for name in ("dlrm", "two_tower"):
        with pytest.raises(UserError, match="says of no row with what probability its item was shown"):
            learner(plain, name, "loss.propensity={}")
