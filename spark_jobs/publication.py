"""Publishing a folder: data first, the manifest last and in one step, so that it appears whole or not at all."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import SparkSession

from schemas.contract import TABLES
from schemas.errors import SnapshotExists, UserError
from schemas.manifest import MANIFEST, SPLITS, DataFile, Kind, Manifest
from schemas.settings import digest_of
from schemas.snapshot import Snapshot, snapshot_of
from schemas.storage import join
from schemas.version import code_version, now_utc
from spark_jobs.datasets import data_files
from spark_jobs.hadoop_files import HadoopFiles

WRITER = "_writer"
# All that a job may leave behind when it is interrupted; a folder that holds anything else is never cleared.
_OURS = {WRITER, *TABLES, *SPLITS, "quarantine", "rows", "vocab", "state", "stats.json", "_staging", "versions"}


@dataclass
class Publication:
    """A folder being written by this job; it does not exist for anyone until `commit`."""

    spark: SparkSession
    url: str
    config: dict[str, Any]
    files: HadoopFiles
    writer: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def config_digest(self) -> str:
        return digest_of(self.config)

    def part(self, name: str) -> str:
        """Where to write a part; UserError where another job took the folder over: its files must stay as they are."""
        self._check_that_it_is_held()
        return join(self.url, name)

    def data_files(self, parts: Sequence[str]) -> dict[str, tuple[DataFile, ...]]:
        """By part, its files with rows, sizes and checksums, as they lie there now."""
        return data_files(self.files, self.url, parts)

    def commit(self, manifest: Manifest) -> None:
        """Check the ledger and that no other job took the folder over; then let the folder exist."""
        manifest.ledger.check()
        self._check_that_it_is_held()
        draft = join(self.url, f".{MANIFEST}.{self.writer}")
        self.files.write_text(draft, manifest.model_dump_json(indent=1))
        self.files.rename(draft, join(self.url, MANIFEST))
        self.files.delete_folder(join(self.url, WRITER))

    def _check_that_it_is_held(self) -> None:
        holder = self.files.read_text(join(self.url, WRITER)) if self.files.exists(join(self.url, WRITER)) else ""
        if holder != self.writer:
            raise UserError(f"{self.url}: another job began to write here meanwhile; this one published nothing.")


def identity(url: str, config: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of the folder itself: its name, when it was written, by which code, with which settings."""
    return {
        "id": url.rstrip("/").rsplit("/", 1)[-1],
        "created_at": now_utc(),
        "code_version": code_version(),
        "config": config,
        "config_digest": digest_of(config),
    }


def begin(spark: SparkSession, url: str, config: dict[str, Any]) -> Publication | None:
    """Claim `url` for this job and clear what an interrupted job left there.

    None where the same work (same config, which names the input too) already stands published.
    Raises SnapshotExists where other work stands there: published folders are immutable.
    """
    files = HadoopFiles(spark)
    publication = Publication(spark, url, config, files)
    if files.exists(join(url, MANIFEST)):
        standing = json.loads(files.read_text(join(url, MANIFEST)))
        if standing.get("config_digest") == publication.config_digest:
            return None
        raise SnapshotExists(
            f"{url} exists already, written on {standing.get('created_at')} with other settings or input"
            f"{_difference(standing.get('config', {}), config)}. Published folders never change: give another name."
        )
    if files.is_file(url):
        raise UserError(f"{url} is a file, and a folder is to be written: give another name.")
    if files.exists(url):
        check_that_it_is_debris(files, url)
        files.delete_folder(url)
    files.make_folder(url)
    files.write_text(join(url, WRITER), publication.writer)
    return publication


def check_that_it_is_debris(files: HadoopFiles, url: str) -> None:
    """Raise UserError unless the folder is empty or holds what a job of ours left: nothing of the user's is deleted."""
    found = files.children(url)
    if found and WRITER not in found:
        raise UserError(f"{url} is a folder that Headrace did not write, and it is not empty: give another name.")
    foreign = [name for name in found if name not in _OURS and not name.startswith(f".{MANIFEST}.")]
    if foreign:
        raise UserError(
            f"{url} is what an interrupted job left, but {foreign[0]!r} in it is not Headrace's: "
            "move that away, or give another name."
        )


def _difference(standing: dict[str, Any], wanted: dict[str, Any]) -> str:
    keys = [key for key in sorted({*standing, *wanted}) if standing.get(key) != wanted.get(key)]
    return f" ({', '.join(keys[:4])})" if keys else ""


def open_published(spark: SparkSession, url: str, *, kind: Kind) -> Snapshot:
    """A published folder at any Hadoop URL; UserError where there is none."""
    files, manifest = HadoopFiles(spark), join(url, MANIFEST)
    return snapshot_of(url, files.read_text(manifest) if files.exists(manifest) else None, kind=kind)
