"""DCN-v2: layers that cross the features with what the last layer made of them (Wang et al. 2021).

Legend: B rows of a batch, F features that are vectors, D embedding width, N numbers, C = F x D + N, T heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.models.ranker import Ranker, layers


class Cross(nn.Module):
    """x_next = x_first * (W x + b) + x (section 3.2); with a rank, W = U V (equation 2)."""

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        wide = nn.Linear(size, size)
        self.mix = wide if rank == 0 else nn.Sequential(nn.Linear(size, rank, bias=False), nn.Linear(rank, size))

    def forward(self, first_BC: Tensor, x_BC: Tensor) -> Tensor:
        crossed: Tensor = first_BC * self.mix(x_BC) + x_BC
        return crossed


class DCNv2(Ranker):
    """Cross layers and a deep part side by side, joined before the heads (section 3.4, parallel structure)."""

    def __init__(self, *inputs: Any, heads: int, **more: Any) -> None:
        super().__init__(*inputs, **more)
        settings = self.settings
        size = self.num_vectors * settings.width + len(self.numbers)
        self.crosses = nn.ModuleList([Cross(size, settings.cross_rank) for _ in range(settings.cross_layers)])
        self.deep = layers((size, *settings.top), dropout=settings.dropout)
        self.heads = nn.Linear(size + (settings.top[-1] if settings.top else size), heads)

    def logits(self, vectors_BFD: Tensor, numbers_BN: Tensor | None) -> Tensor:
        first_BC = vectors_BFD.flatten(1)
        if numbers_BN is not None:
            first_BC = torch.cat([first_BC, numbers_BN], dim=1)
        crossed_BC = first_BC
        for cross in self.crosses:
            crossed_BC = cross(first_BC, crossed_BC)
        logits: Tensor = self.heads(torch.cat([crossed_BC, self.deep(first_BC)], dim=1))
        return logits
