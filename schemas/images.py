"""Images of a snapshot: how they were made to one size and stored, and the policy by which training varies them."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.settings import Strict, parse_model, read_yaml

AUGMENTATIONS = files("schemas") / "augmentations"  # no Path: on a Spark cluster this code is read from a zip

Mode = Literal["crop", "pad", "stretch"]
Format = Literal["jpeg", "png"]
Probability = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=1)]
Bounds = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class RandomResizedCrop(Strict):
    """A part of the image, enlarged to the whole: `area` of the image, `ratio` of width to height."""

    probability: Probability = 1.0
    area: Bounds = (0.08, 1.0)
    ratio: Bounds = (3 / 4, 4 / 3)

    @model_validator(mode="after")
    def _bounds_hold(self) -> RandomResizedCrop:
        if not self.area[0] <= self.area[1] <= 1 or self.ratio[0] > self.ratio[1]:
            raise ValueError("area and ratio are two bounds, the lower one first, and no area is larger than 1")
        return self


class Rotation(Strict):
    """A turn by up to `degrees` either way; what comes into view is grey."""

    probability: Probability = 1.0
    degrees: Annotated[float, Field(ge=0, le=180)]


class ColourJitter(Strict):
    """Brightness, contrast and saturation times 1 - amount to 1 + amount, each drawn by itself."""

    probability: Probability = 1.0
    brightness: Amount = 0.0
    contrast: Amount = 0.0
    saturation: Amount = 0.0


class Erasing(Strict):
    """A rectangle made grey: `area` of the image, `ratio` of width to height."""

    probability: Probability = 0.25
    area: Bounds = (0.02, 0.33)
    ratio: Bounds = (0.3, 3.3)

    @model_validator(mode="after")
    def _bounds_hold(self) -> Erasing:
        if not self.area[0] <= self.area[1] <= 1 or self.ratio[0] > self.ratio[1]:
            raise ValueError("area and ratio are two bounds, the lower one first, and no area is larger than 1")
        return self


class Augmentation(Strict):
    """What is done to an image of train, in this order; what is left out is not done."""

    horizontal_flip: Probability = 0.0
    rotation: Rotation | None = None
    random_resized_crop: RandomResizedCrop | None = None
    colour_jitter: ColourJitter | None = None
    erasing: Erasing | None = None

    @property
    def does_nothing(self) -> bool:
        return self == Augmentation()


class ImageColumn(Strict):
    """The column `image`: encoded, `size` x `size` pixels in three colours; `label` counts through `classes`."""

    column: str = "image"
    size: int
    mode: Mode
    format: Format
    quality: int
    classes: tuple[str, ...]
    """In the order of their labels, which is that of their names, as in torchvision's ImageFolder."""
    augmentation: Augmentation = Augmentation()
    """For train, applied to decoded batches."""


def read_augmentation(name_or_path: str) -> Augmentation:
    """A built-in policy by name (none, light, strong), or a YAML file by path; UserError for what is wrong in it."""
    raw, where = read_yaml(name_or_path, catalogue=AUGMENTATIONS, what="augmentation")
    return parse_model(Augmentation, raw or {}, where=where)
