"""Every model: scores are dot products of finite vectors, padding and new ids do no harm, training learns."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch

from schemas.errors import UserError
from schemas.snapshot import open_snapshot
from tests.snapshots import HISTORY, NUM_ITEMS, make_snapshot
from training.batch import Batch
from training.catalogue import read_catalogue
from training.loop import Trainer
from training.models.build import build_model
from training.models.retriever import Retriever
from training.models.two_tower import TwoTower
from training.ranks import OneRank
from training.recipe import Recipe, read_recipe
from training.run_folder import RunFolder
from training.tasks import fresh_model, task_of

RECIPES = ("two_tower", "two_tower_user", "two_tower_new_users", "matrix_factorisation", "sasrec")


def small(name: str, *overrides: str) -> Recipe:
    extra = ["model.recent=2"] if name == "two_tower" else []
    return read_recipe(name, ["model.width=8", "batch_size_per_rank=32", "epochs=4", *extra, *overrides])


def trainer(url: str, recipe: Recipe) -> Trainer:
    snapshot = open_snapshot(url)
    catalogue = read_catalogue(snapshot)
    ranks, device = OneRank(), torch.device("cpu")
    model = build_model(recipe, snapshot.transform, catalogue.features)
    return Trainer(
        task=task_of(model, snapshot, catalogue, recipe, ranks, device),
        snapshot=snapshot,
        recipe=recipe,
        ranks=ranks,
        device=device,
        say=lambda line: None,
    )


def users(history: list[list[int]]) -> Batch:
    rows = len(history)
    return Batch(
        columns={
            "history": torch.tensor(history, dtype=torch.int32),
            "user_idx": torch.full((rows,), 2, dtype=torch.int32),
            "user_age": torch.zeros(rows),
        },
        positions=torch.arange(rows),
        global_rows=rows,
        step=0,
    )


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_snapshot(tmp_path_factory.mktemp("data") / "s", [[200, 200], [100]])


@pytest.mark.parametrize("name", RECIPES)
def test_a_user_without_history_and_one_who_is_new_get_finite_scores(url, name):
    model = cast(Retriever, trainer(url, small(name)).task.model.eval())
    batch = users([[0] * HISTORY, [0] * (HISTORY - 1) + [2]])
    scores = model.users(batch) @ model.items(torch.arange(3, 3 + NUM_ITEMS)).T
    assert scores.shape == (2, NUM_ITEMS)
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("name", ["two_tower", "two_tower_user", "sasrec"])
def test_padding_in_front_of_a_history_changes_nothing_and_its_items_do(url, name):
    model = cast(Retriever, trainer(url, small(name)).task.model.eval())
    first, other = model.users(users([[0, 0, 5, 6], [0, 0, 5, 7]]))
    assert not torch.allclose(first, other)
    if isinstance(model, TwoTower):
        assert torch.all(model.past_items.weight[0] == 0)


@pytest.mark.parametrize("name", RECIPES)
def test_training_learns_which_half_of_the_items_a_user_takes(url, tmp_path, name):
    overrides = [
        "optimizer.learning_rate=0.02",
        "epochs=8",
        "patience=8",
        "model.dropout=0",
        "optimizer.weight_decay=0",
    ]
    learner = trainer(url, small(name, *overrides))
    untrained = learner.evaluate("valid").full["ndcg@10"]
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    progress = learner.train(folder)
    losses = [folder.metrics(epoch)["loss"] for epoch in range(progress.epochs_done)]
    assert losses[-1] < losses[0]
    # 15 of the 30 items are the user's half: a model that knows it ranks about twice as well.
    assert progress.best_value > 1.3 * untrained


@pytest.mark.parametrize("name", RECIPES)
def test_every_parameter_takes_part_in_a_step_even_on_a_rank_without_rows(url, name):
    learner = trainer(url, small(name))
    feed = learner.feed("train", ("row_id", *learner.task.columns))
    batch = next(iter(feed))
    empty = Batch(
        columns={column: values[:0] for column, values in batch.columns.items()},
        positions=batch.positions[:0],
        global_rows=5,
        step=0,
    )
    learner.task.loss_sum(empty, 0).backward()
    for parameter_name, parameter in learner.task.model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


def test_with_a_popularity_prior_an_untrained_model_shows_a_new_user_what_is_popular(url):
    recipe, snapshot = small("two_tower_new_users"), open_snapshot(url)
    catalogue = read_catalogue(snapshot)
    model = fresh_model(snapshot, catalogue, recipe, OneRank(), torch.device("cpu")).eval()
    assert isinstance(model, TwoTower)
    scores = model.users(users([[0] * HISTORY])) @ model.items(torch.arange(3, 3 + NUM_ITEMS)).T
    # Half a count is added, so that an item that train has not can be scored; the mean is taken away.
    expected = (catalogue.counts + 0.5).log()
    assert torch.allclose(scores[0], (expected - expected.mean()).float(), atol=1e-5)
    assert "item_prior" not in dict(model.named_parameters())
    assert "item_prior" in model.state_dict()
    assert "item_prior" not in build_model(small("two_tower"), snapshot.transform).state_dict()


def test_a_uniform_history_dropout_leaves_out_any_share_while_training_and_nothing_after_it(url):
    model = build_model(small("two_tower_new_users", "model.dropout=0"), open_snapshot(url).transform)
    assert isinstance(model, TwoTower)
    with torch.no_grad():
        model.past_items.weight[5] = torch.arange(1.0, 9.0)
        model.past_items.weight[6] = torch.arange(1.0, 9.0)
    torch.manual_seed(0)
    with_both = users([[0, 0, 5, 6]] * 3000)
    assert model.eval().users(with_both)[:, 0].unique().tolist() == [1.0]
    # Of two items with a share r left out both go with probability r^2, whose mean over r is a third; one alone has
    # the same mean vector as both.
    gone = model.train().users(with_both)[:, 0] == 0
    assert gone.float().mean().item() == pytest.approx(1 / 3, abs=0.03)


def test_settings_that_do_not_fit_the_snapshot_say_what_to_change(url):
    snapshot = open_snapshot(url)
    with pytest.raises(UserError, match="histories are 4 long: lower it, or prepare with a larger --history-length"):
        build_model(read_recipe("two_tower", []), snapshot.transform)
    with pytest.raises(UserError, match=r"model\.width 7 is no multiple of model\.heads 2"):
        build_model(read_recipe("sasrec", ["model.width=7"]), snapshot.transform)


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("two_towers", [], "no built-in recipe 'two_towers'; did you mean 'two_tower'"),
        ("two_tower", ["model.widht=3"], "unknown key 'model.widht'; did you mean 'width'"),
        ("two_tower", ["epochs"], "write it as KEY=VALUE"),
        ("two_tower", ["chosen_by=ndcg@7"], "chosen_by 'ndcg@7' is none of recall@10"),
        ("two_tower", ["epochs=0"], "epochs: Input should be greater than 0"),
        ("nowhere.yaml", [], "recipe nowhere.yaml does not exist"),
    ],
)
def test_a_faulty_recipe_is_refused_in_one_line(name, overrides, says):
    with pytest.raises(UserError) as error:
        read_recipe(name, overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_recipes_of_the_catalogue_are_sound():
    from training.recipe import RECIPES as FOLDER

    for path in Path(FOLDER).glob("*.yaml"):
        read_recipe(path.stem, [])
