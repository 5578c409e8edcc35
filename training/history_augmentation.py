"""Histories varied while training: a part of one cut out, masked, or put in another order.

The operators of CL4SRec (Xie et al. 2022, section 3.2), used to vary what a model learns its next item from; the
contrastive loss that they serve there is not part of this.

Legend: B rows of a batch, L history length; a history is left-padded, its newest item last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from schemas.features import PADDING_IDX
from training.batch import Batch
from training.recipe import AugmentSettings
from training.row_random import uniform

_SALT = 1
_OF_ROW = 3  # numbers: whether it is varied, by which operator, from where on


def augmented(batch: Batch, settings: AugmentSettings, *, mask: int, seed: int, epoch: int) -> Batch:
    """The batch with some of its histories varied, each by one operator; `mask` is the index of a masked item.

    What is drawn for a row depends on seed, epoch and row_id alone.
    """
    history_BL = batch["history"]
    random_BC = uniform(batch["row_id"], _OF_ROW + history_BL.shape[1], seed=seed, epoch=epoch, salt=_SALT)
    whether_B, which_B, where_B, of_place_BL = *random_BC[:, :_OF_ROW].unbind(1), random_BC[:, _OF_ROW:]
    operators = _operators(settings, mask)
    place_B = (which_B * len(operators)).long()
    for place, operator in enumerate(operators):
        is_varied_B = (whether_B < settings.share) & (place_B == place)
        history_BL = torch.where(is_varied_B.unsqueeze(1), operator(history_BL, where_B, of_place_BL), history_BL)
    return replace(batch, columns={**batch.columns, "history": history_BL})


Operator = Callable[[Tensor, Tensor, Tensor], Tensor]


def _operators(settings: AugmentSettings, mask: int) -> list[Operator]:
    found: list[Operator] = []
    if (crop := settings.crop) is not None:
        found.append(lambda history_BL, where_B, _: cropped(history_BL, crop, where_B))
    if (masking := settings.mask) is not None:
        found.append(lambda history_BL, _, of_place_BL: masked(history_BL, masking, of_place_BL, mask))
    if (reorder := settings.reorder) is not None:
        found.append(lambda history_BL, where_B, of_place_BL: reordered(history_BL, reorder, where_B, of_place_BL))
    return found


def cropped(history_BL: Tensor, share: float, where_B: Tensor) -> Tensor:
    """`share` of the items, at least one, from a place drawn evenly on; `where_B` in [0, 1) says which."""
    start_B1, count_B1 = _part(history_BL, share, where_B, least=1)
    length = history_BL.shape[1]
    place_L = torch.arange(length, device=history_BL.device)
    source_BL = (place_L - (length - count_B1) + start_B1).clamp(0, length - 1)
    return torch.where(place_L >= length - count_B1, history_BL.gather(1, source_BL), PADDING_IDX)


def masked(history_BL: Tensor, share: float, of_place_BL: Tensor, mask: int) -> Tensor:
    """`share` of the items, rounded down, stand for what is not known: those with the smallest numbers."""
    held_BL = history_BL != PADDING_IDX
    order_BL = of_place_BL.masked_fill(~held_BL, 2.0).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return torch.where(held_BL & (order_BL < _count(held_BL, share)), mask, history_BL)


def reordered(history_BL: Tensor, share: float, where_B: Tensor, of_place_BL: Tensor) -> Tensor:
    """A run of `share` of the items, rounded down, in the order of its places' numbers; the others stay."""
    start_B1, count_B1 = _part(history_BL, share, where_B)
    place_L = torch.arange(history_BL.shape[1], device=history_BL.device)
    inside_BL = (place_L >= start_B1) & (place_L < start_B1 + count_B1)
    key_BL = torch.where(inside_BL, start_B1 + of_place_BL * count_B1, place_L.double())
    return history_BL.gather(1, key_BL.argsort(dim=1, stable=True))


def _part(history_BL: Tensor, share: float, where_B: Tensor, *, least: int = 0) -> tuple[Tensor, Tensor]:
    """First place and length of a run of items, both of shape (B, 1)."""
    held_BL = history_BL != PADDING_IDX
    num_items_B1 = held_BL.sum(1, keepdim=True)
    count_B1 = torch.minimum(_count(held_BL, share).clamp(min=least), num_items_B1)
    start_B1 = (where_B.unsqueeze(1) * (num_items_B1 - count_B1 + 1)).long()
    return history_BL.shape[1] - num_items_B1 + start_B1, count_B1


def _count(held_BL: Tensor, share: float) -> Tensor:
    # 0.3 of 10 items are 3, which 0.3 x 10 in binary just misses.
    return (held_BL.sum(1, keepdim=True).double() * share + 1e-9).long()
