"""All positions of a history: the loss is the sum of its prefixes', later items are not seen, users' last rows."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch

from schemas.errors import UserError
from schemas.snapshot import Snapshot, open_snapshot
from tests.snapshots import HISTORY, make_snapshot
from training.batch import Batch
from training.loop import Trainer
from training.losses import sampled_softmax
from training.models.sasrec import SASRec
from training.positions import following, last_rows, loss_of_positions, of_last_rows
from training.ranks import OneRank
from training.recipe import read_recipe
from training.retrieval import Retrieval
from training.run_folder import RunFolder
from training.tasks import catalogue_of, fresh_model, task_of

CPU = torch.device("cpu")
ALL = "loss.positions=all"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_snapshot(tmp_path_factory.mktemp("data") / "s", [[200, 200], [100]])


def learner(url: str, *overrides: str) -> Trainer:
    recipe, snapshot = read_recipe("sasrec", ["model.width=8", "model.dropout=0", *overrides]), open_snapshot(url)
    catalogue, ranks = catalogue_of(snapshot), OneRank()
    model = fresh_model(snapshot, catalogue, recipe, ranks, CPU)
    task = task_of(model, snapshot, catalogue, recipe, ranks, CPU)
    return Trainer(task=task, snapshot=snapshot, recipe=recipe, ranks=ranks, device=CPU, say=lambda line: None)


def rows(histories: list[list[int]], items: list[int], **more: list[int]) -> Batch:
    columns = {"history": torch.tensor(histories, dtype=torch.int32), "item_idx": torch.tensor(items)}
    columns |= {name: torch.tensor(values) for name, values in more.items()}
    count = len(items)
    return Batch(columns=columns, positions=torch.arange(count), global_rows=count, step=0)


def test_what_follows_each_place_by_hand():
    batch = rows([[0, 0, 5, 6], [0, 0, 0, 0], [5, 2, 6, 7]], [7, 8, 9])
    # Padding before padding is followed by 0 and does not count, nor does what is followed by an unseen item (2).
    assert following(batch).tolist() == [[0, 5, 6, 7], [0, 0, 0, 8], [2, 6, 7, 9]]


@pytest.mark.parametrize("num_sampled", [0, 10])
def test_the_loss_of_all_positions_is_the_sum_of_the_prefixes_given_one_at_a_time(url, num_sampled):
    task = cast(Retrieval, learner(url, ALL, f"loss.num_sampled={num_sampled}").task)
    model = cast(SASRec, task.model.eval())
    torch.nn.init.zeros_(model.positions)  # else a prefix stands at other places than within the whole
    one = rows([[0, 5, 9, 6]], [7])
    prefixes = rows([[0, 0, 0, 0], [0, 0, 0, 5], [0, 0, 5, 9], [0, 5, 9, 6]], [5, 9, 6, 7])
    settings = {"num_sampled": num_sampled, "epoch": 0, "temperature": 1.0}
    with torch.no_grad():
        expected = sampled_softmax(model, prefixes, task.sampler, **settings)
        found = loss_of_positions(model, one, following(one), task.sampler, **settings)
        assert float(found) == pytest.approx(float(expected.sum()), rel=1e-5)
        # A mean over the 4 positions, times the one row that the step divides by.
        assert float(task.loss_sum(one, 0)) == pytest.approx(float(expected.mean()), rel=1e-5)


def test_no_position_sees_a_later_item(url):
    model = cast(SASRec, learner(url).task.model.eval())
    first, other = (model.states(rows([history], [3]))[0] for history in ([0, 5, 9, 6], [0, 5, 9, 11]))
    assert torch.allclose(first[:3], other[:3], atol=1e-6)
    assert not torch.allclose(first[3], other[3])
    assert torch.equal(model.users(rows([[0, 5, 9, 6]], [3]))[0], first[-1])


@pytest.mark.parametrize("num_sampled", [0, 10])
def test_scores_of_a_few_positions_at_a_time_teach_what_those_of_all_do(url, num_sampled):
    task = cast(Retrieval, learner(url, ALL).task)
    model = cast(SASRec, task.model)
    batch = next(iter(learner(url, "batch_size_per_rank=32").feed("train", ("row_id", "history", "item_idx"))))
    gradients = []
    for most_scores in (1 << 24, 70):
        model.zero_grad()
        loss = loss_of_positions(
            model, batch, following(batch), task.sampler, num_sampled=num_sampled, epoch=0, temperature=1.0,
            most_scores=most_scores,
        )  # fmt: skip
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, atol=1e-4)


class Together(OneRank):
    """A rank beside others, who count as many positions as were said."""

    def __init__(self, others: int) -> None:
        super().__init__()
        self.others = others

    def sum(self, values: torch.Tensor, name: str) -> torch.Tensor:
        assert name == "positions_counted"
        return values + self.others


def test_shares_of_a_batch_on_ranks_add_up_to_its_loss_though_their_rows_hold_unequal_positions(url):
    task = cast(Retrieval, learner(url, ALL).task)
    task.model.eval()
    whole = rows([[0, 5, 9, 6], [0, 0, 0, 0], [5, 9, 6, 7]], [7, 8, 9])  # 4, 1 and 4 positions
    with torch.no_grad():
        shares = []
        for kept, others in (([True, False, False], 5), ([False, True, True], 4)):
            columns = {name: whole[name][torch.tensor(kept)] for name in ("history", "item_idx")}
            share = replace(whole, columns=columns, positions=torch.arange(sum(kept)))
            shares.append(float(replace(task, ranks=Together(others)).loss_sum(share, 0)))
        assert sum(shares) == pytest.approx(float(task.loss_sum(whole, 0)), rel=1e-5)


def test_a_rank_whose_rows_count_for_nothing_takes_part(url):
    task = learner(url, ALL).task
    for batch in (rows([[0, 0, 0, 0]], [2]), replace(rows([[0] * 4], [3]), columns={
        "history": torch.empty(0, HISTORY, dtype=torch.int32), "item_idx": torch.empty(0, dtype=torch.int32)
    }, positions=torch.arange(0))):  # fmt: skip
        task.model.zero_grad()
        task.loss_sum(batch, 0).backward()
        for name, parameter in task.model.named_parameters():
            assert parameter.grad is not None, name
            assert not parameter.grad.any()


def test_last_rows_are_those_of_the_latest_time(url):
    snapshot = open_snapshot(url)
    train = snapshot.read("train")
    user, time, row = (train[name].to_numpy() for name in ("user_idx", "event_time_ms", "row_id"))
    found = last_rows(snapshot)
    assert len(found) == snapshot.transform.vocabularies["user"].size
    for each in range(len(found)):
        of_user = user == each
        expected = row[of_user][time[of_user].argmax()] if of_user.any() else -1
        assert int(found[each]) == expected
    batch = rows([[0] * 4] * 4, [3, 4, 5, 6], user_idx=[3, 3, 2, 2], row_id=[int(found[3]), -5, 7, 8])
    assert of_last_rows(batch, found)["item_idx"].tolist() == [3, 5, 6]  # unknown users are each another one


def test_users_without_times_are_refused(url):
    snapshot = open_snapshot(url)
    parts = {**snapshot.manifest.parts, "train": snapshot.files("items")}
    changed = Snapshot(snapshot.url, snapshot.manifest.model_copy(update={"parts": parts}))
    with pytest.raises(UserError, match=r"train has no event_time_ms, row_id, user_idx, which loss\.rows"):
        last_rows(changed)


@pytest.mark.parametrize("rows_of", ["every", "last_of_user"])
def test_training_on_all_positions_learns_which_half_of_the_items_a_user_takes(url, tmp_path, rows_of):
    epochs = 8 if rows_of == "every" else 40  # of 20 users each epoch holds 20 rows, not 500
    overrides = [ALL, f"loss.rows={rows_of}", "optimizer.learning_rate=0.02", "optimizer.weight_decay=0"]
    of = learner(url, *overrides, "batch_size_per_rank=250", f"epochs={epochs}", f"patience={epochs}")
    untrained = of.evaluate("valid").full["ndcg@10"]
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    assert of.train(folder).best_value > 1.3 * untrained


@pytest.mark.parametrize(
    ("recipe", "overrides", "says"),
    [
        ("two_tower", [ALL], "loss.positions: all is for sasrec and sampled_softmax: take `last`"),
        ("sasrec", [ALL, "loss.name=bpr"], "loss.positions: all is for sasrec and sampled_softmax"),
        ("sasrec", ["loss.rows=last_of_user"], "would leave one item a user: set loss.positions to all, too"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(recipe, overrides, says):
    with pytest.raises(UserError, match=says):
        read_recipe(recipe, overrides)
