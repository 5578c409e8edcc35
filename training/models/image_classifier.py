"""An image classifier: EfficientNet-Lite0 with a linear layer for the snapshot's classes, fine-tuned stage by stage."""

from __future__ import annotations

from torch import Tensor, nn

from training.learning_groups import LearningGroup
from training.models.efficientnet_lite import EfficientNetLite0
from training.recipe import ClassifierSettings


class ImageClassifier(nn.Module):
    def __init__(self, settings: ClassifierSettings, num_classes: int) -> None:
        super().__init__()
        self.settings, self.num_classes = settings, num_classes
        self.network = EfficientNetLite0(
            num_classes, dropout=settings.dropout, learns_statistics=settings.batch_norm == "learned"
        )

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Images of bytes, red first, to a logit a class, shape (B, K)."""
        return self.network(images_BHWC)

    def learning_groups(self) -> list[LearningGroup]:
        """The stages from the classifier down to the stem.

        Each learns `rate_decay` times as fast as the one above it (discriminative fine-tuning) and begins
        `unfreeze_every` epochs after it (gradual unfreezing): Howard and Ruder 2018, sections 3.2 and 3.3.
        """
        return [
            LearningGroup(
                name=name,
                parameters=tuple(stage.parameters()),
                rate=self.settings.rate_decay**depth,
                from_epoch=self.settings.unfreeze_every * depth,
            )
            for depth, (name, stage) in enumerate(self._from_the_top())
        ]

    def _from_the_top(self) -> list[tuple[str, nn.Module]]:
        network, last = self.network, len(self.network.stages)
        stages = [(f"stage {number}", network.stages[number - 1]) for number in range(last, 0, -1)]
        return [("classifier", network.classifier), ("top", network.top), *stages, ("stem", network.stem)]
