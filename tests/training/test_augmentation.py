"""Augmentation: each image by its own row, the same whatever the batch, and each step doing what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from schemas.errors import UserError
from schemas.images import Augmentation, ColourJitter, Erasing, RandomResizedCrop, Rotation, read_augmentation
from training.augmentation import _Draws, augmented

STRONG = read_augmentation("strong")


def noise(count: int, size: int = 20) -> Tensor:
    drawn = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=drawn)


def halves(count: int, size: int = 20) -> Tensor:
    """Black on the left, white on the right."""
    images = torch.zeros(count, size, size, 3, dtype=torch.uint8)
    images[:, :, size // 2 :] = 255
    return images


def ids(count: int) -> Tensor:
    return torch.arange(count) * 7_919 - 3_000_000_000_000_000_000


@pytest.mark.parametrize("policy", ["light", "strong"])
def test_an_image_gets_the_same_pixels_whatever_the_batch_it_stands_in(policy):
    images, row_ids = noise(90), ids(90)
    chosen = read_augmentation(policy)
    together = augmented(images, row_ids, chosen, seed=3, epoch=5)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(2))
    for rows in (*order.split(7), *order.split(1), *order.split(64)):
        assert torch.equal(augmented(images[rows], row_ids[rows], chosen, seed=3, epoch=5), together[rows])


def test_the_number_of_threads_changes_no_pixel():
    images, row_ids = noise(40, size=64), ids(40)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(augmented(images, row_ids, STRONG, seed=3, epoch=5))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_seed_epoch_and_row_each_change_the_pixels():
    images = noise(1).repeat(4, 1, 1, 1)
    row_ids = torch.tensor([1, 1, 2, 2**40])
    first = augmented(images, row_ids, STRONG, seed=0, epoch=0)
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first[2], first[3])
    for seed, epoch in ((1, 0), (0, 1), (1, 1)):
        assert not torch.equal(augmented(images, row_ids, STRONG, seed=seed, epoch=epoch)[0], first[0])


def test_the_images_given_stay_as_they_are_and_none_does_nothing():
    images = noise(3)
    before = images.clone()
    assert augmented(images, ids(3), read_augmentation("none"), seed=0, epoch=0) is images
    augmented(images, ids(3), STRONG, seed=0, epoch=0)
    assert torch.equal(images, before)
    assert augmented(images[:0], ids(0), STRONG, seed=0, epoch=0).shape == (0, 20, 20, 3)


def test_draws_are_even_and_independent_of_one_another():
    draws = _Draws(torch.arange(20_000), seed=1, epoch=1)
    one, other = draws.uniform(), draws.uniform()
    for column in (one, other):
        share = torch.histc(column, bins=10, min=0, max=1) / 20_000
        assert torch.allclose(share, torch.full((10,), 0.1), atol=0.01)
    assert abs(torch.corrcoef(torch.stack((one, other)))[0, 1]) < 0.02
    assert abs(torch.corrcoef(torch.stack((one[:-1], one[1:])))[0, 1]) < 0.02


def test_a_flip_swaps_left_and_right_and_about_as_many_as_asked_for():
    images = noise(1).repeat(1000, 1, 1, 1)
    found = augmented(images, ids(1000), Augmentation(horizontal_flip=0.3), seed=0, epoch=0)
    is_flipped = (found == images.flip(2)).flatten(1).all(1)
    assert (is_flipped | (found == images).flatten(1).all(1)).all()
    assert 0.25 < is_flipped.float().mean() < 0.35


def test_a_crop_of_the_whole_and_a_turn_by_nothing_change_nothing():
    images = noise(8)
    policy = Augmentation(
        random_resized_crop=RandomResizedCrop(area=(1, 1), ratio=(1, 1)),
        rotation=Rotation(degrees=0),
        colour_jitter=ColourJitter(),
    )
    assert torch.equal(augmented(images, ids(8), policy, seed=0, epoch=0), images)


def test_a_crop_enlarges_a_part_of_the_image_and_shows_nothing_else():
    crop = Augmentation(random_resized_crop=RandomResizedCrop(area=(0.1, 0.2)))
    ramp = torch.arange(20, dtype=torch.uint8).mul(10).view(1, 1, 20, 1).expand(200, 20, 20, 3).contiguous()
    found = augmented(ramp, ids(200), crop, seed=0, epoch=0).long()
    across = found[:, 10, :, 0]
    assert (across.diff(dim=1) >= 0).all(), "in the order of the image"
    widths = across[:, -1] - across[:, 0]
    assert (widths > 30).all()
    assert (widths < 120).all()
    assert across[:, 0].float().std() > 20, "from different places"


def test_a_rotation_turns_by_at_most_the_degrees_and_fills_with_grey():
    found = augmented(halves(300), ids(300), Augmentation(rotation=Rotation(degrees=90)), seed=0, epoch=0)
    top_left = found[:, 5, 5, 0]
    assert (top_left == 0).any()
    assert (top_left == 255).any()
    assert (found[:, 0, 0, 0] == 128).any(), "a corner from outside"
    assert (found[:, 10, 2:5, 0].long().max(1).values < 128).float().mean() > 0.9, "never by more than a quarter"


def test_jitter_stays_within_its_bounds():
    grey = torch.full((200, 8, 8, 3), 100, dtype=torch.uint8)
    bright = augmented(grey, ids(200), Augmentation(colour_jitter=ColourJitter(brightness=0.2)), seed=0, epoch=0)
    assert bright.min() >= 80
    assert bright.max() <= 120
    assert bright[:, 0, 0, 0].unique().numel() > 20
    same = Augmentation(colour_jitter=ColourJitter(contrast=0.5, saturation=0.5))
    assert torch.equal(augmented(grey, ids(200), same, seed=0, epoch=0), grey), "a grey plane has neither"
    red = torch.zeros(50, 8, 8, 3, dtype=torch.uint8)
    red[..., 0] = 200
    paler = augmented(red, ids(50), Augmentation(colour_jitter=ColourJitter(saturation=1.0)), seed=0, epoch=0)
    assert (paler[..., 1] == paler[..., 2]).all()
    assert (paler[..., 1] > 0).any()


def test_erasing_hides_one_rectangle_of_the_asked_area():
    policy = Augmentation(erasing=Erasing(probability=1, area=(0.1, 0.2)))
    white = torch.full((300, 40, 40, 3), 255, dtype=torch.uint8)
    hidden = (augmented(white, ids(300), policy, seed=0, epoch=0) == 128).all(-1)
    rows, columns = hidden.any(2).sum(1), hidden.any(1).sum(1)
    assert torch.equal(hidden.sum(dim=(1, 2)), rows * columns), "one rectangle"
    area = hidden.float().mean(dim=(1, 2))
    assert area.min() > 0.07
    assert area.max() < 0.24


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("horizontal_flips: 0.5", "unknown key 'horizontal_flips'; did you mean 'horizontal_flip'?"),
        ("horizontal_flip: 1.5", "horizontal_flip: Input should be less than or equal to 1"),
        ("erasing: {area: [0.5, 0.2]}", "the lower one first"),
        ("random_resized_crop: {area: [0.5, 1.2]}", "no area is larger than 1"),
    ],
)
def test_a_policy_that_is_wrong_is_refused_in_one_line(tmp_path: Path, text: str, says: str):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"^augmentation {re.escape(str(path))}: .*{re.escape(says)}"):
        read_augmentation(str(path))


def test_an_unknown_policy_names_those_that_there_are():
    with pytest.raises(UserError, match=r"no built-in augmentation 'strnog'; did you mean 'strong'\?"):
        read_augmentation("strnog")
