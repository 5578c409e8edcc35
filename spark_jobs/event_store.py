"""The versioned folder of events: data under names of their own first, then one step from a manifest to the next.

Whoever reads a manifest finds its files until `keep_versions` newer ones let them go; what a killed job left is named
by no manifest, and goes with them. Decision 6 says why.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from schemas.errors import SnapshotExists, UserError
from schemas.manifest import MANIFEST, DataFile, Manifest
from schemas.settings import parse_model
from schemas.storage import join
from spark_jobs.datasets import data_files_at
from spark_jobs.hadoop_files import HadoopFiles
from spark_jobs.publication import WRITER, check_that_it_is_debris

STAGING, VERSIONS = "_staging", "versions"
_NO_PARTITION = "day=__HIVE_DEFAULT_PARTITION__"


@dataclass
class EventStore:
    """A folder of events being written by this job."""

    spark: SparkSession
    url: str
    files: HadoopFiles
    standing: Manifest | None = None
    writer: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def version(self) -> int:
        """The version that this job is to publish."""
        return 1 + (self.standing.store.version if self.standing and self.standing.store else 0)

    def staging(self, name: str) -> str:
        """Where to write rows of a part; UserError where another job took the folder over."""
        self.check_that_it_is_held()
        return join(self.url, STAGING, self.writer, name)

    def place(self, name: str, part: str) -> tuple[str, ...]:
        """Move staged files to a part's folder, each into its day's; give their paths. No manifest names them yet.

        Each gets a name that no other file of the store has; Spark gives one name to a task's files of all days.
        Whoever lists the folder finds them at once, beside those that they replace: readers go by the manifest.
        """
        staged = join(self.url, STAGING, self.writer, name)
        batch = uuid.uuid4().hex
        placed: list[str] = []
        for url in self.files.files_below(staged):
            if not url.endswith(".parquet"):
                continue
            folder = url.rsplit("/", 2)[1]
            file = f"part-{len(placed):05d}-{batch}.zstd.parquet"
            day = {_NO_PARTITION: "day=none"}.get(folder, folder if folder.startswith("day=") else "")
            path = "/".join(filter(None, (part, day, file)))
            target = join(self.url, path)
            self.files.make_folder(target.rsplit("/", 1)[0])
            self.files.rename(url, target)
            placed.append(path)
        return tuple(placed)

    def data_files(self, paths: tuple[str, ...]) -> tuple[DataFile, ...]:
        """Rows, sizes and checksums of placed files."""
        return data_files_at(self.files, self.url, paths)

    def commit(self, manifest: Manifest, *, keep_versions: int) -> None:
        """Let the next version be the one that readers find, and let go of what no kept version names."""
        manifest.ledger.check()
        self.check_that_it_is_held()
        text = manifest.model_dump_json(indent=1)
        if not self.files.write_new(_version_url(self.url, self.version), text):
            raise UserError(f"{self.url}: another job published version {self.version} meanwhile; run again.")
        self.check_that_it_is_held()  # who took over finds the version written above, and lets it be found
        self.files.replace_text(join(self.url, MANIFEST), text)
        self.let_go(keep_versions)

    def let_go(self, keep_versions: int) -> None:
        """Delete versions before the newest `keep_versions`, and data files that none of those names."""
        self.check_that_it_is_held()
        versions = _versions(self.files, self.url)
        kept = versions[-max(1, keep_versions) :]
        named: set[str] = set()
        for number in kept:
            parts = json.loads(self.files.read_text(_version_url(self.url, number)))["parts"]
            named |= {file["path"] for files in parts.values() for file in files}
        for part in ("events", "items", "users", "quarantine"):
            below = self.files.files_below(join(self.url, part))
            self.check_that_it_is_held()  # files listed now are not those of a job that takes over later
            for url in below:
                if url.endswith(".parquet") and self.files.path_below(url, self.url) not in named:
                    self.files.delete(url)
        for number in versions[: -len(kept)]:
            self.files.delete(_version_url(self.url, number))
        self.check_that_it_is_held()
        self.files.delete_folder(join(self.url, STAGING))

    def release(self) -> None:
        """Give the claim and what is staged back, where it is still ours."""
        if self._holder() == self.writer:
            self.files.delete_folder(join(self.url, STAGING))
            self.files.delete(join(self.url, WRITER))

    def check_that_it_is_held(self) -> None:
        if self._holder() != self.writer:
            raise UserError(f"{self.url}: another job began to write here meanwhile; this one published nothing.")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Say so where the work fails because another job took over and cleared what this one had staged."""
        try:
            yield
        except (PySparkException, Py4JError):
            self.check_that_it_is_held()
            raise

    def _holder(self) -> str:
        claim = join(self.url, WRITER)
        return self.files.read_text(claim) if self.files.exists(claim) else ""


def claim(spark: SparkSession, url: str) -> EventStore:
    """Take the folder for this job, from whoever had it; finish what a killed job had all but published.

    Raises SnapshotExists for a folder of a release without versions, UserError for one that is not Headrace's.
    """
    files = HadoopFiles(spark)
    store = EventStore(spark, url, files)
    if files.is_file(url):
        raise UserError(f"{url} is a file, and a folder is to be written: give another name.")
    stands = files.exists(join(url, MANIFEST)) or bool(_versions(files, url))
    if not stands and files.exists(url):
        check_that_it_is_debris(files, url)
        files.delete_folder(url)
    files.make_folder(url)
    files.write_text(join(url, WRITER), store.writer, overwrite=True)
    if stands:
        store.standing = _newest(files, url)
    return store


def _newest(files: HadoopFiles, url: str) -> Manifest:
    """The last version, which becomes the one that readers find if a job was killed just before that."""
    manifest_url, versions = join(url, MANIFEST), _versions(files, url)
    text = files.read_text(manifest_url) if files.exists(manifest_url) else None
    shown = json.loads(text) if text is not None else {}
    if text is not None and not shown.get("store"):
        raise SnapshotExists(
            f"{url} exists already, written on {shown.get('created_at')} without versions by an earlier release: "
            "give another name."
        )
    if versions and versions[-1] > (shown["store"]["version"] if shown else 0):
        text = files.read_text(_version_url(url, versions[-1]))
        files.replace_text(manifest_url, text)
    assert text is not None
    return parse_model(Manifest, json.loads(text), where=manifest_url)


def _versions(files: HadoopFiles, url: str) -> list[int]:
    folder = join(url, VERSIONS)
    names = files.children(folder) if files.exists(folder) else []
    return sorted(int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdigit())


def _version_url(url: str, version: int) -> str:
    return join(url, VERSIONS, f"{version:06d}.json")


def day_of_path(path: str) -> str:
    """The day in a file's path; `none` for files of no day."""
    folder = path.rsplit("/", 2)[-2] if path.count("/") else ""
    return folder.removeprefix("day=") if folder.startswith("day=") else "none"
