"""Signs of training gone wrong: models made dead or collapsed by hand are named, a healthy one is not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tests.snapshots import make_snapshot
from tests.training.test_step import stepper, trainer
from training.diagnosis import Diagnosis, diagnose
from training.embeddings.placement import place_tables
from training.embeddings.tables import EmbeddingTables
from training.ranks import OneRank
from training.recipe import read_recipe
from training.run_folder import RunFolder
from training.signs import StepSigns, Units, signs_of, table_signs
from training.train import train

ALONE = OneRank()


def signs(norms: list[float], losses: list[float] | None = None) -> StepSigns:
    found = StepSigns()
    for norm, loss in zip(norms, losses or [1.0] * len(norms), strict=True):
        found.add(norm, None, loss, 1)
    return found


def seen(model: nn.Sequential, *batches: torch.Tensor) -> dict[str, float]:
    units = Units(model)
    with units.watched(), torch.no_grad():
        for batch in batches:
            model(batch)
    return units.dead_shares(ALONE)


def test_units_that_are_zero_for_every_row_are_dead_and_others_are_not():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([-1.0, -2.0, -0.5, 3.0]))
        model[2].weight.fill_(1.0)
        model[2].bias.zero_()
    assert seen(model, torch.randn(8, 2)) == {"1": 0.75, "3": 0.0}
    diagnosis = Diagnosis(loss=1.0, dead={"top.1": 0.75, "top.3": 0.5})
    (line,) = diagnosis.warnings()
    assert line.startswith("75% of the units of top.1 are dead")


def test_one_row_that_moves_a_unit_keeps_it_alive_also_in_a_later_batch_and_no_rows_say_nothing():
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    assert seen(model, torch.tensor([[-1.0]]), torch.tensor([[-1.0], [2.0]])) == {"1": 0.0}
    assert seen(model, torch.tensor([[-1.0]])) == {"1": 1.0}
    assert seen(model, torch.empty(0, 1)) == {}
    assert seen(nn.Sequential(nn.Linear(1, 1)), torch.ones(1, 1)) == {}


def test_effective_rank_by_hand():
    assert signs_of(np.eye(8, dtype=np.float32)).effective_rank == pytest.approx(8)
    # Singular values 3 and 1: shares 3/4 and 1/4.
    two = signs_of(np.diag([3.0, 1.0]).astype(np.float32))
    assert two.effective_rank == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    same = signs_of(np.ones((50, 16), dtype=np.float32))
    assert (same.effective_rank, same.most, same.empty_share) == (pytest.approx(1), 16, 0)
    nothing = signs_of(np.zeros((5, 3), dtype=np.float32))
    assert (nothing.effective_rank, nothing.empty_share) == (1, 1)
    half = signs_of(np.concatenate([np.eye(4), np.zeros((4, 4))]).astype(np.float32))
    assert half.empty_share == 0.5


def tables(policy: str) -> EmbeddingTables:
    plan = place_tables({"t": 3000}, width=20, ids_per_step={"t": 8}, world_size=1, policy=policy)
    return EmbeddingTables({"x": "t"}, 20, plan, ALONE, seed=0, device=torch.device("cpu"))


@pytest.mark.parametrize("policy", ["replicated", "sharded"])
def test_a_collapsed_table_is_named_wherever_it_lies_and_rows_that_never_learned_do_not_hide_it(policy):
    module = tables(policy)
    assert table_signs(module, ALONE) == {}  # nothing has learned yet
    held = module.held("t")
    held.squares[:] = 1
    healthy = table_signs(module, ALONE)["t"]
    assert healthy.effective_rank > 0.9 * 20
    held.squares[500:] = 0
    held.weight[:500] = torch.linspace(1, 2, 500).unsqueeze(1) * torch.ones(20)
    collapsed = table_signs(module, ALONE)["t"]
    assert collapsed.effective_rank == pytest.approx(1, abs=1e-3)
    (line,) = Diagnosis(loss=1.0, tables={"t": collapsed}).warnings()
    assert line.startswith("the embedding table 't' collapses: its rows span 1.0 of 20 directions")
    assert Diagnosis(loss=1.0, tables={"t": healthy}).warnings() == []


def test_a_retrievers_table_is_looked_at_too():
    model = nn.Embedding(100, 16)
    with torch.no_grad():
        model.weight.fill_(0.5)
    assert table_signs(nn.Sequential(model), ALONE)["0"].effective_rank == pytest.approx(1)


def test_a_norm_far_above_those_before_it_explodes_and_noise_does_not():
    assert signs([1.0, 3.0] * 60).explosions() == 0
    assert signs([1.0, 3.0] * 60 + [500.0] + [2.0] * 9).explosions() == 1
    assert signs([1.0] * 10 + [1e9] + [1.0] * 20).explosions() == 1  # judged by the first steps' median
    assert signs([1.0, 1e9]).explosions() == 0  # too few to tell


def of(steps: StepSigns, loss: float = 1.0) -> Diagnosis:
    model = nn.Sequential()
    return diagnose(loss, steps, Units(model), model, ALONE)


def test_warnings_of_gradients_and_of_a_loss_that_does_not_fall():
    exploding = of(signs([1.0] * 60 + [200.0] * 2))
    (line,) = exploding.warnings(loss_before=2.0)
    assert "in 2 of 62 steps their norm was over 100 times the running median (largest 200)" in line
    vanishing = of(signs([1e-5] * 30))
    (line,) = vanishing.warnings(first_norm=0.5, loss_before=2.0)
    assert line.startswith("gradients vanish: their median norm is 1e-05, in the first epoch 0.5")
    assert vanishing.warnings(first_norm=1e-4, loss_before=2.0) == []
    (line,) = of(signs([0.0] * 30)).warnings(loss_before=2.0)
    assert line.startswith("gradients vanish")
    (line,) = of(signs([1.0])).warnings(loss_before=1.0)
    assert line.startswith("the loss does not fall: 1, in the epoch before 1")
    (line,) = of(signs([1.0] * 30, [1.0] * 10 + [2.0] * 10 + [1.5] * 10)).warnings()
    assert "does not fall: 1 over the first third of the epoch, 1.5 over the last" in line
    assert of(signs([1.0] * 30, [2.0] * 10 + [1.5] * 20)).warnings() == []
    assert of(signs([1.0] * 3, [1.0, 2.0, 3.0])).warnings() == []  # three steps tell nothing


def test_what_was_taken_is_begun_anew():
    steps = signs([1.0, 2.0])
    assert len(steps.taken().norms) == 2
    assert len(steps.norms) == 0


def test_a_step_tells_the_norm_of_its_gradient_and_how_much_the_weights_changed(tmp_path):
    of = trainer(make_snapshot(tmp_path / "s", [[128]]), "batch_size_per_rank=64")
    steps = stepper(of)
    before = [p.detach().clone() for p in steps.optimizers.dense.param_groups[0]["params"]]
    batches = [*of.feed("train", ("row_id", *of.task.columns))]
    of.task.model.train()
    steps.step(batches[:1], epoch=0, number=0)
    dense = steps.optimizers.dense.param_groups[0]["params"]
    gradient = torch.cat([p.grad.flatten() for p in dense])
    change = torch.cat([(p.detach() - old).flatten() for p, old in zip(dense, before, strict=True)])
    assert steps.signs.norms[0] == pytest.approx(float(gradient.norm()), rel=1e-6)
    weights = torch.cat([old.flatten() for old in before])
    assert steps.signs.ratios[0] == pytest.approx(float(change.norm() / weights.norm()), rel=1e-4)
    steps.step(batches[1:], epoch=0, number=1)
    assert (len(steps.signs.norms), len(steps.signs.ratios)) == (2, 1)


def find_curves(folder: Path) -> set[str]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return set(events.Tags()["scalars"])


def test_a_healthy_run_gives_no_warning_and_its_signs_are_kept_a_dying_one_is_named(tmp_path, capsys):
    url = make_snapshot(tmp_path / "s", [[800, 700], [1500]], valid_rows=400)
    small = ["model.width=16", "model.top=[16]", "batch_size_per_rank=64", "optimizer.learning_rate=0.003", "epochs=2"]
    folder = RunFolder(tmp_path / "run")
    train(ALONE, snapshot_url=url, recipe=read_recipe("dcn_v2", small), folder=folder, check_only=False)
    assert "warning" not in capsys.readouterr().out
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        found = line["diagnosis"]
        assert 0 < found["gradient_norm_mean"] <= found["gradient_norm_largest"]
        assert 0 <= found["dead_units/deep.1"] <= 0.5
        assert found["effective_rank/vocab/item"] > 1.6
        assert 0 < found["update_ratio"] < 1
    assert find_curves(folder.path / "tensorboard") >= {"diagnosis/gradient_norm_mean", "diagnosis/dead_units/deep.1"}
    dying = [*small, "optimizer.learning_rate=3.0"]
    folder = RunFolder(tmp_path / "dying")
    train(ALONE, snapshot_url=url, recipe=read_recipe("dcn_v2", dying), folder=folder, check_only=False)
    said = capsys.readouterr().out
    assert "epoch 0: warning: " in said
    assert "of the units of deep.1 are dead" in said
