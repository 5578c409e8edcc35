"""Warm start: what was learned of a value stays with it, wherever its row lies in the next generation."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from schemas.errors import SnapshotDamaged, UserError
from schemas.features import BucketFeature, HashFeature, NumberFeature
from schemas.manifest import MANIFEST
from schemas.snapshot import Snapshot, open_snapshot
from tests.snapshots import HISTORY, NUM_ITEMS, NUM_USERS, make_snapshot, write_vocabularies
from training.batch import Batch
from training.bundle import bundle_digest, load_bundle
from training.models.build import build_model
from training.ranks import OneRank
from training.recipe import Recipe, read_recipe
from training.run_folder import RunFolder
from training.tasks import catalogue_of, fresh_model
from training.train import main, train
from training.vocabularies import Renumbering
from training.warm_start import DoesNotFit, WarmStart, plan_warm_start

CPU = torch.device("cpu")
SMALL = ["model.width=4", "epochs=2", "batch_size_per_rank=64", "optimizer.learning_rate=0.02"]
RANKER = [*SMALL, "model.top=[8]", "optimizer.table_learning_rate=0.3"]

OLD_ITEMS = [f"i{i}" for i in range(NUM_ITEMS)]
# In another order; the five most frequent of old are gone and five are new.
NEW_ITEMS = [f"new{i}" for i in range(5)] + [f"i{i}" for i in reversed(range(5, NUM_ITEMS))]
OLD_USERS = [f"u{i}" for i in range(NUM_USERS)]
NEW_USERS = ["u7", "u3", "new", *(f"u{i}" for i in range(NUM_USERS) if i not in (3, 7, 11))]


def first_generation(root: Path) -> str:
    return write_vocabularies(make_snapshot(root, [[300]], valid_rows=60), {"user": OLD_USERS, "item": OLD_ITEMS})


def second_generation(root: Path) -> str:
    return write_vocabularies(make_snapshot(root, [[200]], valid_rows=60), {"user": NEW_USERS, "item": NEW_ITEMS})


def trained(url: str, run: Path, recipe: Recipe, warm_start: Path | None = None) -> Path:
    train(
        OneRank(), snapshot_url=url, recipe=recipe, folder=RunFolder(run), check_only=False, warm_start=warm_start
    )  # fmt: skip
    return run / "bundle"


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("data")
    return first_generation(root / "one"), second_generation(root / "two")


@pytest.fixture(scope="module")
def dlrm(urls: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(urls[0], tmp_path_factory.mktemp("run") / "dlrm", read_recipe("dlrm", RANKER))


def warmed(bundle: Path, snapshot: Snapshot, recipe: Recipe) -> tuple[torch.nn.Module, list[str]]:
    model = fresh_model(snapshot, catalogue_of(snapshot), recipe, OneRank(), CPU)
    start = plan_warm_start(bundle, snapshot, recipe, OneRank())
    lines = start.fill(model, start.match(model))
    return model.eval(), lines


def rows_of_values(users: list[str], items: list[str]) -> Batch:
    """The same rows in the numbers of a generation: values of both, and what is reserved."""
    random = np.random.default_rng(4)
    known_users = ["u3", "u7", "u19", "u0"]
    known_items = [f"i{i}" for i in range(5, NUM_ITEMS)]
    user = [users.index(random.choice(known_users)) + 3 for _ in range(40)]
    item = [items.index(random.choice(known_items)) + 3 for _ in range(40)]
    history = [[0] + [items.index(random.choice(known_items)) + 3 for _ in range(HISTORY - 1)] for _ in range(40)]
    user[0], item[1], item[2] = 2, 1, 2  # unseen and null
    columns = {
        "user_idx": torch.tensor(user, dtype=torch.int32),
        "item_idx": torch.tensor(item, dtype=torch.int32),
        "history": torch.tensor(history, dtype=torch.int32),
        "user_age": torch.from_numpy(random.normal(size=40).astype(np.float32)),
    }
    return Batch(columns=columns, positions=torch.arange(40), global_rows=40, step=0)


@pytest.mark.parametrize("tables", ["replicated", "sharded"])
def test_a_ranker_says_of_old_values_what_the_earlier_one_said(urls, dlrm, tables):
    recipe, snapshot = read_recipe("dlrm", [*RANKER, f"model.tables={tables}"]), open_snapshot(urls[1])
    model, lines = warmed(dlrm, snapshot, recipe)
    old = load_bundle(dlrm).model
    with torch.no_grad():
        before, after = old(rows_of_values(OLD_USERS, OLD_ITEMS)), model(rows_of_values(NEW_USERS, NEW_ITEMS))
    assert before.std() > 0.01
    assert torch.allclose(before, after, atol=1e-6)
    counts = [line.split() for line in lines]
    assert ["vocab/item", "28", "5", "5"] in counts  # 25 items and the 3 reserved rows
    assert ["vocab/user", "22", "1", "1"] in counts


def test_new_values_begin_as_fresh_rows_and_old_ones_bring_their_memory(urls, dlrm):
    recipe, snapshot = read_recipe("dlrm", RANKER), open_snapshot(urls[1])
    model, _ = warmed(dlrm, snapshot, recipe)
    fresh = fresh_model(snapshot, catalogue_of(snapshot), recipe, OneRank(), CPU).embeddings.held("vocab/item")
    old, new = load_bundle(dlrm).model.embeddings.held("vocab/item"), model.embeddings.held("vocab/item")
    assert torch.equal(new.weight[3:8], fresh.weight[3:8])
    assert not new.squares[3:8].any()
    place = NEW_ITEMS.index("i12") + 3
    assert torch.equal(new.weight[place], old.weight[15])
    assert new.squares[place] == old.squares[15] > 0
    assert torch.equal(new.weight[:3], old.weight[:3])
    assert torch.equal(new.squares[:3], old.squares[:3])


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("two_tower", ["model.recent=2", "model.user_id=true", "model.user_features=true"]), ("sasrec", []),
     ("matrix_factorisation", [])],
)  # fmt: skip
def test_a_retriever_scores_old_values_as_the_earlier_one_did(urls, tmp_path, name, overrides):
    recipe = read_recipe(name, [*SMALL, "epochs=1", *overrides])
    bundle = trained(urls[0], tmp_path / "run", recipe)
    model, lines = warmed(bundle, open_snapshot(urls[1]), recipe)
    kept = [f"i{i}" for i in range(5, NUM_ITEMS)]
    scores = []
    for of, users, items in ((load_bundle(bundle).model, OLD_USERS, OLD_ITEMS), (model, NEW_USERS, NEW_ITEMS)):
        with torch.no_grad():
            every = torch.tensor([items.index(value) + 3 for value in kept])
            scores.append(of.users(rows_of_values(users, items)) @ of.items(every).T)
    assert scores[0].std() > 0.001
    assert torch.allclose(*scores, atol=1e-6)
    assert any(line.split() == ["vocab/item", "28", "5", "5"] for line in lines)
    assert not any("begins anew" in line for line in lines)


def test_the_bundle_carries_its_vocabularies_so_the_old_snapshot_may_be_gone(urls, tmp_path):
    root = tmp_path / "one"
    recipe = read_recipe("dlrm", [*RANKER, "epochs=1"])
    bundle = trained(first_generation(root), tmp_path / "run", recipe)
    shutil.rmtree(root)
    _, lines = warmed(bundle, open_snapshot(urls[1]), recipe)
    assert any(line.split() == ["vocab/item", "28", "5", "5"] for line in lines)
    shutil.rmtree(bundle / "vocab")  # as a bundle is whose vocabularies are too large
    with pytest.raises(UserError, match=r"does not carry its vocabulary 'user', and the snapshot .* is no published"):
        warmed(bundle, open_snapshot(urls[1]), recipe)
    second_generation(root)
    with pytest.raises(UserError, match="is another snapshot than it was"):
        warmed(bundle, open_snapshot(urls[1]), recipe)
    shutil.rmtree(root)
    first_generation(root)
    _, again = warmed(bundle, open_snapshot(urls[1]), recipe)
    assert again == lines


def test_values_are_matched_and_not_numbers_by_hand():
    old = pa.table({"value": ["a", "b", "c"], "idx": pa.array([3, 4, 5], pa.int32())})
    new = pa.table({"value": ["c", "x", "a"], "idx": pa.array([3, 4, 5], pa.int32())})
    found = Renumbering.of(old, new, old_rows=6, new_rows=6)
    assert found.new_of_old.tolist() == [0, 1, 2, 5, -1, 3]
    assert (found.kept, found.new, found.gone) == (5, 1, 1)
    none = Renumbering.of(old.slice(0, 0), new, old_rows=3, new_rows=6)
    assert (none.kept, none.new, none.gone) == (3, 3, 0)


def test_heads_are_matched_by_their_labels(urls, tmp_path):
    two = read_recipe("dcn_v2", [*RANKER, "loss.heads={label: 1.0, label_like: 1.0}"])
    bundle = trained(urls[0], tmp_path / "run", two)
    turned = read_recipe("dcn_v2", [*RANKER, "loss.heads={label_like: 1.0, label: 1.0}"])
    model, lines = warmed(bundle, open_snapshot(urls[1]), turned)
    old = load_bundle(bundle).model
    with torch.no_grad():
        before, after = old(rows_of_values(OLD_USERS, OLD_ITEMS)), model(rows_of_values(NEW_USERS, NEW_ITEMS))
    assert torch.allclose(before, after.flip(1), atol=1e-6)
    assert not any("begins anew" in line for line in lines)


def changed(snapshot: Snapshot, *features: object) -> Snapshot:
    transform = snapshot.transform.model_copy(update={"features": (*snapshot.transform.features, *features)})
    return Snapshot(snapshot.url, snapshot.manifest.model_copy(update={"transform": transform}))


def test_layers_that_would_meet_other_features_begin_anew_and_say_so(urls, dlrm):
    snapshot, recipe = open_snapshot(urls[1]), read_recipe("dlrm", RANKER)
    age = snapshot.transform.features[-1]
    renamed = NumberFeature(name="user_height", source="height", owner="users")
    assert age.name == "user_age"
    transform = snapshot.transform.model_copy(update={"features": (*snapshot.transform.features[:-1], renamed)})
    other = Snapshot(snapshot.url, snapshot.manifest.model_copy(update={"transform": transform}))
    model, lines = warmed(dlrm, other, recipe)
    fresh = build_model(recipe, transform, {})
    assert torch.equal(model.bottom[0].weight, fresh.bottom[0].weight)
    assert (
        "bottom.0.weight begins anew: the features have changed (user_age, user_height), which it knows by their place"
        in lines
    )
    old = load_bundle(dlrm).model.embeddings.held("vocab/item")
    new = model.embeddings.held("vocab/item")
    assert torch.equal(new.weight[NEW_ITEMS.index("i12") + 3], old.weight[15])  # tables go by value all the same


def test_hashes_and_intervals_are_matched_where_they_mean_the_same(urls, dlrm):
    first, second, recipe = open_snapshot(urls[0]), open_snapshot(urls[1]), read_recipe("dlrm", RANKER)
    hashed = HashFeature(name="city_hash", sources=("city",), buckets=10, owner="users")
    cut = BucketFeature(name="price", source="price", edges=(1.0, 2.0), owner="users")
    old = load_bundle(dlrm).manifest.model_copy(update={"transform": changed(first, hashed, cut).transform})

    def matched(feature: HashFeature | BucketFeature) -> list[int] | None:
        snapshot = changed(second, feature)
        start = WarmStart(bundle=dlrm, digest="", old=old, recipe=recipe, snapshot=snapshot)
        rows = start.match(build_model(recipe, snapshot.transform, {}))[feature.name]
        return None if rows is None else rows.new_of_old.tolist()

    assert matched(hashed) == [*range(13)]
    assert matched(hashed.model_copy(update={"sources": ("town",)})) is None
    assert matched(hashed.model_copy(update={"buckets": 11})) is None
    assert matched(cut.model_copy(update={"edges": (1.1, 2.3)})) == [*range(6)]
    assert matched(cut.model_copy(update={"edges": (1.1,)})) is None
    assert matched(cut.model_copy(update={"name": "fee"})) is None


@pytest.mark.parametrize(
    ("recipe", "overrides", "says"),
    [
        ("dlrm", ["model.width=8"], "vectors of .* have 4 numbers, the recipe's 8: set model.width=4"),
        ("dcn_v2", [], "holds a dlrm, and the recipe trains a dcn_v2"),
    ],
)
def test_what_cannot_be_taken_over_is_refused_in_one_line(urls, dlrm, tmp_path, recipe, overrides, says):
    with pytest.raises(UserError, match=says):
        trained(urls[1], tmp_path / "run", read_recipe(recipe, [*RANKER, *overrides]), dlrm)
    assert not (tmp_path / "run").exists()


def test_a_popularity_prior_is_the_new_snapshots_and_goes_with_models_that_had_one(urls, tmp_path):
    settings = [*SMALL, "epochs=1", "model.popularity_prior=true", "model.recent=2"]
    recipe, snapshot = read_recipe("two_tower", settings), open_snapshot(urls[1])
    bundle = trained(urls[0], tmp_path / "run", recipe)
    model, _ = warmed(bundle, snapshot, recipe)
    old, fresh = load_bundle(bundle).model, fresh_model(snapshot, catalogue_of(snapshot), recipe, OneRank(), CPU)
    assert torch.equal(model.item_prior, fresh.item_prior)
    assert not torch.equal(model.item_prior, old.item_prior)
    assert model.item_bias[NEW_ITEMS.index("i12") + 3] == old.item_bias[15]
    without = read_recipe("two_tower", [*settings, "model.popularity_prior=false"])
    with pytest.raises(DoesNotFit, match=r"was trained with a popularity prior.* set model\.popularity_prior=true, or"):
        plan_warm_start(bundle, snapshot, without, OneRank())


def test_another_model_begins_anew_and_says_so_where_that_was_asked_for(urls, dlrm, tmp_path, capsys):
    settings = [part for override in [*RANKER, "model.width=8"] for part in ("--set", override)]
    arguments = ["--snapshot", urls[1], "--run", str(tmp_path / "run"), "--recipe", "dlrm", *settings, "--check-only"]
    assert main([*arguments, "--warm-start", str(dlrm)]) == 2
    assert main([*arguments, "--warm-start", str(dlrm), "--or-anew"]) == 0
    assert "begins anew: --warm-start: vectors of" in capsys.readouterr().out


def test_layers_of_another_shape_begin_anew(urls, dlrm):
    recipe = read_recipe("dlrm", [*RANKER, "model.top=[6]"])
    model, lines = warmed(dlrm, open_snapshot(urls[1]), recipe)
    assert "top.0.bias begins anew: its shape was (8,) and is (6,)" in lines
    old = load_bundle(dlrm).model
    assert torch.equal(model.bottom[0].weight, old.bottom[0].weight)


def test_a_bundles_digest_is_of_its_own_files_alone(dlrm, tmp_path):
    copied = shutil.copytree(dlrm, tmp_path / "bundle")
    (copied / "registered_model_meta").write_text("model_name: clicks")  # MLflow's
    (copied / "vocab" / ".DS_Store").touch()
    assert bundle_digest(copied) == bundle_digest(dlrm)
    own = [path for path in copied.rglob("*") if path.is_file() and (dlrm / path.relative_to(copied)).exists()]
    assert {path.name for path in own} == {
        "bundle.json", "model.safetensors", "items.parquet", "embeddings-00000-of-00001.safetensors", "item.parquet",
        "user.parquet",
    }  # fmt: skip
    for path in own:
        whole = path.read_bytes()
        path.write_bytes(whole + b" ")
        assert bundle_digest(copied) != bundle_digest(dlrm), path
        path.write_bytes(whole)


def test_a_run_with_a_warm_start_is_another_run_than_one_without(urls, dlrm, tmp_path, capsys):
    recipe = read_recipe("dlrm", [*RANKER, "epochs=1"])
    bundle = trained(urls[1], tmp_path / "run", recipe, dlrm)
    before = load_file(bundle / "embeddings-00000-of-00001.safetensors")
    shown = capsys.readouterr().out
    assert f"train: begins with the weights of {dlrm}" in shown
    assert json.loads((tmp_path / "run" / "run.json").read_text())["warm_start"] == bundle_digest(dlrm)
    assert load_bundle(bundle).manifest.warm_start == bundle_digest(dlrm)
    copied = shutil.copytree(dlrm, tmp_path / "elsewhere")
    trained(urls[1], tmp_path / "run", recipe, copied)  # the same bundle, wherever it lies
    assert "stands already" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a run with another warm_start"):
        trained(urls[1], tmp_path / "run", recipe)
    shutil.rmtree(tmp_path / "run" / "bundle")  # as if it had been killed there
    trained(urls[1], tmp_path / "run", recipe, dlrm)
    assert "begins with the weights" not in capsys.readouterr().out  # they are those of the checkpoint
    after = load_file(bundle / "embeddings-00000-of-00001.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_command_line_takes_a_run_or_its_bundle(urls, dlrm, tmp_path, capsys):
    settings = [word for setting in (*RANKER, "epochs=1") for word in ("--set", setting)]
    arguments = ["--snapshot", urls[1], "--run", str(tmp_path / "run"), "--recipe", "dlrm", *settings]
    assert main([*arguments, "--warm-start", str(tmp_path / "nowhere"), "--check-only"]) == 2
    assert "nowhere/bundle is no bundle" in capsys.readouterr().err
    assert main([*arguments, "--warm-start", str(dlrm.parent), "--check-only"]) == 0
    assert main([*arguments, "--warm-start", str(dlrm), "--check-only"]) == 0


def test_a_bundle_with_more_rows_than_its_vocabulary_is_damaged(urls, dlrm):
    recipe, snapshot = read_recipe("dlrm", RANKER), open_snapshot(urls[1])
    model = fresh_model(snapshot, catalogue_of(snapshot), recipe, OneRank(), CPU)
    start = plan_warm_start(dlrm, snapshot, recipe, OneRank())
    rows = start.match(model)
    item = rows["vocab/item"]
    assert item is not None
    with pytest.raises(SnapshotDamaged, match="'vocab/item' has more rows than its vocabulary"):
        start.fill(model, rows | {"vocab/item": replace(item, new_of_old=item.new_of_old[:-1])})
    with pytest.raises(SnapshotDamaged, match="'vocab/item' are not all there"):
        start.fill(model, rows | {"vocab/item": replace(item, new_of_old=np.append(item.new_of_old, -1))})


def test_two_generations_of_the_same_snapshot_need_no_vocabularies(tmp_path):
    url = make_snapshot(tmp_path / "s", [[200]], valid_rows=60)
    recipe = read_recipe("dlrm", [*RANKER, "epochs=1"])
    bundle = trained(url, tmp_path / "run", recipe)
    assert (Path(url) / MANIFEST).exists()
    model, _ = warmed(bundle, open_snapshot(url), recipe)
    old = load_bundle(bundle).model
    batch = rows_of_values(OLD_USERS, OLD_ITEMS)
    with torch.no_grad():
        assert torch.equal(model(batch), old(batch))
