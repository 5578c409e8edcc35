"""The benchmark of the image classifier: its images and its figures."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from benchmarks.digit_images import SIDE, generate
from benchmarks.images import Outcome, mean_and_spread, summary


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_images_are_the_same_every_time_and_others_for_another_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        generate(tmp_path / name, per_class=3, seed=seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert {*a} == {f"{digit}/{number:05d}.png" for digit in range(10) for number in range(3)}
    assert not {*a.values()} & {*c.values()}


def test_handwriting_is_used_once_and_the_rest_is_printed_and_every_image_is_another(tmp_path):
    generate(tmp_path / "digits", per_class=190)  # no digit of scikit-learn's has more than 183
    found = contents(tmp_path / "digits")
    assert len({*found.values()}) == len(found) == 1900
    image = cv2.imread(str(tmp_path / "digits" / "8" / "00189.png"))
    assert image.shape == (SIDE, SIDE, 3)
    assert image.std() > 10


def test_mean_and_spread_by_hand():
    assert mean_and_spread([0.5, 0.7, 0.9]) == (0.7, 0.2)
    assert mean_and_spread([0.25]) == (0.25, None)
    runs = [Outcome({"accuracy": 0.5, "log_loss": 1.0}, 6, 10.0), Outcome({"accuracy": 0.7, "log_loss": 1.0}, 6, 20.0)]
    assert summary({"random": runs})["random"] == pytest.approx(
        {"accuracy": 0.6, "accuracy_spread": 0.1414, "log_loss": 1.0, "log_loss_spread": 0.0, "train_s": 15.0}
    )
