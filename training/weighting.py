"""What a row counts in the loss: by the probability with which its item was shown, and by what came of it.

Legend: B rows of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.batch import Batch
from training.ranks import Ranks
from training.recipe import NegativeRowsSettings, PropensitySettings

PROPENSITY, LABEL = "propensity", "label"


def by_propensity(batch: Batch, settings: PropensitySettings, ranks: Ranks) -> Tensor:
    """1 / max(propensity, floor) of each row, divided by the global batch's mean; shape (B,). Collective.

    Rows that were shown seldom stand for the many that were not: with these weights the loss is in expectation that of
    rows shown at random (Schnabel et al. 2016, sections 3 and 4; Joachims et al. 2017, of ranked lists). The floor
    bounds the variance and costs a bias; dividing by the mean, the self-normalised estimator of the former, keeps the
    size of a step. A propensity that is not known (NaN) counts 1, as an item that was sure to be shown.
    """
    propensity_B = batch[PROPENSITY].double()
    weight_B = propensity_B.clamp(min=settings.floor).reciprocal().nan_to_num(nan=1.0)
    total = float(ranks.sum(weight_B.sum().cpu().reshape(1), "propensity_weights"))  # also of a rank without rows
    return (weight_B * (batch.global_rows / total)).float()


def not_to_recommend(loss_B: Tensor, batch: Batch, settings: NegativeRowsSettings) -> Tensor:
    """Softmax losses, -log p of a row's item, turned into -weight x log(1 - p) where the item was not acted on.

    The loss of not recommending an item that the user was shown and did not want (Wang et al. 2023, "Learning from
    negative user feedback", section 3). A row whose label is not known (NaN) counts for nothing.
    """
    label_B = batch[LABEL]
    # -log(1 - p) without a bound would let one item that the model is sure of outweigh the batch.
    unwanted_B = -torch.log(-torch.expm1(-loss_B.clamp(min=SUREST)))
    turned_B = torch.where(label_B < settings.below, settings.weight * unwanted_B, loss_B)
    return torch.where(label_B.isnan(), 0.0, turned_B)


SUREST = 1e-3
"""The smallest -log p that still counts: p = 0.999."""
