"""Images of train varied at random, each by its own row: the same seed, epoch and row id give the same pixels.

What is drawn for an image depends on nothing else: not on the batch that it stands in, nor on the number of ranks, so a
resumed epoch sees what an uninterrupted one would have seen. All images of a batch are done at once, on their device.

Legend: B images, H and W their height and width, C three colours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.images import Augmentation, ColourJitter, Erasing
from schemas.snapshot import Snapshot

_GREY = 128
_IMAGES_AT_ONCE = 8  # in float32 and with the grid, about what stays in a cache
_LUMA = (77, 150, 29)  # of 256: red, green, blue, as whole numbers, whose sums do not depend on their order
# splitmix64 (Steele, Lea, Flood 2014): one more number of its stream for each draw of an image.
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def augmentation_of(snapshot: Snapshot, split: str) -> Augmentation:
    """The snapshot's policy for train; for every other split the one that does nothing."""
    images = snapshot.manifest.images
    return images.augmentation if images is not None and split == "train" else Augmentation()


def augmented(images_BHWC: Tensor, row_ids_B: Tensor, policy: Augmentation, *, seed: int, epoch: int) -> Tensor:
    """The images varied, uint8 of the same shape; the images given stay as they are."""
    if policy.does_nothing:
        return images_BHWC
    pieces = zip(images_BHWC.split(_IMAGES_AT_ONCE), row_ids_B.split(_IMAGES_AT_ONCE), strict=True)
    varied = [_augmented(images, _Draws(row_ids, seed, epoch), policy) for images, row_ids in pieces]
    return torch.cat(varied) if varied else images_BHWC


class _Draws:
    """Numbers from 0 to below 1, shape (B,): the n-th that is asked for is the n-th of each row."""

    def __init__(self, row_ids_B: Tensor, seed: int, epoch: int):
        key = _mixed(_mixed(row_ids_B.long()) ^ _signed(seed * _GOLDEN)) ^ _signed(epoch * _MIX_2)
        self._state_B, self._drawn = _mixed(key), 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        self._drawn += 1
        bits = _mixed(self._state_B + _signed(self._drawn * _GOLDEN))
        return low + (high - low) * (_shifted(bits, 40).to(torch.float32) / (1 << 24))

    def happens(self, probability: float) -> Tensor:
        return self.uniform() < probability

    def log_uniform(self, low: float, high: float) -> Tensor:
        return torch.exp(self.uniform(math.log(low), math.log(high)))


