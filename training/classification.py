"""Classification of images as a task: one class of the snapshot's for each image.

Legend: B images of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.bundle import SplitMetrics
from schemas.images import ImageColumn
from schemas.ledger import ROW_ID_MODULUS
from training.augmentation import augmented
from training.batch import Batch
from training.confusion import confusions
from training.models.image_classifier import ImageClassifier
from training.ranks import Ranks
from training.recipe import CHOOSING_CLASSIFIER, CrossEntropySettings, Recipe

LABEL = "label"
_TOP = 5


@dataclass(frozen=True, kw_only=True)
class Classification:
    model: ImageClassifier
    recipe: Recipe
    ranks: Ranks
    images: ImageColumn

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.images.column, LABEL, "row_id")

    @property
    def held_out_columns(self) -> tuple[str, ...]:
        return self.columns

    def loss_sum(self, batch: Batch, epoch: int) -> Tensor:
        """Cross-entropy summed over the rows, of images varied as the snapshot's policy says."""
        if batch.num_rows == 0:
            return torch.stack([(p * 0).sum() for p in self.model.parameters() if p.requires_grad]).sum()
        assert isinstance(self.recipe.loss, CrossEntropySettings)
        images_BHWC = augmented(
            batch[self.images.column],
            batch["row_id"],
            self.images.augmentation,
            seed=self.recipe.seed,
            epoch=epoch,
        )
        logits_BK = self.model(images_BHWC).float()
        smoothing = self.recipe.loss.label_smoothing
        return F.cross_entropy(logits_BK, batch[LABEL].long(), label_smoothing=smoothing, reduction="sum")

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> SplitMetrics:
        """Of images as they are stored; counts are exact whatever the ranks. 16 bytes a row are held."""
        log_loss, within_top, id_sum = 0.0, 0, 0
        labels, predicted = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for batch in batches:
            if batch.num_rows == 0:
                continue
            logits_BK, label_B = self.model(batch[self.images.column]).double(), batch[LABEL].long()
            best = logits_BK.topk(min(_TOP, self.model.num_classes)).indices
            within_top += int((best == label_B.unsqueeze(1)).sum())
            log_loss += float(F.cross_entropy(logits_BK, label_B, reduction="sum"))
            id_sum += int((batch["row_id"] % ROW_ID_MODULUS).sum())
            labels.append(label_B.cpu().numpy())
            predicted.append(best[:, 0].cpu().numpy())
        label, taken_for = np.concatenate(labels), np.concatenate(predicted)
        counts = self.ranks.sum(torch.tensor([len(label), within_top, id_sum % ROW_ID_MODULUS]), "held_out_rows")
        num_rows, within_top, id_sum = counts.tolist()
        total_loss = float(self.ranks.sum(torch.tensor([log_loss], dtype=torch.float64), "held_out_loss"))
        found = confusions(label, taken_for, self.model.num_classes, self.ranks)
        metrics = {
            "rows": float(num_rows),
            "accuracy": found.accuracy,
            "balanced_accuracy": found.balanced_accuracy,
            "top5_accuracy": within_top / num_rows if num_rows else float("nan"),
            "log_loss": total_loss / num_rows if num_rows else float("nan"),
        }
        return SplitMetrics(
            num_rows=num_rows,
            row_id_sum=id_sum % ROW_ID_MODULUS,
            heads={LABEL: metrics},
            confusions=found.most_frequent(self.images.classes),
        )

    def chosen(self, metrics: SplitMetrics) -> float:
        return metrics.heads[LABEL][self.recipe.chosen_by]

    @property
    def more_is_better(self) -> bool:
        return CHOOSING_CLASSIFIER[self.recipe.chosen_by]

    def scalars(self, metrics: SplitMetrics) -> dict[str, float]:
        return {f"{head}/{name}": value for head, found in metrics.heads.items() for name, value in found.items()}
