"""A file like the published weights of EfficientNet-Lite0: its names and shapes by hand, values of our own."""

from __future__ import annotations

import torch
from torch import Tensor

# The published file as it was found: channels in and out, kernel and widening of its 16 blocks.
BLOCKS = [
    (32, 16, 3, 1), (16, 24, 3, 6), (24, 24, 3, 6), (24, 40, 5, 6), (40, 40, 5, 6), (40, 80, 3, 6), (80, 80, 3, 6),
    (80, 80, 3, 6), (80, 112, 5, 6), (112, 112, 5, 6), (112, 112, 5, 6), (112, 192, 5, 6), (192, 192, 5, 6),
    (192, 192, 5, 6), (192, 192, 5, 6), (192, 320, 3, 6),
]  # fmt: skip


def published() -> dict[str, Tensor]:
    """What the published file holds, by name and shape, with values of our own."""
    drawn = torch.Generator().manual_seed(7)
    tensors: dict[str, Tensor] = {}

    def convolution(name: str, channels_out: int, channels_in: int, kernel: int) -> None:
        shape = (channels_out, channels_in, kernel, kernel)
        tensors[f"{name}.weight"] = torch.randn(shape, generator=drawn) * (2 / (channels_in * kernel**2)) ** 0.5

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "running_var"):
            tensors[f"{name}.{part}"] = 0.5 + torch.rand(channels, generator=drawn)
        for part in ("bias", "running_mean"):
            tensors[f"{name}.{part}"] = torch.randn(channels, generator=drawn) * 0.1
        tensors[f"{name}.num_batches_tracked"] = torch.tensor(350)

    convolution("_conv_stem", 32, 3, 3)
    norm("_bn0", 32)
    for number, (channels_in, channels_out, kernel, widening) in enumerate(BLOCKS):
        block, wide = f"_blocks.{number}", channels_in * widening
        if widening > 1:
            convolution(f"{block}._expand_conv", wide, channels_in, 1)
            norm(f"{block}._bn0", wide)
        convolution(f"{block}._depthwise_conv", wide, 1, kernel)
        norm(f"{block}._bn1", wide)
        convolution(f"{block}._project_conv", channels_out, wide, 1)
        norm(f"{block}._bn2", channels_out)
    convolution("_conv_head", 1280, 320, 1)
    norm("_bn1", 1280)
    tensors["_fc.weight"] = torch.randn(1000, 1280, generator=drawn) * 0.03
    tensors["_fc.bias"] = torch.randn(1000, generator=drawn) * 0.03
    return tensors
