"""Images: a folder or tars of images, a sub-folder a class -> a snapshot to train on, every image of one size."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.errors import UserError
from schemas.features import NUM_RESERVED, FeatureTransform, Vocabulary
from schemas.images import Augmentation, Format, ImageColumn, Mode, read_augmentation
from schemas.ledger import Ledger, SplitLedger, TableLedger
from schemas.manifest import SPLITS, DataFile, Manifest
from schemas.storage import absolute, join
from schemas.version import VERSION
from spark_jobs.command_line import parser, run, share, whole
from spark_jobs.datasets import STAGING, write_table
from spark_jobs.imaging.fitting import Fit
from spark_jobs.imaging.input import CONTRACT, Input, find_input
from spark_jobs.imaging.petastorm_metadata import FILE as COMMON_METADATA
from spark_jobs.imaging.petastorm_metadata import Field, common_metadata
from spark_jobs.imaging.reading import ARROW_SETTINGS, SCHEMA, fitted_folder, fitted_tars
from spark_jobs.imaging.splitting import Shares, SplitBy, class_cuts, parse_shares, with_fate, with_split
from spark_jobs.publication import Publication, begin, identity
from spark_jobs.session import settings_of, size_shuffles, step
from spark_jobs.stock import take_stock
from spark_jobs.training_layout import training_layout, write_training_layout

STAGED = "_staging/images"
COLUMNS = ("row_id", "image", "label", "event_time_ms", "path", "width", "height")
_ROW_GROUP_BYTES, _DECODED_BYTES = 16 << 20, 128 << 20
_MIN_ROW_GROUP_ROWS, _ROW_GROUPS_WANTED = 64, 16


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    images: tuple[str, ...]
    out: str
    size: int = 224
    mode: Mode = "crop"
    format: Format = "jpeg"
    quality: int = 90
    split: str = "0.8,0.1,0.1"
    split_by: SplitBy = "class"
    seed: int = 0
    max_quarantined: float = 0.1
    augment: str = "none"
    strip_components: int = 0
    min_side: int = 16
    max_pixels: int = 100_000_000


@dataclass(frozen=True)
class Classes:
    """One row per class: class, label, and its splits' cuts; and how many images each split has of each class."""

    cuts: DataFrame
    names: tuple[str, ...]
    """In the order of their labels."""
    images: Mapping[tuple[str, str], int]
    """By split and class."""

    def of_split(self, split: str) -> int:
        return sum(self.images.get((split, name), 0) for name in self.names)


@dataclass(frozen=True)
class Judged:
    """What became of the files: `rows` has one row per file without its image, with fate and rule."""

    rows: DataFrame
    ledger: TableLedger
    image_bytes: int


