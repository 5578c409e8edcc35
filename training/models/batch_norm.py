"""Batch normalisation (Ioffe and Szegedy 2015) whose statistics are kept, or learned and made alike on all ranks.

Kept statistics make a row's output its own: the gradient of a batch is the sum over its rows, the same on one rank as
on many, and a rank may hold one row or none. Statistics of each batch bind rows together, and every rank sees other
rows; they are for a model from random start, which has no statistics worth keeping.

Legend: B images, C channels, H and W their height and width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.ranks import Ranks

EPS = 1e-3  # as EfficientNet was trained
# A tenth a step, where EfficientNet's own runs of 350 epochs took a hundredth: statistics settle in tens of steps.
MOMENTUM = 0.1
_FEWEST_ROWS = 2  # of one row the variance may be that of a single pixel


class BatchNorm(nn.Module):
    """Normalises by the batch where it trains, learns its statistics and is not frozen; else by what it holds."""

    def __init__(self, channels: int, *, learns_statistics: bool) -> None:
        super().__init__()
        self.learns_statistics = learns_statistics
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        is_frozen = not self.weight.requires_grad
        by_batch = self.training and self.learns_statistics and not is_frozen and len(pixels_BCHW) >= _FEWEST_ROWS
        return F.batch_norm(
            pixels_BCHW, self.mean, self.variance, self.weight, self.bias,
            training=by_batch, momentum=MOMENTUM, eps=EPS,
        )  # fmt: skip


@torch.no_grad()
def average_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Give every rank the mean of all ranks' learned statistics; collective, and nothing where none are learned.

    They are moving averages, so the mean of them is that of the ranks' batches: how often it is taken changes nothing
    but rounding. Within an epoch no step of two rows or more depends on it.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm) and module.learns_statistics]
    held = [statistics for norm in norms for statistics in (norm.mean, norm.variance)]
    if not held or ranks.size == 1:
        return
    sums = ranks.sum(torch.cat(held), "batch_norm_statistics")
    for statistics, total in zip(held, sums.split([len(one) for one in held]), strict=True):
        statistics.copy_(total / ranks.size)
