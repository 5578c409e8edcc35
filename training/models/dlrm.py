"""DLRM: numbers through a small network, then dot products of all pairs of vectors (Naumov et al. 2019, section 2).

Legend: B rows of a batch, F features that are vectors, V vectors that meet, P pairs of them, D embedding
width, N numbers, T heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.errors import UserError
from training.models.ranker import Ranker, layers


class _PairProducts(torch.autograd.Function):
    """Dot products of pairs of vectors, with a backward pass of one matrix product where autograd's takes two.

    The gradient of V V^T is (G + G^T) V; laid out as a symmetric matrix from the start, a pair's gradient stands in
    both places. A quarter of the time of both passes is saved.
    """

    @staticmethod
    def forward(ctx: Any, vectors_BVD: Tensor, pair_P: Tensor, place_VV: Tensor) -> Tensor:
        ctx.save_for_backward(vectors_BVD, place_VV)
        return pair_products(vectors_BVD, pair_P)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        vectors_BVD, place_VV = ctx.saved_tensors
        count = vectors_BVD.shape[1]
        # One more column, of zeros, for a vector with itself.
        gradient_BP = F.pad(gradients[0], (0, 1))
        symmetric_BVV = gradient_BP.index_select(1, place_VV).view(-1, count, count)
        # Under autocast the products, and so their gradient, are bfloat16 where the vectors are not.
        gradient_BVD = torch.bmm(symmetric_BVV, vectors_BVD.to(symmetric_BVV.dtype))
        return gradient_BVD.to(vectors_BVD.dtype), None, None


def pair_products(vectors_BVD: Tensor, pair_P: Tensor) -> Tensor:
    products_BVV = torch.bmm(vectors_BVD, vectors_BVD.transpose(1, 2))
    return products_BVV.flatten(1).index_select(1, pair_P)


class DLRM(Ranker):
    """The numbers become one more vector; the top sees it beside the products, as in the paper's figure 1."""

    def __init__(self, *inputs: Any, heads: int, **more: Any) -> None:
        super().__init__(*inputs, **more)
        settings, width = self.settings, self.settings.width
        self.bottom = layers((len(self.numbers), *settings.bottom, width)) if self.numbers else None
        vectors = self.num_vectors + (self.bottom is not None)
        if vectors < 2:
            raise UserError("dlrm learns from pairs of features, and the snapshot has fewer than two: take dcn_v2.")
        pairs = torch.triu_indices(vectors, vectors, offset=1)
        self.register_buffer("pair", pairs[0] * vectors + pairs[1], persistent=False)
        place = torch.full((vectors, vectors), pairs.shape[1])
        place[pairs[0], pairs[1]] = place[pairs[1], pairs[0]] = torch.arange(pairs.shape[1])
        self.register_buffer("place", place.flatten(), persistent=False)
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
        pair_P = self.get_buffer("pair")
        if torch.is_grad_enabled():
            seen.append(_PairProducts.apply(vectors_BVD, pair_P, self.get_buffer("place")))
        else:
            seen.append(pair_products(vectors_BVD, pair_P))
        logits: Tensor = self.heads(self.top(torch.cat(seen, dim=1)))
        return logits
