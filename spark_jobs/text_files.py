"""Text files as lines, decompressed by the ending of their name.

Spark reads plain text, .gz and .bz2 itself. For .zst it wants native libraries of Hadoop's, which pip's Spark does not
have: without them these files are read by Arrow's decompressor, a task a file, as a stream.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import IO
from urllib.parse import quote

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.errors import UserError
from schemas.storage import filesystem
from spark_jobs.hadoop_files import HadoopFiles

_BLOCK_BYTES = 4 << 20


class BrokenFile(Exception):
    """A file that cannot be read to its end."""


def by_arrow(hadoop: HadoopFiles, url: str) -> bool:
    """Whether a file is one of zstd that Spark here cannot read itself."""
    return url.endswith(".zstd") or (url.endswith(".zst") and not hadoop.can_decompress(url))


def check_readable(hadoop: HadoopFiles, url: str) -> None:
    """Raise UserError for a compressed file whose codec is not at hand."""
    if not by_arrow(hadoop, url):
        hadoop.check_readable(url)


def read_lines(spark: SparkSession, hadoop: HadoopFiles, files: Sequence[str]) -> DataFrame:
    """One row per physical line: `line` (its bytes as they are, also where they are no UTF-8) and `file`."""
    zstd = [url for url in files if by_arrow(hadoop, url)]
    plain = list(files) if not zstd else sorted({*files} - {*zstd})
    frames = []
    if plain:
        text = spark.read.text(plain)
        frames.append(text.select(F.col("value").alias("line"), F.col("_metadata.file_path").alias("file")))
    if zstd:
        frames.append(_zstd_lines(spark, zstd))
    return reduce(DataFrame.unionByName, frames)


def first_line(hadoop: HadoopFiles, url: str) -> bytes:
    """The first line of a text file, without a byte order mark; UserError for a file that cannot be read."""
    if not by_arrow(hadoop, url):
        return hadoop.first_line(url)
    try:
        return next((lines[0] for lines in lines_of(url) if lines), b"")
    except BrokenFile as error:
        raise UserError(f"{error} Nothing was published.") from None


def lines_of(url: str) -> Iterator[list[bytes]]:
    r"""The lines of a zstd file, many at a time; ended by \n, \r\n or \r, as Hadoop reads them."""
    tail, is_first = b"", True
    with _open(url) as compressed:
        for block in _blocks(compressed, url):
            block = block.removeprefix(codecs.BOM_UTF8) if is_first else block
            is_first = False
            whole = tail + block
            # A \r at the very end may be half of a \r\n.
            cut = max(whole.rfind(b"\n"), whole.rfind(b"\r", 0, len(whole) - 1)) + 1
            tail = whole[cut:]
            if cut:
                yield whole[:cut].splitlines()
    if tail:
        yield tail.splitlines()


def _open(url: str) -> IO[bytes]:
    try:
        fs, path = filesystem(url)
        file: IO[bytes] = fs.open(path, "rb")
    except (OSError, ValueError, ImportError) as error:  # the last two for a kind of URL that is not known here
        raise BrokenFile(f"{url} cannot be opened ({error}).") from None
    return file


def _blocks(compressed: IO[bytes], url: str) -> Iterator[bytes]:
    try:
        with pa.input_stream(compressed, compression="zstd") as stream:
            while block := stream.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise BrokenFile(f"{url} cannot be read to its end ({error}): is it cut short or damaged?") from None


def _zstd_lines(spark: SparkSession, files: list[str]) -> DataFrame:
    def rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number in (number for batch in batches for number in batch.column(0).to_pylist()):
            # As Spark writes the names of files that it reads.
            name = quote(files[number], safe=":/").replace("file:/", "file:///", 1)
            for lines in lines_of(files[number]):
                columns = [pa.array(lines, pa.binary()), pa.repeat(pa.scalar(name), len(lines))]
                yield pa.record_batch(columns, names=["line", "file"])

    found = spark.range(0, len(files), 1, len(files)).mapInArrow(rows, "line binary, file string")
    return found.select(F.col("line").cast("string").alias("line"), "file")
