"""SASRec: self-attention over the user's last items predicts the next (Kang and McAuley 2018).

Legend: B rows of a batch, L history length, D width, M items asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.features import PADDING_IDX, FeatureTransform
from training.batch import Batch
from training.recipe import ModelSettings


class SASRec(nn.Module):
    """The row's history is the sequence and its item the next one; users are known by nothing else.

    Causal attention as in the paper, pre-norm blocks, learned positions counted from the newest item, and the item
    table shared between input and output (section III-E). With causal attention the newest position is the user;
    the others may be learned from, too (training/positions.py).
    """

    def __init__(self, settings: ModelSettings, transform: FeatureTransform) -> None:
        super().__init__()
        width, length = settings.width, transform.history_length
        self.item_vectors = nn.Embedding(transform.vocabularies["item"].size, width, padding_idx=PADDING_IDX)
        nn.init.normal_(self.item_vectors.weight, std=0.02)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.dropout = nn.Dropout(settings.dropout)
        block = nn.TransformerEncoderLayer(
            width, settings.heads, 4 * width, settings.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, settings.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        future = torch.ones(length + 1, length + 1, dtype=torch.bool).triu(1)
        self.register_buffer("future", future, persistent=False)

    @property
    def columns(self) -> tuple[str, ...]:
        return ("history",)

    @property
    def row_features(self) -> dict[str, str]:
        return {"item_vectors.weight": "item_idx"}

    def users(self, batch: Batch) -> Tensor:
        return self.states(batch)[:, -1]

    def states(self, batch: Batch) -> Tensor:
        """Shape (B, L, D): what is known at each place of the history, of its items up to there and no later ones.

        The padding in front of the first item knows of none: it is the user that an empty history gives, but for the
        place where it stands.
        """
        history_BL = batch["history"].long()
        items_BLD = self.item_vectors(history_BL) * self.item_vectors.embedding_dim**0.5
        # A learned start in front of every history: an empty one still has something to attend to.
        start_B1D = self.start.expand(history_BL.shape[0], 1, -1)
        sequence = torch.cat([start_B1D, self.dropout(items_BLD + self.positions)], dim=1)
        padded = torch.cat([history_BL.new_zeros(history_BL.shape[0], 1).bool(), history_BL == PADDING_IDX], dim=1)
        states: Tensor = self.blocks(sequence, mask=self.future, src_key_padding_mask=padded, is_causal=True)
        return states[:, 1:]

    def items(self, item_idx_M: Tensor) -> Tensor:
        vectors: Tensor = self.item_vectors(item_idx_M)
        return vectors
