"""Rankers: what they are made of by hand, that they learn every head, and that a rank without rows takes part."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.contract import read_contract
from schemas.errors import UserError
from schemas.snapshot import Snapshot, open_snapshot
from tests.snapshots import NUM_ITEMS, make_snapshot
from training.batch import Batch
from training.bundle import load_bundle
from training.compare import compare_runs
from training.loop import Trainer
from training.models.build import build_model
from training.models.dcn_v2 import Cross, DCNv2
from training.models.dlrm import DLRM
from training.ranking import Ranking, users_of
from training.ranks import OneRank
from training.recipe import read_recipe
from training.run_folder import RunFolder
from training.tasks import catalogue_of, check_fits, fresh_model, task_of
from training.train import settings_of, train

CPU = torch.device("cpu")
SMALL = ["model.width=4", "model.top=[16]", "batch_size_per_rank=64", "epochs=6", "patience=6"]
TWO_HEADS = "loss.heads={label: 1.0, label_like: 0.5}"


def ranking(url: str, name: str, *overrides: str) -> Ranking:
    snapshot, recipe = open_snapshot(url), read_recipe(name, [*SMALL, *overrides])
    check_fits(snapshot, recipe)
    catalogue, ranks = catalogue_of(snapshot), OneRank()
    model = fresh_model(snapshot, catalogue, recipe, ranks, CPU)
    task = task_of(model, snapshot, catalogue, recipe, ranks, CPU)
    assert isinstance(task, Ranking)
    return task


def trainer(url: str, task: Ranking) -> Trainer:
    return Trainer(
        task=task, snapshot=open_snapshot(url), recipe=task.recipe, ranks=task.ranks, device=CPU, say=lambda line: None
    )


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_snapshot(
        tmp_path_factory.mktemp("data") / "s", [[800, 700], [1500]], valid_rows=400, unknown_likes=True
    )


def some_rows(rows: int) -> Batch:
    random = np.random.default_rng(1)
    columns = {
        "user_idx": torch.from_numpy(random.integers(3, 20, rows).astype(np.int32)),
        "item_idx": torch.from_numpy(random.integers(3, NUM_ITEMS, rows).astype(np.int32)),
        "history": torch.from_numpy(random.integers(0, NUM_ITEMS, (rows, 4)).astype(np.int32)),
        "user_age": torch.from_numpy(random.normal(size=rows).astype(np.float32)),
    }
    return Batch(columns=columns, positions=torch.arange(rows), global_rows=rows, step=0)


def test_the_gradient_of_pair_products_is_the_one_that_numbers_give():
    from training.models.dlrm import _PairProducts

    pairs = torch.triu_indices(4, 4, offset=1)
    place = torch.full((4, 4), 6)
    place[pairs[0], pairs[1]] = place[pairs[1], pairs[0]] = torch.arange(6)
    vectors = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    inputs = (vectors, pairs[0] * 4 + pairs[1], place.flatten())
    assert torch.autograd.gradcheck(_PairProducts.apply, inputs)


def test_dlrm_by_hand(url):
    model = ranking(url, "dlrm", "model.bottom=[]", "model.top=[]", "model.width=2").model.eval()
    assert isinstance(model, DLRM)
    assert model.bottom is not None
    with torch.no_grad():
        batch = some_rows(1)
        user, item, history = model.embeddings({name: batch[name] for name in ("user_idx", "item_idx", "history")})[0]
        age = torch.relu(model.bottom[0](batch["user_age"].unsqueeze(1)))[0]
        products = [age @ user, age @ item, age @ history, user @ item, user @ history, item @ history]
        expected = model.heads(torch.cat([age, torch.stack(products)]).unsqueeze(0))
        assert torch.allclose(model(batch), expected, atol=1e-6)


def test_a_cross_layer_by_hand():
    cross = Cross(2, rank=0)
    with torch.no_grad():
        cross.mix.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        cross.mix.bias.copy_(torch.tensor([0.5, 0.0]))
        # W x + b = (3 + 8 + 0.5, -4) = (11.5, -4); times (2, 5) plus (3, 4).
        crossed = cross(torch.tensor([[2.0, 5.0]]), torch.tensor([[3.0, 4.0]]))
    assert crossed.tolist() == [[26.0, -16.0]]


def test_a_cross_layer_of_a_rank_has_that_rank(url):
    model = ranking(url, "dcn_v2", "model.cross_rank=3", "model.cross_layers=2").model
    assert isinstance(model, DCNv2)
    for cross in model.crosses:
        first, second = cross.mix
        assert torch.linalg.matrix_rank(second.weight @ first.weight) == 3


@pytest.mark.parametrize("tables", ["replicated", "sharded"])
@pytest.mark.parametrize("name", ["dlrm", "dcn_v2"])
def test_every_head_learns_and_the_bundle_scores_as_the_model_did(url, tmp_path, name, tables):
    learning = ["optimizer.learning_rate=0.01", "optimizer.table_learning_rate=0.3", f"model.tables={tables}"]
    task = ranking(url, name, TWO_HEADS, *learning)
    before = trainer(url, task).evaluate("valid").heads
    run = RunFolder(tmp_path / "run")
    train(OneRank(), snapshot_url=url, recipe=task.recipe, folder=run, check_only=False)
    best = json.loads((run.bundle / "bundle.json").read_text())["valid"]["heads"]
    for head in ("label", "label_like"):
        assert best[head]["auc"] > max(0.62, before[head]["auc"])
        assert best[head]["log_loss"] < before[head]["log_loss"]
    loaded = load_bundle(run.bundle).model
    again = trainer(url, replace(task, model=loaded)).evaluate("valid").heads
    assert again == best


def test_a_label_that_is_not_known_counts_for_nothing(url):
    task = ranking(url, "dlrm", TWO_HEADS)
    batch = some_rows(3)
    labels = {"label": torch.tensor([1.0, 0.0, 1.0]), "label_like": torch.tensor([float("nan"), 1.0, float("nan")])}
    with torch.no_grad():
        logits = task.model(batch)
        loss = task.loss_sum(replace(batch, columns={**batch.columns, **labels}), 0)
    clicks = torch.nn.functional.softplus(logits[:, 0] * torch.tensor([-1.0, 1.0, -1.0])).sum()
    like = torch.nn.functional.softplus(-logits[1, 1])
    assert loss == pytest.approx(float(clicks + 0.5 * like), rel=1e-6)


@pytest.mark.parametrize("name", ["dlrm", "dcn_v2"])
def test_every_parameter_takes_part_in_a_step_even_on_a_rank_without_rows(url, name):
    task = ranking(url, name)
    batch = next(iter(trainer(url, task).feed("train", ("row_id", *task.columns))))
    empty = replace(batch, columns={n: c[:0] for n, c in batch.columns.items()}, positions=batch.positions[:0])
    task.model.train()
    task.loss_sum(empty, 0).backward()
    for parameter_name, parameter in task.model.named_parameters():
        if parameter.numel():
            assert parameter.grad is not None, parameter_name
            assert not parameter.grad.any()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["loss.heads={label_lick: 1}"], "no label 'label_lick'; did you mean 'label_like'"),
        (["loss.heads={user_age: 1}"], "no label 'user_age': it has label, label_like"),
        (["model.width=[3"], "'[3' is no YAML"),
        (["chosen_by=ndcg@10"], "chosen_by 'ndcg@10' is none of auc, gauc, log_loss, normalised_entropy"),
        (["loss={name: bpr}"], "model dlrm learns by binary_cross_entropy, not by bpr"),
        (["model.botom=[3]"], "unknown key 'model.botom'; did you mean 'bottom'"),
    ],
)
def test_a_faulty_recipe_is_refused_in_one_line(url, overrides, says):
    with pytest.raises(UserError) as error:
        ranking(url, "dlrm", *overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_ranker_does_not_pretend_to_retrieve(url, tmp_path):
    recipe = read_recipe("dlrm", [*SMALL, "epochs=1"])
    train(OneRank(), snapshot_url=url, recipe=recipe, folder=RunFolder(tmp_path / "run"), check_only=False)
    with pytest.raises(UserError, match="dlrm is a ranker"):
        _ = load_bundle(Path(tmp_path / "run" / "bundle")).retriever


def test_a_valid_split_of_one_class_is_named_where_the_epoch_is_chosen_by_auc(tmp_path):
    url = make_snapshot(tmp_path / "s", [[60]], valid_rows=1)
    recipe = read_recipe("dlrm", [*SMALL, "epochs=1"])
    with pytest.raises(UserError, match=r"valid has no auc: its 1 rows are too few, or their labels all of one class"):
        train(OneRank(), snapshot_url=url, recipe=recipe, folder=RunFolder(tmp_path / "run"), check_only=False)


def test_one_feature_alone_has_no_pairs(url):
    transform, recipe = open_snapshot(url).transform, read_recipe("dlrm", SMALL)
    alone = transform.model_copy(update={"features": transform.features[:1]})
    with pytest.raises(UserError, match="pairs of features, and the snapshot has fewer than two: take dcn_v2"):
        build_model(recipe, alone, {})


def test_runs_of_different_snapshots_or_of_retrievers_are_not_compared(url, tmp_path):
    other = make_snapshot(tmp_path / "other", [[100]])
    runs = {}
    for name, where, recipe in (("one", url, "dlrm"), ("two", other, "dlrm"), ("three", url, "matrix_factorisation")):
        small = SMALL if recipe == "dlrm" else ["model.width=4"]
        runs[name] = RunFolder(tmp_path / name)
        settings = read_recipe(recipe, [*small, "epochs=1"])
        train(OneRank(), snapshot_url=where, recipe=settings, folder=runs[name], check_only=False)
    with pytest.raises(UserError, match="trained on different snapshots"):
        compare_runs(OneRank(), (runs["one"].path, runs["two"].path), "test", 10)
    with pytest.raises(UserError, match="three holds a retriever: compare is for rankers"):
        compare_runs(OneRank(), (runs["one"].path, runs["three"].path), "test", 10)
    same = compare_runs(OneRank(), (runs["one"].path, runs["one"].path), "test", 10)
    assert {one.difference for one in same["label"].values() if not math.isnan(one.difference)} == {0.0}


def test_users_who_are_not_known_are_each_their_own():
    columns = {"row_id": torch.tensor([7, 8, 9, 10]), "user_idx": torch.tensor([5, 2, 2, 5], dtype=torch.int32)}
    batch = Batch(columns=columns, positions=torch.arange(4), global_rows=4, step=0)
    first, second, third, fourth = users_of(batch).tolist()
    assert first == fourth == 5
    assert len({first, second, third}) == 3


def changed(url: str, **changes: Any) -> Snapshot:
    snapshot = open_snapshot(url)
    return Snapshot(snapshot.url, snapshot.manifest.model_copy(update=changes))


def test_a_label_that_can_be_other_than_0_and_1_is_refused_before_anything_is_trained(url):
    with pytest.raises(UserError, match="the label 'label' is 'rating', which its contract allows other values"):
        check_fits(changed(url, contract=read_contract("ml-100k")), read_recipe("dlrm", SMALL))


def test_a_retriever_needs_users_and_items(url):
    parts = {name: files for name, files in open_snapshot(url).manifest.parts.items() if name != "items"}
    with pytest.raises(UserError, match="has no users and items to learn from: train a ranker, such as dlrm"):
        check_fits(changed(url, parts=parts), read_recipe("matrix_factorisation", []))


def test_dcn_v2_takes_numbers_alone_and_nothing_is_refused(url):
    transform, recipe = open_snapshot(url).transform, read_recipe("dcn_v2", SMALL)
    numbers = [feature for feature in transform.features if feature.name == "user_age"]
    model = build_model(recipe, transform.model_copy(update={"features": tuple(numbers)}), {})
    assert model(some_rows(5)).shape == (5, 1)
    with pytest.raises(UserError, match="dcn_v2 has nothing to learn from"):
        build_model(recipe, transform.model_copy(update={"features": ()}), {})


def test_a_run_does_not_go_on_with_its_heads_in_another_order(url, tmp_path):
    folder = RunFolder(tmp_path / "run")
    for heads in ("{label: 1.0, label_like: 1.0}", "{label_like: 1.0, label: 1.0}"):
        settings = settings_of(open_snapshot(url), read_recipe("dlrm", [*SMALL, f"loss.heads={heads}"]))
        if heads.startswith("{label:"):
            folder.begin(settings)
            folder.check(settings)
        else:
            with pytest.raises(UserError, match="holds a run with another recipe"):
                folder.check(settings)
