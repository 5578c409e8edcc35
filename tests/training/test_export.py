"""Exports: what runs without this project, in a process that cannot import what training needs; scores alike."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipelines.launch import environment
from schemas.bundle import BUNDLE
from schemas.errors import UserError
from schemas.export import ExportManifest, Tensor
from schemas.snapshot import open_snapshot
from tests.snapshots import HISTORY, NUM_ITEMS, NUM_USERS, make_snapshot
from training.bundle import bundle_digest, load_bundle
from training.embeddings.quantised import QuantisedTables
from training.export import Wanted, export
from training.exporting.check import check
from training.exporting.formats import onnx_scorer, program_of, write_onnx
from training.exporting.rows import drawn_rows
from training.exporting.traced import traced
from training.quantised_bundle import load_quantised, with_tables
from training.ranks import OneRank
from training.recipe import read_recipe
from training.run_folder import RunFolder
from training.train import train

SMALL = ["model.width=4", "epochs=1", "batch_size_per_rank=64"]
TWO_HEADS = ["model.top=[8]", "loss.heads={label: 1.0, label_like: 0.5}"]
BOTH = Wanted(formats=("onnx", "torch"))


def trained(url: str, run: Path, recipe: str, *overrides: str) -> Path:
    settings = read_recipe(recipe, [*SMALL, *overrides])
    train(OneRank(), snapshot_url=url, recipe=settings, folder=RunFolder(run), check_only=False)
    return run / "bundle"


class Exported(NamedTuple):
    folder: Path
    manifest: ExportManifest
    said: list[str]


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_snapshot(tmp_path_factory.mktemp("data") / "s", [[300]], valid_rows=90)


@pytest.fixture(scope="module")
def ranker(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "dlrm"
    learns = ["optimizer.learning_rate=0.02", "optimizer.table_learning_rate=0.3", "epochs=4", "patience=4"]
    return trained(url, run, "dlrm", *TWO_HEADS, *learns, "model.tables=sharded")


@pytest.fixture(scope="module")
def exported(ranker: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """As float32, in both forms."""
    to, said = tmp_path_factory.mktemp("exported") / "float32", []
    return Exported(to, export(ranker, to, BOTH, said.append), said)


@pytest.fixture(scope="module")
def rounded(ranker: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    to, said = tmp_path_factory.mktemp("exported") / "int8", []
    return Exported(to, export(ranker, to, Wanted(formats=("onnx",), tables="int8"), said.append), said)


def in_a_process_without(modules: str, program: str, *arguments: object) -> str:
    """What a program prints that cannot import these modules."""
    blocked = f"""
        import sys

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {modules.split()!r}:
                    raise ImportError(f"{{name}} is not there")

        sys.meta_path.insert(0, Blocked())
    """
    code = textwrap.dedent(blocked) + textwrap.dedent(program)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_onnx_file_runs_where_there_is_no_torch_and_gives_the_bundles_probabilities(ranker, exported, tmp_path):
    manifest = exported.manifest
    assert [one.name for one in manifest.inputs] == ["user_idx", "item_idx", "history", "user_age"]
    assert manifest.inputs[2] == Tensor(name="history", dtype="int32", shape=("batch", HISTORY))
    assert manifest.heads == ("label", "label_like")
    assert manifest.bundle_digest == bundle_digest(ranker)
    assert manifest.check.rows_from == "rows of valid"
    assert {*manifest.check.largest_difference} == {"ranker.onnx", "ranker.pt2"}
    assert any(line.startswith("ranker.onnx: scores of rows of valid differ by") for line in exported.said)

    model = load_bundle(ranker)
    columns = drawn_rows(model.manifest.transform, manifest.inputs, 50, seed=5)
    np.savez(tmp_path / "rows.npz", **{name: column.numpy() for name, column in columns.items()})
    program = """
        import json, numpy, onnxruntime, pathlib
        folder = pathlib.Path(sys.argv[1])
        manifest = json.loads((folder / "export.json").read_text())
        rows = dict(numpy.load(sys.argv[2]))
        assert [*rows] == [one["name"] for one in manifest["inputs"]]
        session = onnxruntime.InferenceSession(str(folder / "ranker.onnx"))
        found = session.run(manifest["heads"], rows)
        assert not {"torch", "pyarrow", "training"} & {*sys.modules}
        print(json.dumps([output.tolist() for output in found]))
    """
    blocked = "torch petastorm horovod pyspark pyarrow schemas training"
    found = json.loads(in_a_process_without(blocked, program, exported.folder, tmp_path / "rows.npz"))
    with torch.no_grad():
        expected = traced(model.model, model.manifest).module(columns)
    assert expected[0].std() > 0.01
    for head, probability in zip(found, expected, strict=True):
        assert probability.tolist() == pytest.approx(head, abs=1e-6)


def test_a_bundle_loads_where_there_is_no_spark_petastorm_or_horovod(ranker, rounded):
    program = """
        from pathlib import Path
        from training.bundle import load_bundle
        from training.quantised_bundle import load_quantised, with_tables
        print(load_bundle(Path(sys.argv[1])).recipe.model.name)
        print(load_quantised(Path(sys.argv[2])).recipe.model.name)
        assert not {"pyspark", "petastorm", "horovod"} & {*sys.modules}
    """
    blocked = "pyspark petastorm horovod"
    assert in_a_process_without(blocked, program, ranker, rounded.folder / "quantised") == "dlrm\ndlrm\n"


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [("two_tower", ["model.recent=3", "model.user_id=true", "model.user_features=true"]), ("sasrec", []),
     ("matrix_factorisation", [])],
)  # fmt: skip
def test_a_retriever_is_exported_as_its_user_tower_and_the_items_vectors(url, tmp_path, recipe, overrides):
    bundle_path = trained(url, tmp_path / "run", recipe, *overrides)
    manifest = export(bundle_path, tmp_path / "e", Wanted(formats=("onnx",)), silent)
    assert {*manifest.files} == {"users.onnx", "items.safetensors", "items.parquet"}
    bundle = load_bundle(bundle_path)
    columns = drawn_rows(bundle.manifest.transform, manifest.inputs, 9)
    items = load_file(tmp_path / "e" / "items.safetensors")
    assert items["item_idx"].tolist() == bundle.items["item_idx"].to_pylist() == [*range(3, 3 + NUM_ITEMS)]
    scores = onnx_scorer(tmp_path / "e" / "users.onnx")(columns)[0] @ items["vectors"].T
    with torch.no_grad():
        user = traced(bundle.model, bundle.manifest).module(columns)[0]
        expected = user @ bundle.retriever.items(torch.arange(3, 3 + NUM_ITEMS)).T
    assert torch.allclose(scores, expected, atol=1e-5)
    with pytest.raises(UserError, match="is a retriever: --tables is for the tables of rankers"):
        export(bundle_path, tmp_path / "other", Wanted(formats=("onnx",), tables="int8"), silent)


def test_large_weights_lie_beside_the_onnx_file_and_are_found_there(ranker, tmp_path):
    bundle = load_bundle(ranker)
    whole = with_tables(bundle.model, QuantisedTables.of(bundle.model.embeddings, "float32"))
    asked = traced(whole, bundle.manifest)
    columns = drawn_rows(bundle.manifest.transform, asked.inputs, 12)
    (tmp_path / "one").mkdir()
    write_onnx(asked, program_of(asked, columns), tmp_path / "one" / "m.onnx", external_above_bytes=0)
    assert {file.name for file in (tmp_path / "one").iterdir()} == {"m.onnx", "m.onnx.data"}
    shutil.move(tmp_path / "one", tmp_path / "two")  # as the draft is
    found = onnx_scorer(tmp_path / "two" / "m.onnx")(columns)
    with torch.no_grad():
        assert torch.allclose(found[0], asked.module(columns)[0], atol=1e-6)


def test_without_the_snapshot_rows_are_drawn_from_the_features_ranges(url, tmp_path):
    root = shutil.copytree(url, tmp_path / "s")
    bundle = trained(str(root), tmp_path / "run", "dcn_v2", "model.top=[8]")
    shutil.rmtree(root)
    said: list[str] = []
    wanted = Wanted(formats=("torch",), tables="bf16")
    manifest = export(bundle, tmp_path / "e", wanted, said.append)
    assert manifest.check.rows_from == "rows drawn from the features' ranges"
    assert manifest.cost is not None
    assert manifest.cost.rows == 0
    assert any("cannot be opened" in line for line in said)


def test_drawn_rows_keep_to_the_features_ranges(url):
    transform = open_snapshot(url).transform
    inputs = [Tensor(name="user_idx", dtype="int32", shape=("batch",)),
              Tensor(name="history", dtype="int32", shape=("batch", HISTORY))]  # fmt: skip
    columns = drawn_rows(transform, inputs, 2000)
    assert {*columns["user_idx"].tolist()} == {*range(1, NUM_USERS + 3)}
    history = columns["history"]
    assert {*history.flatten().tolist()} == {0, *range(2, NUM_ITEMS + 3)}
    assert not ((history[:, 1:] == 0) & (history[:, :-1] != 0)).any()  # padding on the left alone


def test_an_export_stands_or_is_refused_but_is_never_written_over(ranker, exported, tmp_path):
    said: list[str] = []
    assert export(ranker, exported.folder, BOTH, said.append) == exported.manifest
    assert "stands already" in said[0]
    with pytest.raises(UserError, match="holds an export of another bundle, or with other settings"):
        export(ranker, exported.folder, Wanted(formats=("torch",), tables="int8"), silent)
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is no export and not empty"):
        export(ranker, tmp_path / "f", BOTH, silent)


def test_an_image_classifier_is_refused_in_one_line(ranker, tmp_path, capsys):
    manifest = json.loads((ranker / BUNDLE).read_text())
    manifest["recipe"] = read_recipe("image_classifier", []).model_dump(mode="json")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / BUNDLE).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="holds a model image_classifier: only rankers and retrievers are exported"):
        export(tmp_path / "bundle", tmp_path / "e", BOTH, silent)
    assert not (tmp_path / "e").exists()


def test_what_scores_otherwise_is_refused_and_leaves_nothing(ranker, tmp_path):
    bundle = load_bundle(ranker)
    asked = traced(bundle.model, bundle.manifest)
    columns = drawn_rows(bundle.manifest.transform, asked.inputs, 512)

    def off(columns):
        with torch.no_grad():
            return [asked.module(columns)[0], asked.module(columns)[1] + (len(columns["user_idx"]) == 7) * 1e-3]

    with pytest.raises(UserError, match=r"some.onnx does not score as the bundle does: on rows they differ by 0.001"):
        check(asked, columns, {"some.onnx": off}, rows_from="rows", tolerance=1e-5)
    with pytest.raises(UserError, match="does not score as the bundle does"):
        export(ranker, tmp_path / "e", Wanted(formats=("torch",), tolerance=-1.0), silent)
    assert [*tmp_path.iterdir()] == []


def test_smaller_tables_score_from_their_folder_as_from_onnx(ranker, rounded):
    manifest = rounded.manifest
    assert manifest.cost is not None
    assert manifest.cost.rows == 90
    assert 0 < manifest.cost.largest_difference["label"] < 0.01
    assert manifest.cost.before["label"]["auc"] == pytest.approx(manifest.cost.after["label"]["auc"], abs=0.02)
    # 4 codes and a scale instead of 4 numbers of 4 bytes.
    assert manifest.cost.bytes["vocab/user"] == (NUM_USERS + 3) * 8
    assert manifest.cost.float32_bytes["vocab/user"] == (NUM_USERS + 3) * 16
    assert {*manifest.check.largest_difference} == {"ranker.onnx", "quantised"}
    assert any(line.startswith("label on 90 rows of valid: auc 0.") for line in rounded.said)
    loaded = load_quantised(rounded.folder / "quantised")
    columns = drawn_rows(loaded.manifest.transform, manifest.inputs, 20)
    with torch.no_grad():
        expected = traced(loaded.model, loaded.manifest).module(columns)
        exact = traced(load_bundle(ranker).model, loaded.manifest).module(columns)
    found = onnx_scorer(rounded.folder / "ranker.onnx")(columns)
    assert torch.allclose(found[0], expected[0], atol=1e-6)
    assert not torch.equal(expected[0], exact[0])
    assert torch.allclose(expected[0], exact[0], atol=0.01)
