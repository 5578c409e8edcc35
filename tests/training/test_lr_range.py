"""The range test: rates by hand, its end, what it suggests where the best rate is known, and mistakes in one line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from schemas.bundle import SplitMetrics
from schemas.errors import UserError
from schemas.snapshot import open_snapshot
from tests.snapshots import make_snapshot
from tests.training.test_step import trainer
from training.batch import Batch
from training.loop import Trainer
from training.lr_range import Point, lr_range, main, range_test, rising_rates, steepest
from training.ranks import OneRank
from training.recipe import read_recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_snapshot(tmp_path_factory.mktemp("data") / "s", [[512, 512]])


@dataclass
class Line:
    """Learns y = 2 x - 1 from x, the age; squared error. Its optimum is 2 and 1 away from where it begins."""

    model: nn.Linear = field(default_factory=lambda: nn.Linear(1, 1))
    columns: tuple[str, ...] = ("user_age",)
    held_out_columns: tuple[str, ...] = ("user_age",)
    more_is_better: bool = False

    def __post_init__(self) -> None:
        with torch.no_grad():
            self.model.weight.zero_()
            self.model.bias.zero_()

    def loss_sum(self, batch: Batch, epoch: int) -> Tensor:
        x = batch["user_age"].unsqueeze(1)
        return (self.model(x) - (2 * x - 1)).square().sum()

    def evaluate(self, batches: Iterable[Batch]) -> SplitMetrics:
        raise NotImplementedError

    def chosen(self, metrics: SplitMetrics) -> float:
        raise NotImplementedError

    def scalars(self, metrics: SplitMetrics) -> dict[str, float]:
        raise NotImplementedError


def toy(url: str) -> Trainer:
    recipe = read_recipe("matrix_factorisation", ["batch_size_per_rank=128"])
    return Trainer(
        task=Line(), snapshot=open_snapshot(url), recipe=recipe, ranks=OneRank(), device=CPU, say=lambda line: None
    )


def final_loss(url: str, rate: float) -> float:
    """Of 40 steps at one rate: the mean loss of the last five."""
    return float(np.mean([point.loss for point in range_test(toy(url), [rate] * 40, of="dense")][-5:]))


def test_rates_rise_each_as_many_times_the_one_before():
    assert rising_rates(1e-3, 10.0, 5) == pytest.approx([1e-3, 1e-2, 1e-1, 1.0, 10.0])


def test_the_suggestion_is_within_a_factor_of_ten_of_the_best_rate_on_a_problem_where_that_is_known(url):
    rates = [10.0**power for power in (-4, -3, -2, -1, 0, 1)]
    best = min(rates, key=lambda rate: final_loss(url, rate))
    suggested = steepest(range_test(toy(url), rising_rates(1e-5, 10.0, 90), of="dense"))
    assert suggested is not None
    assert best / 10 <= suggested <= 10 * best


def test_the_test_ends_where_the_loss_breaks_away_or_is_no_number(url):
    points = range_test(toy(url), rising_rates(1e-4, 1e6, 100), of="dense")
    lowest = min(point.smoothed for point in points)
    assert len(points) < 100
    assert points[-1].smoothed > 4 * lowest
    assert all(point.smoothed <= 4 * lowest for point in points[: int(np.argmin([p.smoothed for p in points]))])
    overflowing = range_test(toy(url), rising_rates(1e20, 1e38, 10), of="dense")
    assert not math.isfinite(overflowing[-1].loss)
    assert len(overflowing) < 10


def points(losses: list[float]) -> list[Point]:
    """After ten steps that jump, which count for nothing, the first of these has the rate 1."""
    before = [Point(10.0 ** (place - 10), 9.0 - 8 * (place % 2), 9.0 - 8 * (place % 2)) for place in range(10)]
    return before + [Point(10.0**place, loss, loss) for place, loss in enumerate(losses)]


def test_the_steepest_fall_by_hand():
    # Slopes in the middle: (1.0 - 3.0) / 2 decades at 100, the largest fall; 1,000 begins to rise.
    assert steepest(points([3.0, 3.0, 2.8, 1.0, 0.9, 2.0])) == 1e2
    assert steepest(points([3.0, 3.1, 3.2, 3.3])) is None
    assert steepest(points([3.0, float("nan")])) is None
    assert steepest([]) is None


@pytest.mark.parametrize("of", ["dense", "tables"])
def test_only_what_the_rate_is_looked_for_of_learns(url, of):
    ranker = trainer(url, "model.tables=replicated")
    before = {name: value.clone() for name, value in ranker.task.model.named_parameters()}
    range_test(ranker, [1e-3] * 3, of=of)
    moved = {name for name, value in ranker.task.model.named_parameters() if not torch.equal(value, before[name])}
    tables = {"embeddings.weight"}
    assert moved == ({*before} - tables if of == "dense" else tables)


def test_a_picture_is_written_and_nothing_else(url, tmp_path, capsys):
    recipe = read_recipe("dlrm", ["model.width=4", "batch_size_per_rank=64"])
    suggested = lr_range(
        OneRank(), snapshot_url=url, recipe=recipe, rates=rising_rates(1e-5, 1.0, 30), of="tables",
        picture=tmp_path / "range.png",
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["range.png"]
    assert (tmp_path / "range.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "optimizer.table_learning_rate" in said.splitlines()[1]
    assert suggested is None or f"--set optimizer.table_learning_rate={suggested:.1e}" in said


def test_mistakes_are_one_line(url, tmp_path, capsys):
    for arguments, says in (
        (["--from", "1", "--to", "0.1"], "rates rise from more than 0 to more than that"),
        (["--from", "0"], "rates rise from more than 0"),
        (["--steps", "3"], "--steps 3: 20 or more are needed"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["--snapshot", url, *arguments])
        err = capsys.readouterr().err
        assert stopped.value.code == 2
        assert says in err
        assert len(err.strip().splitlines()) == 1
    retriever, rates = read_recipe("matrix_factorisation", []), rising_rates(1e-3, 1, 10)
    with pytest.raises(UserError, match="matrix_factorisation is no ranker"):
        lr_range(OneRank(), snapshot_url=url, recipe=retriever, rates=rates, of="tables", picture=tmp_path / "a.png")
    with pytest.raises(UserError, match="nowhere does not exist: give --plot"):
        lr_range(
            OneRank(), snapshot_url=url, recipe=retriever, rates=rates, of="dense",
            picture=Path("/nowhere/a.png"),
        )  # fmt: skip
