"""A run judged on a later snapshot: the same raw values give the same answers, whatever their numbers are there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from schemas.bundle import RunEvaluation, SplitMetrics
from schemas.errors import UserError
from schemas.features import (
    AnyFeature,
    BucketFeature,
    CyclicFeature,
    HashFeature,
    HistoryFeature,
    IndexFeature,
    NumberFeature,
    PastFeature,
    TokensFeature,
)
from schemas.manifest import MANIFEST, Manifest
from schemas.snapshot import open_snapshot
from tests.snapshots import NUM_ITEMS, NUM_USERS, make_snapshot, write_parquet, write_vocabularies
from training.bundle import load_bundle
from training.compare import compare_runs
from training.evaluate import main
from training.later_snapshot import LOWEST, task_on
from training.loop import Trainer
from training.ranking import Ranking
from training.ranks import OneRank
from training.recipe import read_recipe
from training.retrieval import Retrieval
from training.run_folder import RunFolder
from training.tasks import catalogue_of, task_of
from training.train import train
from training.translation import translated
from training.vocabularies import Renumbering

CPU = torch.device("cpu")
SMALL = ["model.width=4", "epochs=1", "batch_size_per_rank=64", "optimizer.learning_rate=0.02"]
RANKER = [*SMALL, "model.top=[8]", "optimizer.table_learning_rate=0.3"]
ITEMS = [f"i{i}" for i in range(NUM_ITEMS)]
USERS = [f"u{i}" for i in range(NUM_USERS)]
# The same values and new ones, in another order.
LATER_ITEMS = ["new", *(f"i{i}" for i in reversed(range(NUM_ITEMS)))]
LATER_USERS = [f"u{i}" for i in (7, 3)] + ["new"] + [f"u{i}" for i in range(NUM_USERS) if i not in (3, 7)]


def later_than(
    url: str, root: Path, *, items: Sequence[str], users: Sequence[str], mean: float = 2.0, std: float = 4.0
) -> str:
    """The very rows of a snapshot, whose ages have the mean 0 and the deviation 1, in other numbers."""
    shutil.copytree(url, root)
    item_V = np.array([0, 1, 2, *(3 + list(items).index(value) for value in ITEMS)], dtype=np.int32)
    user_V = np.array([0, 1, 2, *(3 + list(users).index(value) for value in USERS)], dtype=np.int32)

    def renumbered(name: str, column: pa.ChunkedArray) -> pa.Array:
        array = column.combine_chunks()
        if name == "user_age":
            return pa.array(((array.to_numpy() - mean) / std).astype(np.float32))
        if name in ("user_idx", "item_idx"):
            return pa.array((user_V if name == "user_idx" else item_V)[array.to_numpy()])
        if name in ("history", "seen", "negatives"):
            return pa.ListArray.from_arrays(array.offsets, pa.array(item_V[array.flatten().to_numpy()])).cast(
                array.type
            )
        return array

    manifest = Manifest.model_validate_json((root / MANIFEST).read_text())
    parts = dict(manifest.parts)
    for part in ("train", "valid", "test"):
        files = []
        for file in parts[part]:
            table = pq.read_table(root / file.path)
            columns = [renumbered(name, table[name]) for name in table.column_names]
            files.append(write_parquet(root / file.path, pa.table(columns, table.schema), file.row_groups, root))
        parts[part] = tuple(files)
    (of_items,) = parts["items"]
    old = pq.read_table(root / of_items.path)
    count = {value: count for value, count in zip(old["item_id"].to_pylist(), old["count"].to_pylist(), strict=True)}
    table = pa.table(
        {
            "item_idx": np.arange(3, 3 + len(items), dtype=np.int32),
            "item_id": list(items),
            "title": list(items),
            "count": np.array([count.get(value, 1) for value in items], dtype=np.int64),
        }
    )
    parts["items"] = (write_parquet(root / of_items.path, table, [len(items)], root),)
    assert manifest.transform is not None
    features = tuple(
        f.model_copy(update={"mean": mean, "std": std}) if isinstance(f, NumberFeature) else f
        for f in manifest.transform.features
    )
    transform = manifest.transform.model_copy(update={"features": features})
    changed = manifest.model_copy(update={"parts": parts, "transform": transform, "id": root.name})
    (root / MANIFEST).write_text(changed.model_dump_json())
    return write_vocabularies(str(root), {"user": users, "item": items})


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("data") / "s"
    return write_vocabularies(make_snapshot(root, [[600]], test_rows=120), {"user": USERS, "item": ITEMS})


@pytest.fixture(scope="module")
def runs(url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, overrides in (("dlrm", RANKER), ("two_tower", [*SMALL, "model.recent=2"]), ("sasrec", SMALL)):
        found[name] = tmp_path_factory.mktemp("runs") / name
        recipe = read_recipe(name, overrides)
        train(OneRank(), snapshot_url=url, recipe=recipe, folder=RunFolder(found[name]), check_only=False)
    return found


def on(run: Path, url: str) -> tuple[SplitMetrics, list[str], Ranking | Retrieval]:
    bundle, later = load_bundle(run / "bundle"), open_snapshot(url)
    task, notes = task_on(bundle, run / "bundle", later, OneRank(), CPU)
    assert isinstance(task, Ranking | Retrieval)
    trainer = Trainer(
        task=task, snapshot=later, recipe=bundle.recipe, ranks=OneRank(), device=CPU, say=lambda line: None
    )
    return trainer.evaluate("test"), notes, task


@pytest.mark.parametrize("name", ["dlrm", "two_tower", "sasrec"])
def test_the_same_raw_values_in_other_numbers_give_the_same_metrics(url, runs, tmp_path, name):
    before, _, _ = on(runs[name], url)
    order = [value for value in LATER_ITEMS if value != "new"]
    later = later_than(url, tmp_path / "later", items=order, users=[*reversed(USERS)])
    after, notes, _ = on(runs[name], later)
    assert notes == []
    assert after.row_id_sum == before.row_id_sum
    assert (before.full or before.heads) != {}
    assert after.full == pytest.approx(before.full)
    assert after.sampled == pytest.approx(before.sampled)
    for head, found in before.heads.items():
        assert after.heads[head] == pytest.approx(found, abs=1e-5)
    naive = untranslated(runs[name], later)  # or the test could not fail
    assert naive.full != pytest.approx(before.full) or naive.heads["label"] != pytest.approx(before.heads["label"])


def untranslated(run: Path, url: str) -> SplitMetrics:
    bundle, later = load_bundle(run / "bundle"), open_snapshot(url)
    task = task_of(bundle.model, later, catalogue_of(later), bundle.recipe, OneRank(), CPU)
    return Trainer(
        task=task, snapshot=later, recipe=bundle.recipe, ranks=OneRank(), device=CPU, say=lambda line: None
    ).evaluate("test")


@pytest.mark.parametrize("name", ["dlrm", "two_tower"])
def test_on_its_own_snapshot_a_run_does_to_the_bit_what_evaluate_found(url, runs, tmp_path, name, capsys):
    assert main(["--run", str(runs[name])]) == 0
    own = RunFolder(runs[name]).evaluation("test")
    out = tmp_path / "deep" / "found.json"
    assert main(["--run", str(runs[name]), "--snapshot", url, "--out", str(out)]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert RunEvaluation.model_validate_json(out.read_text()) == own
    moved = shutil.copytree(url, tmp_path / "moved")  # translated, for its digest is another; but to the same
    manifest = json.loads((moved / MANIFEST).read_text())
    (moved / MANIFEST).write_text(json.dumps(manifest | {"id": "moved"}))
    assert main(["--run", str(runs[name]), "--snapshot", str(moved), "--out", str(out)]) == 0
    found = RunEvaluation.model_validate_json(out.read_text())
    assert found.snapshot.url == str(moved)
    assert own is not None
    assert (found.model, found.popularity, found.notes) == (own.model, own.popularity, ())


def test_items_and_users_that_the_run_does_not_know_are_unseen_and_count_against_it(url, runs, tmp_path):
    later = later_than(url, tmp_path / "later", items=LATER_ITEMS, users=LATER_USERS)
    metrics, _, task = on(runs["two_tower"], later)
    assert isinstance(task, Retrieval)
    retriever = task.retriever
    batch = next(iter(Trainer(
        task=task, snapshot=open_snapshot(later), recipe=task.recipe, ranks=OneRank(), device=CPU, say=lambda line: None
    ).held_out("test", task)))  # fmt: skip
    with torch.no_grad():
        scores = retriever.users(batch) @ retriever.items(torch.arange(3, 3 + len(LATER_ITEMS))).T
    assert bool((scores[:, 0] < LOWEST / 2).all())  # "new" comes first in the vocabulary
    assert bool((scores[:, 1:].abs() < 1e3).all())
    assert scores.isfinite().all()
    before, _, _ = on(runs["two_tower"], url)
    assert metrics.full["recall@10"] == pytest.approx(before.full["recall@10"])  # no row asks for the new item
    assert metrics.full["coverage@20"] == pytest.approx(before.full["coverage@20"] * NUM_ITEMS / len(LATER_ITEMS))

    ranking = on(runs["dlrm"], later)[2]
    assert isinstance(ranking, Ranking)
    columns = {
        "user_idx": torch.tensor([3 + LATER_USERS.index("new"), 3], dtype=torch.int32),
        "item_idx": torch.tensor([3, 3 + LATER_ITEMS.index("i4")], dtype=torch.int32),
        "history": torch.tensor([[0, 0, 3, 4], [0, 1, 2, 4]], dtype=torch.int32),
        "user_age": torch.tensor([0.5, 0.0]),
    }
    as_the_run_has_it = {
        "user_idx": torch.tensor([2, 3 + 7], dtype=torch.int32),
        "item_idx": torch.tensor([2, 3 + 4], dtype=torch.int32),
        "history": torch.tensor([[0, 0, 2, 32], [0, 1, 2, 32]], dtype=torch.int32),
        "user_age": torch.tensor([4.0, 0.0]),  # 0.5 x 4 + 2; 0 is null
    }
    some = replace(batch, positions=torch.arange(2))
    with torch.no_grad():
        found = ranking.model(replace(some, columns=columns))
        expected = load_bundle(runs["dlrm"] / "bundle").model(replace(some, columns=as_the_run_has_it))
    assert torch.equal(found, expected)


def test_slices_and_groups_are_those_of_the_later_snapshot(url, runs, tmp_path):
    later = later_than(url, tmp_path / "later", items=LATER_ITEMS, users=LATER_USERS)
    out = tmp_path / "found.json"
    arguments = ["--run", str(runs["dlrm"]), "--snapshot", later, "--out", str(out)]
    assert main([*arguments, "--slice", "user_idx"]) == 0
    found = RunEvaluation.model_validate_json(out.read_text())
    assert {one.value for one in found.model.slices["label"]} <= {*USERS, "others"}
    before, _, _ = on(runs["dlrm"], url)
    assert found.model.heads["label"]["gauc"] == pytest.approx(before.heads["label"]["gauc"], abs=1e-5)


def test_two_generations_are_compared_on_the_later_snapshot(url, runs, tmp_path):
    later = later_than(url, tmp_path / "later", items=LATER_ITEMS, users=LATER_USERS)
    again = RunFolder(tmp_path / "again")
    recipe = read_recipe("dlrm", [*RANKER, "seed=1"])
    train(OneRank(), snapshot_url=later, recipe=recipe, folder=again, check_only=False)
    with pytest.raises(UserError, match=r"trained on different snapshots: .* Give --snapshot, the later one"):
        compare_runs(OneRank(), (again.path, runs["dlrm"]), "test", 20)
    found = compare_runs(OneRank(), (again.path, runs["dlrm"]), "test", 20, later)
    mine, theirs = on(again.path, later)[0].heads["label"], on(runs["dlrm"], later)[0].heads["label"]
    assert found["label"]["auc"].difference == pytest.approx(mine["auc"] - theirs["auc"], abs=1e-6)


def test_mistakes_are_one_line(url, runs, tmp_path, capsys):
    run = ["--run", str(runs["dlrm"])]
    with pytest.raises(SystemExit):
        main([*run, "--snapshot", url])
    assert "--snapshot and --out go together" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([*run, "--snapshot", url, "--out", str(tmp_path / "file" / "x.json")]) == 2
    assert "x.json cannot be written" in capsys.readouterr().err
    manifest = json.loads((Path(shutil.copytree(url, tmp_path / "less")) / MANIFEST).read_text())
    kept = [one for one in manifest["transform"]["features"] if one["name"] != "user_age"]
    manifest["transform"]["features"] = kept
    (tmp_path / "less" / MANIFEST).write_text(json.dumps(manifest))
    assert main([*run, "--snapshot", str(tmp_path / "less"), "--out", str(tmp_path / "x.json")]) == 2
    assert "has no user_age, which dlrm was trained on" in capsys.readouterr().err


def column(there: AnyFeature, here: AnyFeature, values: Sequence[float]) -> tuple[list[float], list[str]]:
    change, notes = translated(there, here, lambda before, after: Renumbering.same(9))
    kind = torch.float32 if here.dtype == "float32" else torch.int32
    found = change(torch.tensor(values, dtype=kind))
    assert found.dtype == kind
    return found.tolist(), notes


def test_numbers_go_back_to_what_was_logged_and_are_encoded_anew():
    # Logged 1, 3 and 7: log1p gives ln 2, ln 4 and ln 8, here with mean ln 2 and deviation ln 2: 0 (null), 1 and 2.
    ln2 = float(np.log(2))
    there = NumberFeature(name="n", source="n", owner="users", log1p=True, mean=ln2, std=ln2)
    here = NumberFeature(name="n", source="n", owner="users", mean=3.0, std=2.0)
    found, notes = column(there, here, [1.0, 2.0, 0.0])
    assert found == pytest.approx([0.0, 2.0, 0.0], abs=1e-6)
    assert notes == []
    clipped = here.model_copy(update={"high": 5.0})
    assert column(there, clipped, [2.0])[0] == pytest.approx([1.0])
    found, notes = column(clipped, here, [1.0])
    assert notes == ["n: clipped more narrowly in the later snapshot than in the run's (approximate)"]


def test_intervals_go_by_their_middle_and_a_note_counts_those_that_are_cut():
    there = BucketFeature(name="b", source="b", owner="users", edges=(10.0, 20.0, 30.0))
    here = BucketFeature(name="b", source="b", owner="users", edges=(10.0, 24.0, 30.0))
    # Below 10; 10 to 20; 20 to 30 has the middle 25, above 24; from 30.
    found, notes = column(there, here, [0, 1, 2, 3, 4, 5, 6])
    assert found == [0, 1, 2, 3, 4, 5, 6]
    assert notes == ["b: 1 of 4 intervals lie in several of the run's and go by their middle (approximate)"]
    fewer = here.model_copy(update={"edges": (20.0,)})
    assert column(there, fewer, [3, 4, 5, 6]) == ([3, 3, 4, 4], [])
    assert column(there, there, [3, 6]) == ([3, 6], [])


def test_a_hash_follows_from_one_with_a_multiple_of_its_buckets():
    there = HashFeature(name="h", sources=("h",), buckets=6, owner="users")
    here = there.model_copy(update={"buckets": 3})
    assert column(there, here, [0, 1, 2, 3, 5, 6, 8])[0] == [0, 1, 2, 3, 5, 3, 5]
    with pytest.raises(UserError, match="hashed to 3 buckets in the later snapshot and to 6"):
        column(here, there, [3])


def test_lists_are_cut_or_padded_at_their_old_end():
    def lists(there: int, here: int, kind: type) -> tuple[list[list[int]], list[str]]:
        if kind is HistoryFeature:
            features: list[AnyFeature] = [HistoryFeature(length=there), HistoryFeature(length=here)]
        else:
            features = [TokensFeature(name="t", source="t", owner="items", buckets=6, length=n) for n in (there, here)]
        change, notes = translated(*features, lambda before, after: Renumbering.same(9))
        return change(torch.tensor([[*range(3, 3 + there)]], dtype=torch.int32)).tolist(), notes

    assert lists(3, 2, HistoryFeature) == ([[4, 5]], [])
    assert lists(2, 3, HistoryFeature)[0] == [[0, 3, 4]]
    assert "lists of 2 in the later snapshot" in lists(2, 3, HistoryFeature)[1][0]
    assert lists(3, 2, TokensFeature) == ([[3, 4]], [])
    assert lists(2, 3, TokensFeature)[0] == [[3, 4, 0]]


def test_features_that_mean_something_else_are_refused_and_rates_of_another_prior_are_noted():
    index = IndexFeature(name="x", source="a", owner="users", vocabulary="x")
    with pytest.raises(UserError, match="the feature 'x' is made of something else"):
        column(index, index.model_copy(update={"source": "b"}), [3])
    rate = PastFeature(name="r", owner="users", what="rate", by=("user_id",), tile_ms=10, prior_mean=0.2, prior_rows=5)
    other = rate.model_copy(update={"prior_mean": 0.3})
    assert column(other, rate, [0.5]) == ([0.5], ["r: taken as it is, though drawn towards another mean (approximate)"])
    assert column(rate, rate, [0.5]) == ([0.5], [])
    with pytest.raises(UserError, match="'r' is counted otherwise"):
        column(rate.model_copy(update={"tiles": 3}), rate, [0.5])
    day = CyclicFeature(name="r", source="t", owner="events", period_ms=10, phase="sin")
    with pytest.raises(UserError, match="counted otherwise"):
        column(day, day.model_copy(update={"phase": "cos"}), [0.5])


def test_a_value_that_one_vocabulary_lacks_is_unseen():
    index = IndexFeature(name="x", source="a", owner="users", vocabulary="x")
    there = pa.table({"value": ["a", "b", "c"], "idx": pa.array([3, 4, 5], pa.int32())})
    here = pa.table({"value": ["c", "a"], "idx": pa.array([3, 4], pa.int32())})
    change, _ = translated(index, index, lambda a, b: Renumbering.of(there, here, old_rows=6, new_rows=5))
    assert change(torch.tensor([0, 1, 2, 3, 4, 5], dtype=torch.int32)).tolist() == [0, 1, 2, 4, 2, 3]
