"""Image files of a folder or of tars as rows, fitted to one size where they lie: the one pass that decodes."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.ledger import ROW_ID_MODULUS
from schemas.storage import filesystem
from spark_jobs.hadoop_files import FileStatus, HadoopFiles
from spark_jobs.imaging.fitting import Fit, ImageRefused, fitted

MAX_FILE_BYTES = 128 << 20
# What goes to Python at once: a few files, for a photo may have ten megabytes.
ARROW_SETTINGS = {
    "spark.sql.execution.arrow.maxRecordsPerBatch": "64",
    "spark.sql.execution.arrow.maxBytesPerBatch": str(16 << 20),
    "spark.sql.files.openCostInBytes": str(64 << 10),  # Spark's 4 MB would make a task of every 32 images
    "spark.sql.files.maxPartitionBytes": str(32 << 20),
}
SCHEMA = """path string, class string, bytes bigint, modified_ms bigint, width int, height int, image binary,
    digest string, rule string, reason string"""
_ARROW_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("path", "class")),
        *((name, pa.int64()) for name in ("bytes", "modified_ms")),
        *((name, pa.int32()) for name in ("width", "height")),
        ("image", pa.binary()),
        *((name, pa.string()) for name in ("digest", "rule", "reason")),
    ]
)
_Row: TypeAlias = tuple[Any, ...]
"""The values of a row of `SCHEMA`."""
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 64, 8 << 20


@dataclass(frozen=True)
class ImageFile:
    """A file as it was found: its path below the root, and its bytes unless a rule refused it already."""

    path: str
    size: int
    modified_ms: int
    content: bytes | None
    rule: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Folder:
    """A folder of files, those with a leading dot or underscore left out. `digest` names what is in it."""

    url: str
    root: str
    """Its URL as its files' paths begin."""
    bytes: int
    digest: str
    has_large: bool
    empty: tuple[FileStatus, ...]


def look_into(spark: SparkSession, hadoop: HadoopFiles, url: str) -> Folder:
    """List a folder and its folders; no file is read."""
    root, found = hadoop.qualified(url), _files_below(spark, url)
    below = F.expr(f"substring(path, {len(root) + 1})")
    each = F.pmod(F.xxhash64(below, "length", "modificationTime"), F.lit(ROW_ID_MODULUS))
    is_large = F.col("length") > MAX_FILE_BYTES
    total = found.agg(
        F.count("*").alias("files"),
        F.coalesce(F.sum("length"), F.lit(0)).alias("bytes"),
        F.coalesce(F.sum(each), F.lit(0)).alias("names"),
        F.count_if(is_large).alias("large"),
    ).first()
    assert total is not None
    # Spark lists files without a byte and reads none; only where there are any is the folder walked to name them.
    listed = len(found._jdf.inputFiles())
    empty = hadoop.empty_files_below(url) if listed > total["files"] else []
    stamps = [f"{hadoop.path_below(file.url, url)}:{file.modified_ms}" for file in empty]
    digest = ";".join([f"{total['files']}:{total['bytes']}:{total['names']}", *sorted(stamps)])
    return Folder(url, root, total["bytes"], digest, total["large"] > 0, tuple(empty))


def fitted_folder(spark: SparkSession, folder: Folder, *, strip: int, fit: Fit) -> DataFrame:
    """The files of a folder as rows of `SCHEMA`."""
    root, found = folder.root, _files_below(spark, folder.url)
    columns = ("path", "length", F.unix_millis("modificationTime").alias("modified_ms"))
    files = found.where(F.col("length") <= MAX_FILE_BYTES).select(*columns, "content")
    if folder.has_large:  # those of over two gigabytes would end the job if Spark read them
        large = found.where(F.col("length") > MAX_FILE_BYTES)
        files = files.unionAll(large.select(*columns, F.lit(None).cast("binary").alias("content")))
    if folder.empty:
        empty = [(file.url, 0, file.modified_ms, b"") for file in folder.empty]
        files = files.unionAll(spark.createDataFrame(empty, files.schema))

    def rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return fitted_files((file for batch in batches for file in _files_of(batch, root)), strip=strip, fit=fit)

    return files.mapInArrow(rows, SCHEMA)


def _files_below(spark: SparkSession, url: str) -> DataFrame:
    return spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(url)


