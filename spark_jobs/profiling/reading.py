"""The tables of a published folder as the profile reads them, and the first words of its vocabularies."""

from __future__ import annotations

import json
from functools import reduce

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from schemas.errors import SnapshotDamaged, UserError
from schemas.manifest import MANIFEST, SPLITS
from schemas.snapshot import Snapshot, snapshot_of
from schemas.storage import join
from spark_jobs.datasets import read_part
from spark_jobs.hadoop_files import HadoopFiles
from spark_jobs.profiling.measures import MAX_TEXT, profiled_columns
from spark_jobs.profiling.slots import HEAD
from spark_jobs.profiling.tables import TableInput, Texts
from spark_jobs.spark_types import spark_schema

ROWS, WHOLE = "rows", "all"


def open_either(hadoop: HadoopFiles, url: str) -> Snapshot:
    """What ingest or what prepare published; UserError where it is neither, SnapshotDamaged for a file cut short."""
    manifest = join(url, MANIFEST)
    text = hadoop.read_text(manifest) if hadoop.exists(manifest) else None
    try:
        is_events = json.loads(text or "{}").get("kind") == "events"
    except (ValueError, AttributeError):
        is_events = False  # and what it is instead is said below
    snapshot = snapshot_of(url, text, kind="events" if is_events else "snapshot")
    named = [file for files in snapshot.manifest.parts.values() for file in files]
    sizes = {
        (folder, status.url.rsplit("/", 1)[-1]): status.bytes
        for folder in sorted({file.path.rpartition("/")[0] for file in named})
        for status in (hadoop.glob(join(url, folder)) if hadoop.exists(join(url, folder)) else ())
    }
    for file in named:
        folder, _, name = file.path.rpartition("/")
        size = sizes.get((folder, name))
        if size is None:
            raise SnapshotDamaged(f"{url}: {file.path} is missing; it held {file.rows:,} rows.")
        if size != file.bytes:
            raise SnapshotDamaged(
                f"{url}: {file.path} has {size:,} bytes, the manifest says {file.bytes:,} ({file.rows:,} rows): "
                "it was cut short or written again."
            )
    return snapshot


def tables_of(spark: SparkSession, snapshot: Snapshot) -> list[TableInput]:
    """The splits as one table with a group each; items and users, and the tables of checked events, each whole."""
    manifest = snapshot.manifest
    known = [name for name in ("events", "items", "users") if manifest.rows(name)]
    tables = [_table(spark, snapshot, name, {WHOLE: name}) for name in known]
    if manifest.kind == "snapshot":
        tables = [_table(spark, snapshot, ROWS, {split: split for split in SPLITS if manifest.rows(split)}), *tables]
    return tables


def _table(spark: SparkSession, snapshot: Snapshot, name: str, parts: dict[str, str]) -> TableInput:
    contract = snapshot.manifest.contract
    by_group = {group: _rows(spark, snapshot, part) for group, part in parts.items()}
    tagged = [rows.withColumn("group", F.lit(group)) for group, rows in by_group.items()]
    rows: DataFrame = reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), tagged)
    schema = T.StructType([field for field in rows.schema.fields if field.name != "group"])
    is_events = name in (ROWS, "events")
    label = contract.events.with_role("label") if is_events else ()
    time_name = "event_time_ms" if name == ROWS else contract.events.the("event_time").name
    return TableInput(
        name=name,
        rows=rows,
        groups=tuple(parts),
        present={group: frozenset(rows.columns) for group, rows in by_group.items()},
        columns=profiled_columns(schema, name if name != ROWS else "events", contract, snapshot.manifest.transform),
        label=("label" if name == ROWS else label[0].name) if label else None,
        time=time_name if is_events else None,
    )


def _rows(spark: SparkSession, snapshot: Snapshot, part: str) -> DataFrame:
    """A part's rows; days of an events folder that were written under an earlier contract by today's schema."""
    if snapshot.manifest.kind == "events":
        tables = {str(name): table for name, table in snapshot.manifest.contract.tables().items()}
        return read_part(spark, snapshot.url, snapshot.files(part), spark_schema(tables[part]))
    return spark.read.parquet(*(snapshot.file_url(file) for file in snapshot.files(part)))


def vocabulary_texts(spark: SparkSession, snapshot: Snapshot) -> Texts:
    """The most frequent values of every vocabulary by index, items with their title: two small jobs for all."""
    parts = {part: files for part, files in snapshot.manifest.parts.items() if part.startswith("vocab/") and files}
    if not parts:
        return {}
    urls = {snapshot.file_url(file): part.removeprefix("vocab/") for part, files in parts.items() for file in files}
    file = F.col("_metadata.file_path")
    entries = spark.read.schema("value STRING, idx INT").parquet(*urls).where(F.col("idx") < HEAD)
    texts: dict[str, dict[int, str]] = {}
    for row in entries.select("idx", F.substring("value", 1, MAX_TEXT).alias("value"), file.alias("file")).collect():
        name = row["file"].rsplit("/", 2)[-2]
        texts.setdefault(name, {})[row["idx"]] = row["value"]
    items = [snapshot.file_url(file) for file in snapshot.files("items")]
    if items:
        titled = spark.read.schema("item_idx INT, title STRING").parquet(*items).where(F.col("item_idx") < HEAD)
        for row in titled.select("item_idx", F.substring("title", 1, MAX_TEXT).alias("title")).collect():
            known = texts.get("item", {}).get(row["item_idx"])
            if known is not None and row["title"] not in (None, known):
                texts["item"][row["item_idx"]] = f"{row['title']} ({known})"
    return texts


def quarantine_parent(hadoop: HadoopFiles, snapshot: Snapshot) -> tuple[Snapshot | None, str]:
    """The events folder with the refused rows of this log, or why it cannot be read."""
    if snapshot.manifest.kind == "events":
        return snapshot, ""
    for parent in snapshot.manifest.parents:
        try:
            opened = open_either(hadoop, parent.url)
        except UserError as error:
            return None, str(error)
        if opened.manifest.digest() == parent.digest:
            return opened, ""
        return None, f"{parent.url} is another folder now than the one this snapshot was made from."
    return None, "the snapshot names no events folder."
