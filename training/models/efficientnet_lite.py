"""EfficientNet-Lite0: the network of Tan and Le 2019 (table 1) without squeeze-and-excitation and with ReLU6.

The Lite variant leaves out what phones and 8-bit arithmetic are slow or inexact at; its stem and top keep their width.

Legend: B images, C channels, H and W height and width of what a layer sees, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.batch_norm import BatchNorm

MEAN, SCALE = 127.0, 128.0
"""Pixels from 0 to 255 come in as (pixel - MEAN) / SCALE."""
STEM_CHANNELS, TOP_CHANNELS = 32, 1280


class StageShape(NamedTuple):
    """A row of table 1: so many blocks, the first of which has the stride."""

    blocks: int
    kernel: int
    stride: int
    widening: int
    channels: int


STAGES = (
    StageShape(blocks=1, kernel=3, stride=1, widening=1, channels=16),
    StageShape(blocks=2, kernel=3, stride=2, widening=6, channels=24),
    StageShape(blocks=2, kernel=5, stride=2, widening=6, channels=40),
    StageShape(blocks=3, kernel=3, stride=2, widening=6, channels=80),
    StageShape(blocks=3, kernel=5, stride=1, widening=6, channels=112),
    StageShape(blocks=4, kernel=5, stride=2, widening=6, channels=192),
    StageShape(blocks=1, kernel=3, stride=1, widening=6, channels=320),
)


class Convolution(nn.Module):
    """A convolution without bias, batch normalisation, and ReLU6 unless it is left out.

    Pads as TensorFlow's "same" does, in which the weights were trained: the result is ceil(size / stride) wide, and of
    an odd number of padding pixels the one more lies on the right and below.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1,
        is_activated: bool = True, learns_statistics: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stride, self.groups, self.is_activated = stride, groups, is_activated
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in // groups, kernel, kernel))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.norm = BatchNorm(channels_out, learns_statistics=learns_statistics)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        (top, below), (left, right) = (same_padding(size, kernel, self.stride) for size in pixels_BCHW.shape[2:])
        if (top, left) != (below, right):
            pixels_BCHW, top, left = F.pad(pixels_BCHW, (left, right, top, below)), 0, 0
        found = F.conv2d(pixels_BCHW, self.weight, stride=self.stride, padding=(top, left), groups=self.groups)
        found = self.norm(found)
        return F.relu6(found) if self.is_activated else found


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and after a side of `size` so that ceil(size / stride) places come of it."""
    places = -(-size // stride)
    missing = max(0, (places - 1) * stride + kernel - size)
    return missing // 2, missing - missing // 2


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow without activation; added to what came in where sizes allow.

    Sandler et al. 2018 (MobileNetV2), section 3.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, kernel: int, stride: int, widening: int, learns_statistics: bool
    ) -> None:
        super().__init__()
        wide, learns = channels_in * widening, learns_statistics
        self.has_shortcut = stride == 1 and channels_in == channels_out
        self.expand = Convolution(channels_in, wide, learns_statistics=learns) if widening > 1 else nn.Identity()
        self.depthwise = Convolution(
            wide, wide, kernel=kernel, stride=stride, groups=wide, learns_statistics=learns
        )  # fmt: skip
        self.project = Convolution(wide, channels_out, is_activated=False, learns_statistics=learns)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        found = self.project(self.depthwise(self.expand(pixels_BCHW)))
        return pixels_BCHW + found if self.has_shortcut else found


class EfficientNetLite0(nn.Module):
    """Stem, seven stages of blocks, a last convolution over the channels (`top`), their mean, and a linear layer."""

    def __init__(self, num_classes: int, *, dropout: float = 0.0, learns_statistics: bool = False) -> None:
        super().__init__()
        learns = learns_statistics
        self.stem = Convolution(3, STEM_CHANNELS, kernel=3, stride=2, learns_statistics=learns)
        self.stages, channels = nn.ModuleList(), STEM_CHANNELS
        for shape in STAGES:
            blocks = nn.Sequential()
            for number in range(shape.blocks):
                stride = shape.stride if number == 0 else 1
                blocks.append(
                    InvertedResidual(
                        channels, shape.channels, kernel=shape.kernel, stride=stride, widening=shape.widening,
                        learns_statistics=learns,
                    )
                )  # fmt: skip
                channels = shape.channels
            self.stages.append(blocks)
        self.top = Convolution(channels, TOP_CHANNELS, learns_statistics=learns)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(TOP_CHANNELS, num_classes)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Images of bytes, red first, to logits (B, K)."""
        pixels_BCHW = (images_BHWC.permute(0, 3, 1, 2).float() - MEAN) / SCALE
        pixels_BCHW = self.stem(pixels_BCHW)
        for stage in self.stages:
            pixels_BCHW = stage(pixels_BCHW)
        features_BC = self.top(pixels_BCHW).mean(dim=(2, 3))
        return self.classifier(self.dropout(features_BC))
