"""Vectors of items: who meets them, that new items are judged by them, and which files are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from schemas.errors import UserError
from schemas.features import NUM_RESERVED
from schemas.manifest import MANIFEST, Manifest
from schemas.snapshot import open_snapshot
from tests.snapshots import NUM_ITEMS, make_snapshot, write_parquet, write_vocabularies
from training import lr_range, step_profile
from training.batch import Batch
from training.bundle import load_bundle
from training.checkpoint import KeptCheckpoints
from training.export import Wanted, export
from training.models.dcn_v2 import DCNv2
from training.models.dlrm import DLRM
from training.models.item_vectors import ItemVectors
from training.models.two_tower import TwoTower
from training.quantised_bundle import load_quantised
from training.ranks import OneRank
from training.recipe import read_recipe
from training.run_folder import RunFolder
from training.tasks import catalogue_of, find_vectors, fresh_model, fresh_task
from training.train import main, train
from training.vector_files import GivenVectors, VectorFiles

CPU = torch.device("cpu")
WIDTH = 3
SMALL = ["model.width=4", "batch_size_per_rank=64", "epochs=2", "optimizer.learning_rate=0.02"]
RANKER = [*SMALL, "model.top=[8]", "optimizer.table_learning_rate=0.3"]
TOWERS = [*SMALL, "model.recent=2"]
NUM_MANY, NUM_OLD = 300, 200
"""Where new items are looked at: all, and those that train has."""
ITEMS = [f"i{i}" for i in range(NUM_ITEMS)]


def vectors_of(items: int = NUM_ITEMS, width: int = WIDTH) -> np.ndarray:
    """The first number is 1 or -1, the others say nothing."""
    vectors = np.random.default_rng(3).normal(size=(items, width)).astype(np.float32)
    vectors[:, 0] = np.where(np.arange(items) % 3 == 0, 1, -1)
    return vectors


def write_vectors(path: Path, ids: list[Any], vectors: Any) -> str:
    """Lists of a fixed size for an array, of any sizes for lists."""
    if isinstance(vectors, np.ndarray):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"item_id": ids, "vector": vectors}), path, row_group_size=7)
    return str(path)


def make_clicks_by_vector(root: Path) -> str:
    """A snapshot of 300 items where those whose vector begins with 1 are clicked; valid has a hundred of its own."""
    url = make_snapshot(root, [[800]], valid_rows=400)
    manifest = Manifest.model_validate_json((root / MANIFEST).read_text(encoding="utf-8"))
    parts, random = dict(manifest.parts), np.random.default_rng(8)
    for split, low, high in (("train", 0, NUM_OLD), ("valid", NUM_OLD, NUM_MANY)):
        table = open_snapshot(url).read(split)
        item = random.integers(low, high, table.num_rows)
        clicked = (vectors_of(NUM_MANY)[item, 0] > 0).astype(np.float32)
        for name, values in (("item_idx", (item + NUM_RESERVED).astype(np.int32)), ("label", clicked)):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(place), pa.array(values))
        parts[split] = (write_parquet(root / split / "part-00000.parquet", table, [table.num_rows], root),)
        if split == "train":
            counts = np.bincount(item, minlength=NUM_MANY)
    ids = [f"i{i}" for i in range(NUM_MANY)]
    item_idx = np.arange(NUM_RESERVED, NUM_RESERVED + NUM_MANY, dtype=np.int32)
    items = pa.table({"item_idx": item_idx, "item_id": ids, "title": ids, "count": counts.astype(np.int64)})
    parts["items"] = (write_parquet(root / "items" / "part-00000.parquet", items, [NUM_MANY], root),)
    changed = manifest.model_copy(update={"parts": parts})
    (root / MANIFEST).write_text(changed.model_dump_json(), encoding="utf-8")
    return write_vocabularies(url, {"item": ids})


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = make_snapshot(tmp_path_factory.mktemp("data") / "s", [[300]], valid_rows=100)
    return write_vocabularies(made, {"item": ITEMS, "user": [f"u{i}" for i in range(20)]})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_vectors(tmp_path_factory.mktemp("vectors") / "v.parquet", ITEMS, vectors_of())


def given(url: str, where: str) -> GivenVectors:
    catalogue = catalogue_of(open_snapshot(url))
    assert catalogue is not None
    return VectorFiles.find(where, OneRank()).read(catalogue)


def fresh(url: str, where: str, recipe: str, *overrides: str) -> torch.nn.Module:
    snapshot, settings = open_snapshot(url), read_recipe(recipe, ["model.width=4", *overrides])
    return fresh_model(snapshot, catalogue_of(snapshot), settings, OneRank(), CPU, given(url, where)).eval()


def trained(url: str, run: Path, recipe: str, where: str | None, *overrides: str, **more: Any) -> Path:
    settings = read_recipe(recipe, [*(TOWERS if recipe == "two_tower" else RANKER), *overrides])
    folder = RunFolder(run, KeptCheckpoints(newest=2))
    train(OneRank(), snapshot_url=url, recipe=settings, folder=folder, check_only=False, item_vectors=where, **more)
    return folder.bundle


def auc(bundle: Path) -> float:
    return float(json.loads((bundle / "bundle.json").read_text())["valid"]["heads"]["label"]["auc"])


def rows(items: list[int]) -> Batch:
    count, random = len(items), np.random.default_rng(1)
    columns = {
        "user_idx": torch.from_numpy(random.integers(3, 20, count).astype(np.int32)),
        "item_idx": torch.tensor(items, dtype=torch.int32),
        "history": torch.from_numpy(random.integers(0, NUM_ITEMS, (count, 4)).astype(np.int32)),
        "user_age": torch.from_numpy(random.normal(size=count).astype(np.float32)),
    }
    return Batch(columns=columns, positions=torch.arange(count), global_rows=count, step=0)


def test_rows_are_matched_by_id_over_the_files_of_a_folder(url, tmp_path):
    folder = tmp_path / "folder"
    write_vectors(folder / "a.parquet", ["i2", "nobody", "i0"], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    write_vectors(folder / "b.parquet", ["i29"], np.array([[7.0, 8.0]], dtype=np.float16))
    (folder / "_SUCCESS").write_text("")
    found = given(url, str(folder))
    expected = torch.zeros(33, 2)
    expected[5], expected[3], expected[32] = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0]), torch.tensor([7.0, 8])
    assert torch.equal(found.vectors, expected)
    assert found.has_vector.nonzero().flatten().tolist() == [3, 5, 32]
    assert (found.covered, found.ignored) == (3, 1)
    assert "3 of 30 items (10.0%) have one" in found.line()
    assert "1 rows are of no item" in found.line()


def test_they_are_read_from_any_url(url, file):
    files = fsspec.filesystem("memory")
    files.pipe("/vectors/v.parquet", Path(file).read_bytes())
    there = given(url, "memory://vectors/v.parquet")
    assert torch.equal(there.vectors, given(url, file).vectors)
    assert there.digest == given(url, file).digest
    files.rm("/vectors", recursive=True)


def test_ids_that_are_numbers_are_their_text(url, tmp_path):
    snapshot = open_snapshot(url)
    catalogue = catalogue_of(snapshot)
    assert catalogue is not None
    place = catalogue.table.schema.get_field_index("item_id")
    numbered = catalogue.table.set_column(place, "item_id", pa.array([str(i) for i in range(NUM_ITEMS)]))
    files = VectorFiles.find(write_vectors(tmp_path / "v.parquet", [7, 99], [[1.0], [2.0]]), OneRank())
    found = files.read(type(catalogue)(catalogue.counts, catalogue.features, numbered))
    assert found.vectors[7 + NUM_RESERVED].tolist() == [1.0]
    assert found.covered == 1


def test_an_item_has_its_vector_projected_and_one_without_the_learned_one():
    module = ItemVectors(5, 2, 2)
    with torch.no_grad():
        module.projection.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        module.projection.bias.copy_(torch.tensor([0.5, 0.0]))
        module.default.copy_(torch.tensor([9.0, 8.0]))
        vectors = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
        module.fill(vectors, torch.tensor([0, 0, 0, 1, 0], dtype=torch.uint8))
        # W x + b = (3 + 8 + 0.5, -4)
        assert module(torch.tensor([3, 4, 0])).tolist() == [[11.5, -4.0], [9.0, 8.0], [9.0, 8.0]]
    module(torch.tensor([4, 4])).sum().backward()
    assert module.default.grad is not None
    assert module.default.grad.tolist() == [2.0, 2.0]
    assert not module.vectors.requires_grad


def test_many_items_at_once_are_projected_in_parts(monkeypatch):
    module = ItemVectors(9, 2, 4)
    module.fill(torch.randn(9, 2), torch.tensor([0, 0, 0, 1, 1, 0, 1, 1, 1], dtype=torch.uint8))
    items = torch.arange(9)
    whole = module(items)
    monkeypatch.setattr("training.models.item_vectors._ITEMS_AT_ONCE", 4)
    with torch.no_grad():
        assert torch.allclose(module(items), whole, atol=1e-6)


@pytest.mark.parametrize("name", ["dlrm", "dcn_v2"])
def test_what_learns_of_them_takes_part_in_a_step_even_on_a_rank_without_rows(url, file, name):
    model = fresh(url, file, name).train()
    model(rows([])).sum().backward()
    learning = [value for part, value in model.named_parameters() if part.startswith("item_vectors")]
    assert len(learning) == 3
    for parameter in learning:
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_dlrm_has_one_vector_more_to_meet(url, file):
    model = fresh(url, file, "dlrm", "model.bottom=[]", "model.top=[]")
    assert isinstance(model, DLRM)
    assert model.bottom is not None
    assert model.item_vectors is not None
    with torch.no_grad():
        batch = rows([7])
        user, item, history = model.embeddings({name: batch[name] for name in ("user_idx", "item_idx", "history")})[0]
        age = torch.relu(model.bottom[0](batch["user_age"].unsqueeze(1)))[0]
        linear = model.item_vectors.projection
        given = linear.weight @ torch.from_numpy(vectors_of()[7 - NUM_RESERVED]) + linear.bias
        met = [age, user, item, history, given]
        products = [met[i] @ met[j] for i in range(5) for j in range(i + 1, 5)]
        expected = model.heads(torch.cat([age, torch.stack(products)]).unsqueeze(0))
        assert torch.allclose(model(batch), expected, atol=1e-6)


def test_dcn_v2_has_it_beside_the_other_vectors(url, file):
    model = fresh(url, file, "dcn_v2", "model.cross_layers=0", "model.top=[]")
    assert isinstance(model, DCNv2)
    assert model.item_vectors is not None
    with torch.no_grad():
        batch = rows([7])
        vectors = model.embeddings({name: batch[name] for name in ("user_idx", "item_idx", "history")})[0]
        given = model.item_vectors(torch.tensor([7]))[0]
        first = torch.cat([vectors.flatten(), given, batch["user_age"]])
        assert torch.allclose(model(batch)[0], model.heads(torch.cat([first, first])), atol=1e-6)


def test_the_item_tower_adds_it(url, file):
    model = fresh(url, file, "two_tower", "model.recent=2")
    assert isinstance(model, TwoTower)
    assert model.item_vectors is not None
    with torch.no_grad():
        items = torch.tensor([2, 7])
        without = model.about_item({"item_idx": items})
        assert torch.allclose(model.items(items)[:, :4], without + model.item_vectors(items), atol=1e-6)


@pytest.mark.parametrize("name", ["dlrm", "dcn_v2"])
def test_items_that_train_never_shows_are_judged_by_their_vectors(tmp_path, name):
    url = make_clicks_by_vector(tmp_path / "s")
    file = write_vectors(tmp_path / "v.parquet", [f"i{i}" for i in range(NUM_MANY)], vectors_of(NUM_MANY))
    learning = ["epochs=6", "patience=6", "optimizer.table_learning_rate=0.05"]
    without = auc(trained(url, tmp_path / "without", name, None, *learning))
    with_vectors = auc(trained(url, tmp_path / "with", name, file, *learning))
    assert without < 0.75
    assert with_vectors > 0.95


@pytest.mark.parametrize("name", ["dlrm", "two_tower"])
def test_a_bundle_carries_them_and_is_loaded_and_exported_without_the_file(url, tmp_path, name):
    where = write_vectors(tmp_path / "v.parquet", ITEMS[5:], vectors_of()[5:])
    bundle = trained(url, tmp_path / "run", name, where)
    Path(where).unlink()
    loaded = load_bundle(bundle)
    assert loaded.manifest.item_vectors is not None
    assert (loaded.manifest.item_vectors.width, loaded.manifest.item_vectors.covered) == (WIDTH, 25)
    vectors = loaded.model.get_submodule("item_vectors")
    assert isinstance(vectors, ItemVectors)
    assert torch.equal(vectors.vectors[NUM_RESERVED + 5 :], torch.from_numpy(vectors_of()[5:]))
    assert vectors.has_vector.tolist() == [0] * 8 + [1] * 25
    assert vectors.default.any(), "items without a vector have taught it"
    if name == "dlrm":
        export(bundle, tmp_path / "export", Wanted(formats=("onnx", "torch"), tables="int8"), lambda line: None)
        smaller = load_quantised(tmp_path / "export" / "quantised").model
        with torch.no_grad():
            assert torch.allclose(smaller(rows([5, 9])), loaded.model(rows([5, 9])), atol=0.05)
    else:
        export(bundle, tmp_path / "export", Wanted(formats=("torch",)), lambda line: None)
        exported = load_file(tmp_path / "export" / "items.safetensors")
        assert torch.allclose(exported["vectors"], loaded.retriever.items(exported["item_idx"]))


def test_a_run_goes_on_with_its_file_as_if_uninterrupted_and_with_no_other(url, file, tmp_path):
    run = tmp_path / "run"
    bundle = trained(url, run, "dlrm", file)
    whole = load_file(bundle / "model.safetensors")
    shutil.rmtree(bundle)
    shutil.rmtree(run / "checkpoints" / "epoch-00001")
    other = write_vectors(tmp_path / "other.parquet", ITEMS, vectors_of() + 1)
    for another in (other, None):
        with pytest.raises(UserError, match="holds a run with another item_vectors"):
            trained(url, run, "dlrm", another)
    elsewhere = shutil.copyfile(file, tmp_path / "moved.parquet")  # the content counts, not where it lies
    again = load_file(trained(url, run, "dlrm", str(elsewhere)) / "model.safetensors")
    assert whole.keys() == again.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_warm_start_takes_the_projection_over_where_vectors_are_as_long(url, file, tmp_path, capsys):
    earlier = trained(url, tmp_path / "one", "dlrm", file, "epochs=1")
    learned = load_file(earlier / "model.safetensors")["item_vectors.projection.weight"]
    still = ["epochs=1", "optimizer.learning_rate=1e-30"]
    newer = write_vectors(tmp_path / "newer.parquet", ITEMS, vectors_of() * 2)
    weights = load_file(trained(url, tmp_path / "two", "dlrm", newer, *still, warm_start=earlier) / "model.safetensors")
    assert torch.equal(weights["item_vectors.projection.weight"], learned)
    assert torch.equal(weights["item_vectors.vectors"][NUM_RESERVED:], torch.from_numpy(vectors_of() * 2))
    assert "item_vectors.projection" not in capsys.readouterr().out
    wider = write_vectors(tmp_path / "wider.parquet", ITEMS, vectors_of(width=5))
    trained(url, tmp_path / "three", "dlrm", wider, *still, warm_start=earlier)
    said = capsys.readouterr().out
    assert "item_vectors.projection.weight begins anew: its shape was (4, 3) and is (4, 5)" in said


@pytest.mark.parametrize(
    ("ids", "vectors", "says"),
    [
        (["i0", "i1", "i0"], [[1.0], [2.0], [3.0]], "has 2 rows of the item_id 'i0', and so for 1 items"),
        (["i0", None], [[1.0], [2.0]], "row 1 has no item_id"),
        (["i0", "i1"], [[1.0, 2.0], [3.0]], "row 1 (item_id 'i1') has a vector of 1 numbers where others have 2"),
        (["i0", "i1"], [[1.0, 2.0], None], "row 1 (item_id 'i1') has no vector"),
        (["i0"], pa.array([[]], pa.list_(pa.float32())), "row 0 (item_id 'i0') has a vector of 0 numbers"),
        (["i0", "i1"], [[1.0, 2.0], [3.0, None]], "row 1 (item_id 'i1') has a null in its vector"),
        (["i0", "i1"], [[1.0, 2.0], [3.0, float("nan")]], "row 1 (item_id 'i1') has a number that is not finite"),
        (["i0", "i1"], [[1.0, 2.0], [3.0, 1e300]], "row 1 (item_id 'i1') has a number that is not finite as float32"),
        (["0", "1"], [[1.0], [2.0]], "has no vector of any item of the snapshot: '0' there and 'i0' in the snapshot"),
        (["i0"], [1.0], "vector is double, and a list of floats is wanted"),
        (["i0"], [["a"]], "vector is list<element: string>, and a list of floats is wanted"),
        ([1.5], [[1.0]], "item_id is double, and text as in the log is wanted"),
    ],
)
def test_a_faulty_file_is_refused_in_one_line_that_names_row_or_item(url, tmp_path, ids, vectors, says):
    with pytest.raises(UserError) as error:
        given(url, write_vectors(tmp_path / "v.parquet", ids, vectors))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_row_is_named_by_its_place_in_the_file_however_far_down_it_is(url, tmp_path):
    vectors = np.ones((20_000, 2), dtype=np.float32)
    vectors[17_003, 1] = np.inf
    where = write_vectors(tmp_path / "v.parquet", [f"i{i}" for i in range(20_000)], vectors)
    with pytest.raises(UserError, match=r"row 17,003 \(item_id 'i17003'\) has a number that is not finite"):
        given(url, where)


def test_what_is_no_parquet_or_not_there_is_named(url, tmp_path):
    (tmp_path / "text.parquet").write_text("item_id,vector")
    (tmp_path / "folder").mkdir()
    pq.write_table(pa.table({"id": ["i0"], "vector": [[1.0]]}), tmp_path / "unnamed.parquet")
    for name, says in (
        ("text.parquet", "cannot be read as Parquet"),
        ("folder", "the folder has no file that ends in .parquet"),
        ("nowhere", "there is no such file or folder"),
        ("unnamed.parquet", "has no column 'item_id'; it has id, vector"),
    ):
        with pytest.raises(UserError, match=says):
            given(url, str(tmp_path / name))


@pytest.mark.parametrize("recipe", ["sasrec", "matrix_factorisation"])
def test_a_model_that_takes_none_says_which_do(url, file, tmp_path, capsys, recipe):
    code = main(["--snapshot", url, "--recipe", recipe, "--run", str(tmp_path / "run"), "--item-vectors", file])
    assert code == 2
    assert f"{recipe} takes none: train a recipe of dlrm, dcn_v2, two_tower" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_image_classifier_and_a_log_without_items_take_none(url, file):
    snapshot, ranker = open_snapshot(url), read_recipe("dlrm", [])
    with pytest.raises(UserError, match="image_classifier takes none"):
        find_vectors(file, snapshot, read_recipe("image_classifier", []), OneRank())
    parts = {name: files for name, files in snapshot.manifest.parts.items() if name != "items"}
    itemless = type(snapshot)(snapshot.url, snapshot.manifest.model_copy(update={"parts": parts}))
    with pytest.raises(UserError, match="has no items that could have vectors"):
        find_vectors(file, itemless, ranker, OneRank())


def test_what_a_step_costs_and_which_rate_suits_it_are_asked_with_vectors_too(url, file, tmp_path, capsys):
    arguments = ["--snapshot", url, "--recipe", "dlrm", "--set", "model.width=4", "--item-vectors", file]
    assert step_profile.main([*arguments, "--steps", "2"]) == 0
    assert lr_range.main([*arguments, "--steps", "20", "--plot", str(tmp_path / "plot.png")]) == 0
    assert (tmp_path / "plot.png").stat().st_size > 0
    capsys.readouterr()
    of_snapshot = open_snapshot(url)
    task = fresh_task(of_snapshot, read_recipe("dlrm", ["model.width=4"]), OneRank(), CPU, item_vectors=file)
    assert task.model.get_submodule("item_vectors").vectors.count_nonzero()
    none = ["--recipe", "matrix_factorisation", "--set", "model.width=4"]
    for program in (step_profile, lr_range):
        assert program.main([*arguments[:2], *none, *arguments[-2:]]) == 2
        assert "matrix_factorisation takes none" in capsys.readouterr().err
