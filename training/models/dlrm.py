"""DLRM: numbers through a small network, then dot products of all pairs of vectors (Naumov et al. 2019, section 2).

Legend: B rows of a batch, F features that are indices, V vectors that meet, D embedding width, N numbers, T heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from schemas.errors import UserError
from training.models.ranker import Ranker, layers


class DLRM(Ranker):
    """The numbers become one more vector; the top sees it beside the products, as in the paper's figure 1."""

    def __init__(self, *inputs: Any, heads: int, **more: Any) -> None:
        super().__init__(*inputs, **more)
        settings, width = self.settings, self.settings.width
        self.bottom = layers((len(self.numbers), *settings.bottom, width)) if self.numbers else None
        vectors = len(self.indices) + (self.bottom is not None)
        if vectors < 2:
            raise UserError("dlrm learns from pairs of features, and the snapshot has fewer than two: take dcn_v2.")
        pairs = torch.triu_indices(vectors, vectors, offset=1)
        self.register_buffer("pair", pairs[0] * vectors + pairs[1], persistent=False)
        seen = pairs.shape[1] + (width if self.bottom is not None else 0)
        self.top = layers((seen, *settings.top), dropout=settings.dropout)
        self.heads = nn.Linear(settings.top[-1] if settings.top else seen, heads)

    def logits(self, vectors_BFD: Tensor, numbers_BN: Tensor | None) -> Tensor:
        seen = []
        vectors_BVD = vectors_BFD
        if self.bottom is not None:
            assert numbers_BN is not None
            number_BD = self.bottom(numbers_BN)
            vectors_BVD = torch.cat([number_BD.unsqueeze(1), vectors_BFD], dim=1)
            seen.append(number_BD)
        products_BVV = torch.bmm(vectors_BVD, vectors_BVD.transpose(1, 2))
        # index_select, whose gradient is a sum by index; that of indexing with [] sorts first.
        seen.append(products_BVV.flatten(1).index_select(1, self.get_buffer("pair")))
        logits: Tensor = self.heads(self.top(torch.cat(seen, dim=1)))
        return logits
