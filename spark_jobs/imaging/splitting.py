"""Which images go into which split: the same image never into two, the shares held within every class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from schemas.errors import UserError

SplitBy = Literal["class", "file"]
_SPLIT_SALT = 7_301_207_345_813  # so that the order within a split's files is another than the one it was drawn by


@dataclass(frozen=True)
class Shares:
    train: float
    valid: float
    test: float


def parse_shares(text: str) -> Shares:
    """`0.8,0.1,0.1`: train above 0, valid and test 0 or more, together 1."""
    try:
        train, valid, test = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--split {text!r} is not three shares such as 0.8,0.1,0.1.") from None
    if train <= 0 or min(valid, test) < 0 or abs(train + valid + test - 1) > 1e-9:
        raise UserError(f"--split {text!r}: train must be above 0, no share below 0, and all three together 1.")
    return Shares(train, valid, test)


def with_fate(images: DataFrame) -> DataFrame:
    """Add `fate`: accepted, duplicate, or conflict. In and out: one row per decoded image, with path, class, digest.

    Of equal images the one with the first path is accepted, unless their classes differ: then nobody knows which is
    right, and none is.
    """
    equal = Window.partitionBy("digest")
    in_conflict = F.min("class").over(equal) != F.max("class").over(equal)
    is_first = F.row_number().over(equal.orderBy("path")) == 1
    fate = F.when(in_conflict, "conflict").when(is_first, "accepted").otherwise("duplicate")
    return images.withColumn("fate", fate)


def class_cuts(accepted: DataFrame, shares: Shares, *, by: SplitBy, seed: int) -> DataFrame:
    """One row per class: class, its accepted `images`, and up to which draw an image is in train and in valid.

    In: one row per accepted image, with row_id and class. By class, the images with the smallest draws are train's;
    shares times images is rounded by a draw of the class, so that they hold within one image in every class and on
    the whole over many; train has one at least. By file, an image's own draw decides, so that it stays in its split
    when others come.
    """
    drawn = with_draw(accepted, seed=seed)
    if by == "file":
        train, valid = (F.lit(_draw_at(share)) for share in (shares.train, shares.train + shares.valid))
        return drawn.groupBy("class").agg(F.count("*").alias("images")).select("*", *_cuts(train, valid))
    count = F.count("*").over(Window.partitionBy("class"))
    place = F.row_number().over(Window.partitionBy("class").orderBy("draw", "row_id"))
    dither = F.pmod(F.xxhash64("class", F.lit(seed)), F.lit(1 << 20)) / F.lit(float(1 << 20))
    in_train = F.greatest(F.lit(1), F.floor(F.lit(shares.train) * count + dither))
    in_valid = F.greatest(in_train, F.floor(F.lit(min(1.0, shares.train + shares.valid)) * count + dither))
    ranked = drawn.select("class", "draw", place.alias("place"), in_train.alias("t"), in_valid.alias("v"))
    train = F.max(F.when(F.col("place") <= F.col("t"), F.col("draw")))
    valid = F.max(F.when(F.col("place") <= F.col("v"), F.col("draw")))
    return ranked.groupBy("class").agg(F.count("*").alias("images"), *_cuts(train, valid))


def with_draw(images: DataFrame, *, seed: int) -> DataFrame:
    return images.withColumn("draw", F.xxhash64("row_id", F.lit(seed), F.lit(_SPLIT_SALT)))


def with_split(images: DataFrame, cuts: DataFrame, *, seed: int) -> DataFrame:
    """Add `split` and `label` by the class's cuts. In and out: one row per accepted image."""
    split = (
        F.when(F.col("draw") <= F.col("train_to"), "train").when(F.col("draw") <= F.col("valid_to"), "valid")
    ).otherwise("test")
    known = F.broadcast(cuts.select("class", "label", "train_to", "valid_to"))
    return with_draw(images, seed=seed).join(known, on="class", how="inner").withColumn("split", split)


def _cuts(train: Column, valid: Column) -> tuple[Column, Column]:
    return train.alias("train_to"), valid.alias("valid_to")


def _draw_at(share: float) -> int:
    """The draw below which this share of all draws lies."""
    return min((1 << 63) - 1, int(share * (1 << 64)) - (1 << 63))