def fitted_tars(spark: SparkSession, tars: Sequence[FileStatus], *, strip: int, fit: Fit) -> DataFrame:
    """The members of tar files as rows of `SCHEMA`, a task a tar; a path begins with the tar's name."""
    listed = list(tars)

    def rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        numbers = (number for batch in batches for number in batch.column(0).to_pylist())
        members = (file for number in numbers for file in files_of_tar(listed[number]))
        return fitted_files(members, strip=strip + 1, fit=fit)

    return spark.range(0, len(listed), 1, len(listed)).mapInArrow(rows, SCHEMA)


def fitted_files(files: Iterable[ImageFile], *, strip: int, fit: Fit) -> Iterator[pa.RecordBatch]:
    """Batches of `SCHEMA`, small ones; every file gives one row, which holds an image or the rule that it broke."""
    rows: list[_Row] = []
    size = 0
    for file in files:
        rows.append(_row(file, strip, fit))
        size += len(rows[-1][6] or b"")
        if len(rows) == _ROWS_AT_ONCE or size > _BYTES_AT_ONCE:
            yield _batch(rows)
            rows, size = [], 0
    yield _batch(rows)


def _row(file: ImageFile, strip: int, fit: Fit) -> _Row:

    folders = file.path.split("/")[strip:-1]
    of_file = (file.path, folders[0] if folders else "", file.size, file.modified_ms)
    try:
        if file.rule is not None:
            raise ImageRefused(file.rule, file.reason or "")
        if not folders:
            raise ImageRefused("class", "it lies in no folder that names its class")
        if file.content is None:
            raise ImageRefused("too_large", f"{file.size:,} bytes, and {MAX_FILE_BYTES:,} are read at most")
        image = fitted(file.content, fit)
    except ImageRefused as refused:
        return (*of_file, None, None, None, None, refused.rule, refused.reason)
    digest = hashlib.sha256(image.content).hexdigest()
    return (*of_file, image.width, image.height, image.content, digest, None, None)


def _batch(rows: list[_Row]) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [() for _ in _ARROW_SCHEMA]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, _ARROW_SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=_ARROW_SCHEMA)


def _files_of(batch: pa.RecordBatch, root: str) -> Iterator[ImageFile]:
    for path, size, modified, content in zip(*batch.columns, strict=True):
        below = path.as_py().removeprefix(root).lstrip("/")
        yield ImageFile(below, size.as_py(), modified.as_py(), content.as_py())


class _StrictMember(tarfile.TarInfo):
    """A member of a tar that must go on to its end mark: tarfile takes a damaged header for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def files_of_tar(tar: FileStatus) -> Iterator[ImageFile]:
    """The regular files of a tar (plain, gzip, bzip2 or xz) in its order, one in memory at a time.

    A tar that is damaged or cut short gives the members before that, then itself as a refused file.
    """
    name = tar.url.rsplit("/", 1)[-1]
    seen: set[int] = set()
    try:
        fs, path = filesystem(tar.url)
        with fs.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_StrictMember) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                inside = [part for part in member.name.split("/") if part not in ("", ".")]
                if member.isdir() or not inside or any(part[0] in "._" for part in inside):
                    continue
                # Names need not be UTF-8 in a tar, and must be in a table.
                below = "/".join([name, *inside]).encode("utf-8", "backslashreplace").decode()
                yield _member(archive, member, below, is_repeated=hash(below) in seen)
                seen.add(hash(below))
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        reason = f"the tar is damaged or cut short after {len(seen):,} files: {error or type(error).__name__}"
        yield ImageFile(name, tar.bytes, tar.modified_ms, None, "tar", reason)


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str, *, is_repeated: bool) -> ImageFile:
    modified_ms = 0
    with suppress(OverflowError, ValueError):
        modified_ms = int(member.mtime * 1000)
    if is_repeated:
        return ImageFile(path, member.size, modified_ms, None, "path", "the tar has a file of this name before")
    if not member.isfile():
        return ImageFile(path, 0, modified_ms, None, "link", "it is a link or a device, and no file")
    if member.size > MAX_FILE_BYTES:
        return ImageFile(path, member.size, modified_ms, None)
    file = archive.extractfile(member)
    assert file is not None
    content = file.read()
    if len(content) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return ImageFile(path, member.size, modified_ms, content)
