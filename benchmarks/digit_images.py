"""Generated images for the benchmark of the image classifier: digits in colour, turned and shifted, on a background.

Each of the 1,797 handwritten digits of scikit-learn (8 x 8 grey, Alpaydin and Kaynak 1998) is used once, and what is
missing to the asked number of each class is drawn in OpenCV's fonts, pulled into another shape each time: with 400 of a
class over half, whose likes are in train and test alike. The same images for the same number and seed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from sklearn.datasets import load_digits

SIDE, NUM_CLASSES = 64, 10
_DRAWN = 96  # the side on which a digit is drawn before it is turned
_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)  # fmt: skip
_LEAST_CONTRAST = 60  # of 255, between digit and background in at least one colour

Grey = NDArray[np.float32]
"""Ink of a digit from 0 to 1, shape (_DRAWN, _DRAWN)."""


def generate(folder: Path, *, per_class: int, seed: int = 0) -> None:
    """Write `per_class` PNGs of each digit below `folder`, a sub-folder a class, unless they are there."""
    if folder.exists():
        return
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    digits = load_digits()
    for digit in range(NUM_CLASSES):
        of_digit = unfinished / str(digit)
        of_digit.mkdir(parents=True)
        handwritten = digits.images[digits.target == digit]
        for number in range(per_class):
            random = np.random.default_rng([seed, digit, number])
            ink = _enlarged(handwritten[number]) if number < len(handwritten) else _printed(digit, random)
            cv2.imwrite(str(of_digit / f"{number:05d}.png"), _coloured(_moved(ink, random), random))
    unfinished.rename(folder)


def _enlarged(image: NDArray[np.float64]) -> Grey:
    inner = cv2.resize((image / 16).astype(np.float32), (64, 64), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    return np.pad(inner, (_DRAWN - 64) // 2).astype(np.float32)


def _printed(digit: int, random: Generator) -> Grey:
    """In a font, a width of line, an outline that is pulled at three corners."""
    font, thickness, scale = _FONTS[random.integers(len(_FONTS))], int(random.integers(2, 7)), random.uniform(1.7, 2.3)
    (width, height), _ = cv2.getTextSize(str(digit), font, scale, thickness)
    canvas = np.zeros((_DRAWN, _DRAWN), np.uint8)
    place = ((_DRAWN - width) // 2, (_DRAWN + height) // 2)
    cv2.putText(canvas, str(digit), place, font, scale, 255, thickness, cv2.LINE_AA)
    corners = np.array([[16, 16], [80, 16], [16, 80]], np.float32)
    pulled = corners + random.uniform(-8, 8, corners.shape).astype(np.float32)
    shaped = cv2.warpAffine(canvas, cv2.getAffineTransform(corners, pulled), (_DRAWN, _DRAWN))
    blurred = cv2.GaussianBlur(shaped, (0, 0), random.uniform(1.0, 4.0))  # as soft as what was 8 x 8 pixels
    return (blurred / max(1, blurred.max())).astype(np.float32)


def _moved(ink: Grey, random: Generator) -> Grey:
    """Turned by up to 20 degrees, made up to 20 % larger or smaller, shifted by up to 6 pixels; of SIDE x SIDE."""
    turn = cv2.getRotationMatrix2D(
        (_DRAWN / 2, _DRAWN / 2), random.uniform(-20, 20), random.uniform(0.8, 1.2) * SIDE / 80
    )
    shift = random.uniform(-6, 6, 2) - (_DRAWN - SIDE) / 2
    moved = cv2.warpAffine(ink, turn + np.pad(shift[:, None], ((0, 0), (2, 0))), (SIDE, SIDE), flags=cv2.INTER_LINEAR)
    return moved.astype(np.float32)


def _coloured(ink: Grey, random: Generator) -> NDArray[np.uint8]:
    """The digit in one colour on a slope between two, with blotches and noise; blue, green, red."""
    ends = random.uniform(0, 255, (2, 3))
    colour = random.uniform(0, 255, 3)
    while np.abs(colour - ends).max(axis=1).min() < _LEAST_CONTRAST:
        colour = random.uniform(0, 255, 3)
    along = np.linspace(0, 1, SIDE)[:, None] if random.random() < 0.5 else np.linspace(0, 1, SIDE)[None, :]
    slope = np.broadcast_to(along, (SIDE, SIDE))[:, :, None]
    blotches = cv2.resize(random.normal(0, 25, (6, 6, 3)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    background = (1 - slope) * ends[0] + slope * ends[1] + blotches
    image = background * (1 - ink[:, :, None]) + colour * ink[:, :, None] + random.normal(0, 8, (SIDE, SIDE, 3))
    return image.clip(0, 255).astype(np.uint8)
