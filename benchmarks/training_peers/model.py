"""DLRM (Naumov et al. 2019) in plain torch, which the peers that train with torch share. Imports torch alone.

Legend: B rows of a batch, N numbers, F values (a table each), D width of an embedding, V vectors (F and the numbers').
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

WIDTH = 16
LAYERS = {"small": ((64,), (128, 64)), "large": ((512, 256, 64), (512, 256))}
"""Hidden layers of the bottom and of the top: about Headrace's recipe `dlrm`, and DLRM on Criteo's log."""


class DLRM(nn.Module):
    """From numbers (B, N) and indices (B, F) to logits (B,).

    The tables lie one below the other in one EmbeddingBag: the same model with one lookup and, between ranks, one
    gradient in place of F.
    """

    def __init__(self, num_numbers: int, rows_of_tables: Sequence[int], *, layers: str, sparse: bool) -> None:
        """`sparse`: the gradient of the tables holds the rows of the batch alone."""
        super().__init__()
        bottom, top = LAYERS[layers]
        self.bottom = mlp(num_numbers, (*bottom, WIDTH), last_is_linear=False)
        self.tables = nn.EmbeddingBag(sum(rows_of_tables), WIDTH, mode="sum", sparse=sparse)
        num_vectors = len(rows_of_tables) + 1
        self.top = mlp(num_vectors * (num_vectors - 1) // 2 + WIDTH, (*top, 1), last_is_linear=True)
        self.first_row_F: Tensor
        self.register_buffer("first_row_F", torch.tensor([0, *rows_of_tables[:-1]]).cumsum(0).int(), persistent=False)
        self.pairs: Tensor
        pairs = torch.triu_indices(num_vectors, num_vectors, offset=1)
        self.register_buffer("pairs", pairs[0] * num_vectors + pairs[1], persistent=False)
        self._initialise(rows_of_tables)

    def forward(self, numbers_BN: Tensor, index_BF: Tensor) -> Tensor:
        number_BD = self.bottom(numbers_BN)
        rows = (index_BF + self.first_row_F).view(-1, 1)  # bags of one
        value_BFD = self.tables(rows).view(*index_BF.shape, WIDTH)
        vectors_BVD = torch.cat([number_BD.unsqueeze(1), value_BFD], dim=1)
        dots_BVV = torch.bmm(vectors_BVD, vectors_BVD.transpose(1, 2))
        dots = dots_BVV.flatten(1).index_select(1, self.pairs)
        return self.top(torch.cat([number_BD, dots], dim=1)).squeeze(1)

    @torch.no_grad()
    def _initialise(self, rows_of_tables: Sequence[int]) -> None:
        """As the authors' code does: the smaller a table, the larger its vectors."""
        for rows, table in zip(rows_of_tables, self.tables.weight.split(list(rows_of_tables)), strict=True):
            table.uniform_(-(rows**-0.5), rows**-0.5)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=(2 / (layer.in_features + layer.out_features)) ** 0.5)
                nn.init.normal_(layer.bias, std=(1 / layer.out_features) ** 0.5)


def mlp(width: int, widths: Sequence[int], *, last_is_linear: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wider in widths:
        layers += [nn.Linear(width, wider), nn.ReLU()]
        width = wider
    return nn.Sequential(*(layers[:-1] if last_is_linear else layers))
