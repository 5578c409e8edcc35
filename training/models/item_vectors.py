"""What a model makes of vectors that another model made of its items, such as of their titles or thumbnails.

Legend: I rows of the item vocabulary, W numbers of a given vector, D embedding width, M items asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ITEMS_AT_ONCE = 1 << 16


class ItemVectors(nn.Module):
    """Given vectors, which do not learn, projected to the embeddings' width; one learned vector for all items without.

    The reserved rows (padding, null, unseen) are without, too.
    """

    def __init__(self, num_items: int, vector_width: int, width: int) -> None:
        super().__init__()
        self.vectors: Tensor
        self.has_vector: Tensor
        self.register_buffer("vectors", torch.zeros(num_items, vector_width))
        self.register_buffer("has_vector", torch.zeros(num_items, dtype=torch.uint8))  # Horovod broadcasts no bool
        self.projection = nn.Linear(vector_width, width)
        self.default = nn.Parameter(torch.zeros(width))

    def fill(self, vectors_IW: Tensor, has_vector_I: Tensor) -> None:
        """Take these vectors, on the CPU without a copy."""
        assert vectors_IW.shape == self.vectors.shape
        assert has_vector_I.shape == self.has_vector.shape
        device = self.vectors.device
        self.vectors, self.has_vector = vectors_IW.to(device), has_vector_I.to(device)

    def forward(self, item_idx_M: Tensor) -> Tensor:
        """Shape (M, D)."""
        if torch.compiler.is_exporting() or torch.is_grad_enabled() or len(item_idx_M) <= _ITEMS_AT_ONCE:
            return self._projected(item_idx_M)
        # An evaluation asks for all items: in parts, or their rows would be another table for a while.
        return torch.cat([self._projected(part) for part in item_idx_M.split(_ITEMS_AT_ONCE)])

    def _projected(self, item_idx_M: Tensor) -> Tensor:
        projected_MD = self.projection(self.vectors[item_idx_M])
        return torch.where(self.has_vector[item_idx_M].bool().unsqueeze(1), projected_MD, self.default)
