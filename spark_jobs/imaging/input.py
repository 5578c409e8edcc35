"""What the images job is given: one folder, or tar files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import SparkSession

from schemas.contract import Column, Contract, Source, Table
from schemas.errors import UserError
from spark_jobs.hadoop_files import FileStatus, HadoopFiles
from spark_jobs.imaging.reading import Folder, look_into

_COLUMNS = (
    Column(name="path", type="string", meaning="below the folder; a tar's name comes first"),
    Column(name="class", type="string", meaning="the folder that it lies in"),
    Column(name="label", type="int32", role="label", meaning="number of the class, in the order of their names"),
    Column(name="modified_ms", type="timestamp_ms", role="event_time", time_format="epoch_ms",
           meaning="when the file was last changed"),
    Column(name="width", type="int32", meaning="pixels of the original, upright"),
    Column(name="height", type="int32", meaning="pixels of the original, upright"),
)  # fmt: skip
_FILES = Table(source=Source(format="table", path="images"), key=("path",), columns=_COLUMNS)
CONTRACT = Contract(name="images", meaning="image files, a folder a class", events=_FILES)
"""What a file is, in the words of a contract; its time is when it was last changed."""
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Input:
    """One folder, or tar files; `digest` names what is in it, by names, sizes and times."""

    folder: Folder | None
    tars: tuple[FileStatus, ...]
    digest: str
    bytes: int

    def __str__(self) -> str:
        return self.folder.url if self.folder is not None else ", ".join(tar.url for tar in self.tars)


def find_input(spark: SparkSession, given: Sequence[str]) -> Input:
    """The one folder or the tar files that were named; UserError where they are neither."""
    hadoop = HadoopFiles(spark)
    if len(given) == 1 and hadoop.exists(given[0]) and not hadoop.is_file(given[0]):
        folder = look_into(spark, hadoop, given[0])
        if not folder.bytes:
            raise UserError(f"{given[0]} holds no files.")
        return Input(folder, (), folder.digest, folder.bytes)
    tars = tuple(status for one in given for status in hadoop.glob(one))
    for one in given:
        if not hadoop.glob(one):
            raise UserError(f"{one} is not there: --images names one folder, or tar files.")
    names = [tar.url.rsplit("/", 1)[-1] for tar in tars]
    for name in names:
        if not name.endswith(TARS):
            raise UserError(f"{name} is no tar ({', '.join(TARS)}): --images names one folder, or tar files.")
        if names.count(name) > 1:
            raise UserError(f"two tars are named {name}: an image's path begins with its tar's name; rename one.")
    stamps = ";".join(sorted(f"{name}:{tar.bytes}:{tar.modified_ms}" for name, tar in zip(names, tars, strict=True)))
    return Input(None, tars, stamps, sum(tar.bytes for tar in tars))