def images(spark: SparkSession, config: ImagesConfig) -> None:
    """Decode, judge, split and write; publish the snapshot `config.out`."""
    shares, augmentation = parse_shares(config.split), read_augmentation(config.augment)
    with settings_of(spark, ARROW_SETTINGS):
        found = find_input(spark, config.images)
        settings = asdict(config) | {"job": "images", "release": VERSION, "input": found.digest}
        settings |= {"augment": augmentation.model_dump(mode="json", exclude_none=True)}
        publication = begin(spark, config.out, {k: v for k, v in settings.items() if k not in ("images", "out")})
        if publication is None:
            print(f"images: {config.out} stands already, made with these settings from these images.")
            return
        with step(spark, "images decoded and fitted"):
            staged = stage(publication, found, config)
    size_shuffles(spark, found.bytes // 64)
    with step(spark, "duplicates, classes and splits"):
        judged = judge(staged)
        refuse(judged, config, found)
        classes = cuts_and_labels(judged, shares, config)
        write_quarantine(publication, judged)
        vocabulary = write_classes(publication, classes)
    with step(spark, "train, valid and test"):
        write_splits(publication, staged, judged, classes, config)
    with step(spark, "check of what was written"):
        publish(publication, judged, classes, vocabulary, augmentation, config)


def stage(publication: Publication, found: Input, config: ImagesConfig) -> DataFrame:
    """Decode every file once and keep what it became: one row per file, with `row_id`."""
    spark, strip = publication.spark, config.strip_components
    fit = Fit(
        size=config.size, mode=config.mode, format=config.format, quality=config.quality,
        min_side=config.min_side, max_pixels=config.max_pixels,
    )  # fmt: skip
    if found.folder is not None:
        rows = fitted_folder(spark, found.folder, strip=strip, fit=fit)
    else:
        rows = fitted_tars(spark, found.tars, strip=strip, fit=fit)
    url = publication.part(STAGED)
    rows.write.mode("error").option("compression", "lz4_raw").parquet(url)
    return spark.read.schema(SCHEMA).parquet(url).withColumn("row_id", F.xxhash64("path"))


def judge(staged: DataFrame) -> Judged:
    """Find duplicates and conflicts among what could be decoded; count where every file went."""
    narrow = staged.withColumn("image_bytes", F.length("image")).drop("image")
    decoded = with_fate(narrow.where("rule is null"))
    in_conflict = F.col("fate") == "conflict"
    reason = F.lit("the same image lies in folders of several classes")
    decoded = decoded.withColumn("rule", F.when(in_conflict, "class_conflict"))
    decoded = decoded.withColumn("reason", F.when(in_conflict, reason))
    refused = narrow.where("rule is not null").withColumn("fate", F.lit("refused"))
    rows = decoded.unionByName(refused).persist(StorageLevel.MEMORY_AND_DISK)
    # Collected: one row a fate and rule.
    counted = rows.groupBy("fate", "rule").agg(F.count("*").alias("n"), F.sum("image_bytes").alias("b")).collect()
    by_fate = {fate: sum(row["n"] for row in counted if row["fate"] == fate) for fate in ("accepted", "duplicate")}
    by_rule = {row["rule"]: row["n"] for row in sorted(counted, key=lambda row: str(row["rule"])) if row["rule"]}
    ledger = TableLedger(
        lines=sum(row["n"] for row in counted),
        headers=0,
        blanks=0,
        accepted=by_fate["accepted"],
        duplicates=by_fate["duplicate"],
        quarantined=sum(by_rule.values()),
        quarantined_by_rule=by_rule,
    )
    ledger.check("images")
    return Judged(rows, ledger, sum(row["b"] for row in counted if row["fate"] == "accepted"))


def refuse(judged: Judged, config: ImagesConfig, found: Input) -> None:
    """Stop where too many images are in quarantine, or none is left."""
    ledger = judged.ledger
    if ledger.quarantined <= config.max_quarantined * ledger.rows and ledger.accepted:
        return
    worst = max(ledger.quarantined_by_rule, key=ledger.quarantined_by_rule.__getitem__, default="")
    sample = judged.rows.where(F.col("rule") == worst).orderBy("path").select("path", "reason").first()
    shown = f" Most break {worst!r}, for example {sample['path']}: {sample['reason']}." if sample is not None else ""
    raise UserError(
        f"{found}: {ledger.quarantined:,} of {ledger.rows:,} files are quarantined, "
        f"and --max-quarantined is {config.max_quarantined:g}.{shown}"
    )


def cuts_and_labels(judged: Judged, shares: Shares, config: ImagesConfig) -> Classes:
    """Where the splits of each class are cut, and its label: by the classes' names, as in ImageFolder."""
    accepted = judged.rows.where("fate = 'accepted'").select("row_id", "class")
    # Collected: one row a class, then three. Python sorts names by code point, as ImageFolder does.
    rows = sorted(
        class_cuts(accepted, shares, by=config.split_by, seed=config.seed).collect(), key=lambda row: row["class"]
    )
    labelled = [(row["class"], label, row["train_to"], row["valid_to"]) for label, row in enumerate(rows)]
    schema = "class string, label int, train_to bigint, valid_to bigint"
    cuts = judged.rows.sparkSession.createDataFrame(labelled, schema)
    counted = with_split(accepted, cuts, seed=config.seed).groupBy("split", "class").count().collect()
    images = {(row["split"], row["class"]): row["count"] for row in counted}
    return Classes(cuts, tuple(row["class"] for row in rows), images)


def write_quarantine(publication: Publication, judged: Judged) -> None:
    refused = judged.rows.where("rule is not null")
    if judged.ledger.quarantined:
        columns = ("path", "class", "bytes", "rule", "reason")
        write_table(refused.select(*columns), publication.part("quarantine/events"), num_files=1)


def write_classes(publication: Publication, classes: Classes) -> Vocabulary:
    """Write `vocab/class` (value, idx, count in train), where idx is the label behind the reserved ones."""
    entries = [
        (name, NUM_RESERVED + label, classes.images.get(("train", name), 0)) for label, name in enumerate(classes.names)
    ]
    table = publication.spark.createDataFrame(entries, "value string, idx int, count bigint")
    write_table(table, publication.part("vocab/class"), num_files=1)
    return Vocabulary(name="class", size=NUM_RESERVED + len(entries))


def write_splits(
    publication: Publication, staged: DataFrame, judged: Judged, classes: Classes, config: ImagesConfig
) -> None:
    """Write the splits in the training layout: row groups of about 16 MB, files of a few of these."""
    counts = {split: classes.of_split(split) for split in SPLITS}
    rows_per_group = row_group_rows(counts, judged, config)
    layout = training_layout(counts, rows_per_row_group=rows_per_group)
    dropped = judged.rows.where("fate in ('duplicate', 'conflict')").select("row_id")
    kept = staged.where("rule is null").join(dropped, on="row_id", how="left_anti")
    rows = with_split(kept, classes.cuts, seed=config.seed).withColumnRenamed("modified_ms", "event_time_ms")
    publication.part(STAGING)  # raises where another job took the folder over
    write_training_layout(
        rows.select("split", *COLUMNS), publication.files, publication.url, seed=config.seed, layout=layout
    )
    publication.files.delete_folder(join(publication.url, STAGED.split("/")[0]))


def row_group_rows(counts: Mapping[str, int], judged: Judged, config: ImagesConfig) -> int:
    """So many that a row group is about 16 MB, or 128 MB decoded; fewer where train would have but a few."""
    stored = judged.image_bytes / judged.ledger.accepted
    rows = min(_ROW_GROUP_BYTES / stored, _DECODED_BYTES / (3 * config.size**2))
    return max(1, int(min(rows, max(_MIN_ROW_GROUP_ROWS, counts["train"] / _ROW_GROUPS_WANTED))))


def figures(written: DataFrame) -> list[Column]:
    """What a split's statistics say of its images, beside their number."""
    stored = F.avg(F.length("image")).alias("mean_image_bytes")
    return [stored, F.avg("width").alias("mean_width"), F.avg("height").alias("mean_height")]


def publish(
    publication: Publication,
    judged: Judged,
    classes: Classes,
    vocabulary: Vocabulary,
    augmentation: Augmentation,
    config: ImagesConfig,
) -> None:
    """Take stock of what was written, let petastorm know of it, let the ledger prove it, and publish."""
    names = [*SPLITS, *(["quarantine/events"] if judged.ledger.quarantined else []), "vocab/class"]
    parts = publication.data_files(names)
    written = {split: sum(file.rows for file in parts[split]) for split in SPLITS}
    stock = take_stock(publication.spark, publication.url, {split: parts[split] for split in SPLITS}, figures)
    write_petastorm_metadata(publication, parts, config)
    accepted = judged.ledger.accepted
    publication.commit(
        Manifest(
            **identity(config.out, publication.config),
            kind="snapshot",
            contract=CONTRACT,
            ledger=Ledger(tables={"events": judged.ledger}, splits=SplitLedger(accepted=accepted, **written)),
            parts=parts,
            transform=FeatureTransform(features=(), vocabularies={"class": vocabulary}),
            row_id_sums=stock.row_ids,
            content_sums=stock.content,
            statistics={split: {"rows": written[split], **stock.figures[split]} for split in SPLITS},
            images=ImageColumn(
                size=config.size, mode=config.mode, format=config.format, quality=config.quality,
                classes=classes.names, augmentation=augmentation,
            ),
        )
    )  # fmt: skip
    ledger = judged.ledger
    shown = " + ".join(f"{count:,} {split}" for split, count in written.items())
    print(
        f"images: {ledger.rows:,} files = {accepted:,} accepted + {ledger.duplicates:,} duplicates + "
        f"{ledger.quarantined:,} quarantined"
    )
    for rule, count in ledger.quarantined_by_rule.items():
        print(f"images:   {count:,} {rule}")
    print(f"images: {accepted:,} images of {len(classes.names):,} classes = {shown}")
    print(f"images: published {config.out}")


def write_petastorm_metadata(
    publication: Publication, parts: Mapping[str, Sequence[DataFile]], config: ImagesConfig
) -> None:
    """Beside each split's files, what petastorm's `make_reader` asks for; no reader of ours does."""
    shape = (config.size, config.size, 3)
    fields = [
        Field("row_id", "int64", "LongType"),
        Field("image", "uint8", image_shape=shape, image_format=config.format, quality=config.quality),
        Field("label", "int32", "IntegerType"),
        Field("event_time_ms", "int64", "LongType"),
        Field("path", "str_", "StringType"),
        Field("width", "int32", "IntegerType"),
        Field("height", "int32", "IntegerType"),
    ]
    types = {"int64": pa.int64(), "int32": pa.int32(), "uint8": pa.binary(), "str_": pa.string()}
    schema = pa.schema([pa.field(field.name, types[field.numpy_type], nullable=False) for field in fields])
    for split in SPLITS:
        row_groups = {file.path.rsplit("/", 1)[-1]: len(file.row_groups) for file in parts[split]}
        content = common_metadata(schema, fields, row_groups)
        publication.files.write_bytes(join(publication.part(split), COMMON_METADATA), content)


def main(arguments: list[str] | None = None) -> int:
    command = parser("images", __doc__ or "")
    add = command.add_argument
    add("--images", required=True, nargs="+", help="folder or URL with a sub-folder a class, or tar files of such")
    add("--out", required=True, help="snapshot to publish, a folder or URL")
    add("--size", type=whole(1, 4096), default=224, help="pixels of a side")
    add("--mode", choices=("crop", "pad", "stretch"), default="crop", help="how an image is made square")
    add("--format", choices=("jpeg", "png"), default="jpeg", help="how images are stored")
    add("--quality", type=whole(1, 100), default=90, help="of jpeg")
    add("--split", default="0.8,0.1,0.1", help="shares of train, valid and test")
    add("--split-by", choices=("class", "file"), default="class",
        help="class: shares hold in every class; file: an image stays in its split when others come")  # fmt: skip
    add("--seed", type=int, default=0, help="of the split and the order of rows")
    add("--max-quarantined", type=share, default=0.1, help="stop where a larger share of the files is bad")
    add("--augment", default="none", help="for training: none, light, strong, or a path ending in .yaml")
    add("--strip-components", type=whole(0, 100), default=0, help="leading folders that name no class")
    add("--min-side", type=whole(1, 4096), default=16, help="images with a shorter side are quarantined")
    add("--max-pixels", type=whole(1, 1 << 30), default=100_000_000, help="larger ones are, before they are decoded")
    given = vars(command.parse_args(arguments))
    places = {"images": tuple(absolute(one) for one in given["images"]), "out": absolute(given["out"])}
    return run("images", lambda spark: images(spark, ImagesConfig(**given | places)))


if __name__ == "__main__":
    sys.exit(main())