def _augmented(images_BHWC: Tensor, draws: _Draws, policy: Augmentation) -> Tensor:
    """Every step draws its numbers for every image, needed or not, so that each has the same place in the stream."""
    pixels = images_BHWC.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    if policy.horizontal_flip or policy.rotation or policy.random_resized_crop:
        pixels = _moved(pixels, draws, policy)
    if policy.colour_jitter is not None:
        pixels = _recoloured(pixels, draws, policy.colour_jitter)
    if policy.erasing is not None:
        pixels = _erased(pixels, draws, policy.erasing)
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _moved(pixels_BCHW: Tensor, draws: _Draws, policy: Augmentation) -> Tensor:
    """Flip, rotation and crop as one map, so that pixels are interpolated once.

    A place of the result, from -1 to 1 either way, goes into the crop's window of the image, and is turned there.
    """
    _, _, height, width = pixels_BCHW.shape
    device = pixels_BCHW.device
    half_x, half_y, mid_x, mid_y = _window(draws, policy, height, width)
    flip = 1.0 - 2.0 * draws.happens(policy.horizontal_flip).to(torch.float32)
    angle = torch.zeros_like(flip)
    if (rotation := policy.rotation) is not None:
        turned, degrees = draws.happens(rotation.probability), draws.uniform(-rotation.degrees, rotation.degrees)
        angle = torch.where(turned, degrees * (math.pi / 180), 0.0)
    x = (2 * torch.arange(width, device=device, dtype=torch.float32) + 1) / width - 1
    y = (2 * torch.arange(height, device=device, dtype=torch.float32) + 1) / height - 1
    x_B1W = (flip * half_x)[:, None, None] * x[None, None, :] + mid_x[:, None, None]
    y_BH1 = half_y[:, None, None] * y[None, :, None] + mid_y[:, None, None]
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    grid = torch.stack((cos * x_B1W - sin * y_BH1, sin * x_B1W + cos * y_BH1), dim=-1)
    moved = F.grid_sample(pixels_BCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if rotation is None:
        return moved
    return torch.where((grid.abs() > 1).any(-1)[:, None], float(_GREY), moved)


def _window(draws: _Draws, policy: Augmentation, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Half the width and height of each image's crop and where its middle lies; the whole is 1, 1, 0, 0."""
    crop = policy.random_resized_crop
    if crop is None:
        one = draws.uniform(1, 1)
        return one, one, one * 0, one * 0
    wanted = draws.happens(crop.probability)
    area, ratio = draws.uniform(*crop.area), draws.log_uniform(*crop.ratio)
    half_x = torch.sqrt(area * ratio * (height / width)).clamp(max=1)
    half_y = torch.sqrt(area / ratio * (width / height)).clamp(max=1)
    mid_x, mid_y = (1 - half_x) * draws.uniform(-1, 1), (1 - half_y) * draws.uniform(-1, 1)
    return (
        torch.where(wanted, half_x, 1.0),
        torch.where(wanted, half_y, 1.0),
        torch.where(wanted, mid_x, 0.0),
        torch.where(wanted, mid_y, 0.0),
    )


def _recoloured(pixels_BCHW: Tensor, draws: _Draws, jitter: ColourJitter) -> Tensor:
    """Brightness, then contrast around the image's mean grey, then saturation around each pixel's grey."""
    wanted = draws.happens(jitter.probability)
    brightness, contrast, saturation = (
        torch.where(wanted, draws.uniform(1 - amount, 1 + amount), 1.0)[:, None, None, None]
        for amount in (jitter.brightness, jitter.contrast, jitter.saturation)
    )
    pixels = (pixels_BCHW * brightness).clamp_(0, 255)
    mean = _grey(pixels).long().sum(dim=(1, 2, 3), keepdim=True).to(torch.float32) / pixels.shape[2:].numel()
    pixels = pixels.sub_(mean).mul_(contrast).add_(mean).clamp_(0, 255)
    grey = _grey(pixels)
    return pixels.sub_(grey).mul_(saturation).add_(grey).clamp_(0, 255)


def _grey(pixels_BCHW: Tensor) -> Tensor:
    """Shape (B, 1, H, W), whole numbers in float32."""
    red, green, blue = pixels_BCHW.split(1, dim=1)
    return (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).div_(256).round_()


def _erased(pixels_BCHW: Tensor, draws: _Draws, erasing: Erasing) -> Tensor:
    _, _, height, width = pixels_BCHW.shape
    device = pixels_BCHW.device
    wanted, area, ratio = (
        draws.happens(erasing.probability), draws.uniform(*erasing.area), draws.log_uniform(*erasing.ratio)
    )  # fmt: skip
    wide = (torch.sqrt(area * ratio * height * width)).clamp(max=width)
    high = (torch.sqrt(area / ratio * height * width)).clamp(max=height)
    left, top = (width - wide) * draws.uniform(), (height - high) * draws.uniform()
    x, y = torch.arange(width, device=device)[None, :], torch.arange(height, device=device)[None, :]
    in_x = (x >= left[:, None]) & (x < (left + wide)[:, None])
    in_y = (y >= top[:, None]) & (y < (top + high)[:, None])
    hidden = (in_y[:, :, None] & in_x[:, None, :] & wanted[:, None, None])[:, None]
    return torch.where(hidden, float(_GREY), pixels_BCHW)


def _mixed(bits: Tensor) -> Tensor:
    """splitmix64's finaliser on 64 bits, which torch holds as signed numbers that wrap around."""
    bits = (bits ^ _shifted(bits, 30)) * _signed(_MIX_1)
    bits = (bits ^ _shifted(bits, 27)) * _signed(_MIX_2)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """To the right, zeros coming in from the left."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
