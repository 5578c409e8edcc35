"""Losses over sampled items. Each gives one value a row; what is drawn at random depends on seed, epoch and step only.

Legend: B rows of a batch, D embedding width, L history length, N items, S sampled items shared by the whole global
batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from schemas.features import NUM_RESERVED
from training.batch import Batch
from training.models.retriever import Retriever


class ItemSampler:
    """Draws items with probability proportional to count ** exponent: 0 is uniform, 1 as often as in train."""

    def __init__(self, counts: Tensor, exponent: float, *, seed: int) -> None:
        """`counts` of items NUM_RESERVED and on, shape (number of items,)."""
        weights = counts.to(torch.float64).clamp(min=1) ** exponent
        self.log_probability = (weights / weights.sum()).log().to(torch.float32)
        self._cumulative = (weights / weights.sum()).cumsum(0)
        self._seed = seed

    def draw(self, count: int, *, epoch: int, step: int) -> Tensor:
        """`count` rows of the item vocabulary, with replacement; the same on every rank."""
        uniform = torch.from_numpy(np.random.default_rng([self._seed, epoch, step]).random(count))
        uniform = uniform.to(self._cumulative.device)
        place = torch.searchsorted(self._cumulative, uniform).clamp(max=len(self._cumulative) - 1)
        return place + NUM_RESERVED


def sampled_softmax(
    model: Retriever, batch: Batch, sampler: ItemSampler, *, num_sampled: int, epoch: int, temperature: float,
    excluded_BL: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Cross-entropy of the row's item against sampled ones, corrected for how often each is drawn; shape (B,).

    The sum over all items is estimated by importance sampling: each sampled item stands for 1 / (expected number of
    its draws) (Bengio and Senecal 2008, section 3); in logits, the log-q correction of Yi et al. 2019 (section 3.2).
    A sampled item that is the row's own is left out of its row, and so are those that `excluded_BL` names by their
    rows of the vocabulary, but for the row's own. With `num_sampled` of 0 or at least the number of items, all items
    take part and there is nothing to correct.
    """
    return softmax(
        model,
        model.users(batch) / temperature,
        known_targets(batch),
        sampler,
        num_sampled=num_sampled,
        epoch=epoch,
        step=batch.step,
        excluded_BL=excluded_BL,
    )


def softmax(
    model: Retriever, users_BD: Tensor, target_B: Tensor, sampler: ItemSampler, *, num_sampled: int, epoch: int,
    step: int, excluded_BL: Tensor | None = None, most_scores: int | None = None,
) -> Tensor:  # fmt: skip
    """`sampled_softmax` of given users and items. With `most_scores` no more are held at once: those of some rows at
    a time, computed again in the backward pass."""
    num_items = len(sampler.log_probability)
    excluded_BL = target_B.new_empty((len(target_B), 0)) if excluded_BL is None else excluded_BL.long()
    if num_sampled == 0 or num_sampled >= num_items:
        everything = torch.arange(NUM_RESERVED, NUM_RESERVED + num_items, device=target_B.device)
        return _by_parts(_softmax_of_all, (users_BD, target_B, excluded_BL), (model.items(everything),), most_scores)
    sampled_S = sampler.draw(num_sampled, epoch=epoch, step=step)
    log_expected_S = sampler.log_probability[sampled_S - NUM_RESERVED] + math.log(num_sampled)
    of_rows = (users_BD, target_B, excluded_BL, model.items(target_B))
    of_all = (model.items(sampled_S), sampled_S, log_expected_S)
    return _by_parts(_softmax_of_some, of_rows, of_all, most_scores)


def _softmax_of_all(users_BD: Tensor, target_B: Tensor, excluded_BL: Tensor, items_ND: Tensor) -> Tensor:
    scores_BN = users_BD @ items_ND.T
    if excluded_BL.shape[1]:
        excluded_BN = scores_BN.new_zeros((len(scores_BN), NUM_RESERVED + len(items_ND)), dtype=torch.bool)
        excluded_BN.scatter_(1, excluded_BL, True).scatter_(1, target_B.unsqueeze(1), False)
        scores_BN = scores_BN.masked_fill(excluded_BN[:, NUM_RESERVED:], float("-inf"))
    return F.cross_entropy(scores_BN, target_B - NUM_RESERVED, reduction="none")


def _softmax_of_some(
    users_BD: Tensor, target_B: Tensor, excluded_BL: Tensor, own_BD: Tensor, items_SD: Tensor, sampled_S: Tensor,
    log_expected_S: Tensor,
) -> Tensor:  # fmt: skip
    own_B1 = (users_BD * own_BD).sum(1, keepdim=True)
    others_BS = users_BD @ items_SD.T - log_expected_S
    left_out_BS = sampled_S == target_B.unsqueeze(1)
    if excluded_BL.shape[1]:
        left_out_BS = left_out_BS | _holds(excluded_BL, sampled_S)
    others_BS = others_BS.masked_fill(left_out_BS, float("-inf"))
    return torch.logsumexp(torch.cat([own_B1, others_BS], dim=1), dim=1) - own_B1.squeeze(1)


def _holds(values_BL: Tensor, wanted_S: Tensor) -> Tensor:
    """Whether each row has each value, by bisection: neither B x L x S nor B x N values at once; shape (B, S)."""
    sorted_BL = values_BL.sort(dim=1).values
    wanted_BS = wanted_S.expand(len(values_BL), -1).contiguous()
    place_BS = torch.searchsorted(sorted_BL, wanted_BS).clamp(max=sorted_BL.shape[1] - 1)
    return sorted_BL.gather(1, place_BS) == wanted_BS


def _by_parts(
    loss: Callable[..., Tensor], of_rows: Sequence[Tensor], of_all: Sequence[Tensor], most_scores: int | None
) -> Tensor:
    """The loss of all rows; with `most_scores` of so many rows at a time that their scores are no more."""
    at_once = max(1, most_scores // len(of_all[0])) if most_scores else len(of_rows[0])
    if len(of_rows[0]) <= at_once:
        return loss(*of_rows, *of_all)
    parts = zip(*(rows.split(at_once) for rows in of_rows), strict=True)
    # Nothing is drawn at random here, so nothing of the generator must be kept.
    return torch.cat(
        [checkpoint(loss, *part, *of_all, use_reentrant=False, preserve_rng_state=False) for part in parts]
    )


def bpr(model: Retriever, batch: Batch, sampler: ItemSampler, *, l2: float, epoch: int) -> Tensor:
    """-log sigmoid(score of the row's item - score of a sampled one) + l2 * squared vectors of the three, shape (B,).

    Rendle et al. 2009 (section 4); the regularisation is that of its LearnBPR, on the vectors that the row touches.
    """
    users_BD, target_B = model.users(batch), known_targets(batch)
    sampled_B = sampler.draw(batch.global_rows, epoch=epoch, step=batch.step)[batch.positions]
    own_BD, other_BD = model.items(target_B), model.items(sampled_B)
    difference_B = (users_BD * (own_BD - other_BD)).sum(1)
    size_B = (users_BD**2 + own_BD**2 + other_BD**2).sum(1)
    return F.softplus(-difference_B) + l2 * size_B


def known_targets(batch: Batch) -> Tensor:
    """The row's item, shape (B,); for one that the vocabulary left out, any other, whose loss is not counted."""
    return batch["item_idx"].long().clamp(min=NUM_RESERVED)


def counted(loss_B: Tensor, batch: Batch) -> Tensor:
    """The loss, and 0 for rows whose item the vocabulary left out: there is nothing to learn from them."""
    return loss_B * (batch["item_idx"] >= NUM_RESERVED)
