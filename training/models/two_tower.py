"""Two-tower retrieval: what is known of a user against what is known of an item.

A bag of the user's past items beside features, as in Covington, Adams and Sargin 2016 (section 3.2); towers that meet
in a dot product, as in Yi et al. 2019.

Legend: B rows of a batch, L history length, K recent items, D width, M items asked for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.features import NUM_RESERVED, PADDING_IDX, Feature, FeatureTransform
from training.batch import Batch
from training.models.item_vectors import ItemVectors
from training.models.retriever import FeatureEmbedding, mean_over_list
from training.recipe import ModelSettings

_SCALE = 0.05  # of the initial vectors: sums of several of them start well below one
_UNSEEN_COUNT = 0.5  # added to every count: half of what an item seen once has


class TwoTower(nn.Module):
    """User: mean of the history, weighted mean of its newest items, features, id. Item: id, features, its given
    vector, a bias.

    While it trains, history items are left out at random (`history_dropout`), so that no single one decides; this is
    what the denoising of Mult-DAE does (Liang et al. 2018, section 2.3). With a popularity prior an item's score begins
    at the logarithm of its count in train: what is learned is by how much a user differs from that, a user of whom
    nothing is known is shown what is popular, and weight decay draws towards it.
    """

    def __init__(
        self, settings: ModelSettings, transform: FeatureTransform, item_features: dict[str, Tensor], *,
        vector_width: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.item_prior: Tensor | None
        width, num_items = settings.width, transform.vocabularies["item"].size
        self.settings = settings
        self.about_item = FeatureEmbedding(transform.of("items"), transform, width)
        self.item_bias = nn.Parameter(torch.zeros(num_items))
        self.register_buffer("item_prior", torch.zeros(num_items) if settings.popularity_prior else None)
        self.item_feature_names = list(item_features)
        for name, values in item_features.items():
            self.register_buffer(f"item_feature_{name}", values)
        self.past_items = nn.Embedding(num_items, width, padding_idx=PADDING_IDX)
        self.recent_items = nn.Embedding(num_items, width, padding_idx=PADDING_IDX) if settings.recent else None
        # Newest last, as in the history; each older item begins with a quarter less weight.
        self.recency = nn.Parameter(0.3 * torch.arange(-settings.recent + 1.0, 1.0)) if settings.recent else None
        known = transform.of("users", "events") if settings.user_features else ()
        features: list[Feature] = [f for f in known if f.kind not in ("history", "gaps") and f.name != "user_idx"]
        features += [f for f in transform.features if f.name == "user_idx" and settings.user_id]
        self.about_user = FeatureEmbedding(features, transform, width) if features else None
        self.dropout = nn.Dropout(settings.dropout)
        for table in self.modules():
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=_SCALE)
                table.weight.data[PADDING_IDX] = 0
        self.item_vectors = ItemVectors(num_items, vector_width, width) if vector_width else None

    def fill_prior(self, counts_N: Tensor) -> None:
        """From how often each item stands in train, item_idx NUM_RESERVED first; of a mean of zero, as the biases."""
        assert self.item_prior is not None
        log_N = (counts_N.to(self.item_prior) + _UNSEEN_COUNT).log()
        self.item_prior[NUM_RESERVED:] = log_N - log_N.mean()

    @property
    def columns(self) -> tuple[str, ...]:
        return ("history", *(self.about_user.columns if self.about_user is not None else ()))

    @property
    def row_features(self) -> dict[str, str]:
        of_items = dict.fromkeys(("item_bias", "past_items.weight", "recent_items.weight"), "item_idx")
        about = {"about_item": self.about_item, "about_user": self.about_user}
        bags = {bag: part.categorical for bag, part in about.items() if part is not None}
        return of_items | {f"{bag}.tables.{f.name}.weight": f.name for bag, features in bags.items() for f in features}

    def users(self, batch: Batch) -> Tensor:
        history_BL = batch["history"].long()
        held_BL = history_BL != PADDING_IDX
        if self.training:
            held_BL = held_BL & (torch.rand(history_BL.shape, device=history_BL.device) >= self._left_out(history_BL))
        user_BD = self._mean_of_past(history_BL, held_BL)
        if self.recent_items is not None and self.recency is not None:
            user_BD = user_BD + self._mean_of_recent(history_BL, held_BL, self.recent_items, self.recency)
        if self.about_user is not None:
            user_BD = user_BD + self.about_user({name: batch[name] for name in self.about_user.columns})
        user_BD = self.dropout(user_BD)
        return torch.cat([user_BD, user_BD.new_ones(user_BD.shape[0], 1)], dim=1)  # 1: the place of the item's bias

    def items(self, item_idx_M: Tensor) -> Tensor:
        columns = {name: self.get_buffer(f"item_feature_{name}")[item_idx_M] for name in self.item_feature_names}
        item_MD = self.about_item({"item_idx": item_idx_M, **columns})
        if self.item_vectors is not None:
            item_MD = item_MD + self.item_vectors(item_idx_M)
        bias_M = self.item_bias[item_idx_M]
        if self.item_prior is not None:
            bias_M = bias_M + self.item_prior[item_idx_M]
        return torch.cat([item_MD, bias_M.unsqueeze(1)], dim=1)

    def _left_out(self, history_BL: Tensor) -> Tensor | float:
        """Share of the history: of each row, shape (B, 1), or one for all."""
        if self.settings.history_dropout == "uniform":
            return torch.rand(len(history_BL), 1, device=history_BL.device)
        return self.settings.history_dropout

    def _mean_of_past(self, history_BL: Tensor, held_BL: Tensor) -> Tensor:
        """Mean over the items held, without a look-up for padding: most histories are short."""
        if torch.compiler.is_exporting():  # a graph of fixed shapes, in which padding is looked up too
            return mean_over_list(self.past_items(history_BL), history_BL)
        count_B = held_BL.sum(1)
        return F.embedding_bag(
            history_BL[held_BL], self.past_items.weight, count_B.cumsum(0) - count_B, mode="sum"
        ) / count_B.clamp(min=1).unsqueeze(1)

    def _mean_of_recent(self, history_BL: Tensor, held_BL: Tensor, table: nn.Embedding, recency_K: Tensor) -> Tensor:
        newest = slice(-len(recency_K), None)
        weight_BK = recency_K.exp() * held_BL[:, newest]
        weight_BK = weight_BK / (weight_BK.sum(1, keepdim=True) + 1e-6)
        mean_B1D = weight_BK.unsqueeze(1) @ table(history_BL[:, newest])
        return mean_B1D.squeeze(1)
