"""Files at any Hadoop URL (file, hdfs, s3a ...) from the driver: the one place that talks to Hadoop's FileSystem."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from schemas.errors import UserError


@dataclass(frozen=True)
class FileStatus:
    url: str
    bytes: int
    modified_ms: int


class HadoopFiles:
    """Small files and listings; data goes through Spark."""

    def __init__(self, spark: SparkSession) -> None:
        self._jvm: Any = spark._jvm
        self._conf: Any = spark._jsc.hadoopConfiguration()

    def exists(self, url: str) -> bool:
        path, fs = self._open(url)
        return bool(fs.exists(path))

    def is_file(self, url: str) -> bool:
        path, fs = self._open(url)
        return bool(fs.exists(path) and fs.getFileStatus(path).isFile())

    def children(self, url: str) -> list[str]:
        """Names of what lies in a folder."""
        path, fs = self._open(url)
        return sorted(status.getPath().getName() for status in fs.listStatus(path))

    def glob(self, url: str) -> list[FileStatus]:
        """All files that `url` names (a file, a folder's files, or a glob), sorted; hidden ones left out."""
        path, fs = self._open(url)
        found = []
        for status in fs.globStatus(path) or []:
            inside = fs.listStatus(status.getPath()) if status.isDirectory() else [status]
            found += [s for s in inside if s.isFile() and s.getPath().getName()[0] not in "._"]
        return sorted(
            (FileStatus(s.getPath().toString(), s.getLen(), s.getModificationTime()) for s in found),
            key=lambda status: status.url,
        )

    def first_line(self, url: str) -> bytes:
        """The first line of a text file as Spark reads it: decompressed by its ending, without a byte order mark."""
        path, fs = self._open(url)
        codec = self._jvm.org.apache.hadoop.io.compress.CompressionCodecFactory(self._conf).getCodec(path)
        stream = fs.open(path)
        stream = codec.createInputStream(stream) if codec is not None else stream
        try:
            text = self._jvm.org.apache.hadoop.io.Text()
            self._jvm.org.apache.hadoop.util.LineReader(stream).readLine(text, 1 << 20)
            return bytes(text.copyBytes()).removeprefix(codecs.BOM_UTF8)
        finally:
            stream.close()

    def read_text(self, url: str) -> str:
        path, fs = self._open(url)
        stream = fs.open(path)
        try:
            return str(self._jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8"))
        finally:
            stream.close()

    def write_text(self, url: str, text: str, *, overwrite: bool = False) -> None:
        """Write a small file; without `overwrite` the file must not exist."""
        path, fs = self._open(url)
        try:
            stream = fs.create(path, overwrite)
            stream.write(text.encode())
            stream.close()
        except Py4JJavaError as error:
            raise UserError(f"cannot write {url}: {_reason(error)}") from None

    def rename(self, source: str, target: str) -> None:
        path, fs = self._open(source)
        if not fs.rename(path, self._path(target)):
            raise UserError(f"cannot rename {source} to {target}.")

    def make_folder(self, url: str) -> None:
        path, fs = self._open(url)
        try:
            made = fs.mkdirs(path)
        except Py4JJavaError as error:
            raise UserError(f"cannot write to {url}: {_reason(error)}") from None
        if not made:
            raise UserError(f"cannot write to {url}: the folder cannot be made; is its parent writable?")

    def delete_folder(self, url: str) -> None:
        path, fs = self._open(url)
        fs.delete(path, True)

    def row_groups(self, url: str) -> tuple[int, ...]:
        """Rows of each row group of a Parquet file, read from its footer."""
        hadoop = self._jvm.org.apache.parquet.hadoop
        source = hadoop.util.HadoopInputFile.fromPath(self._path(url), self._conf)
        reader = hadoop.ParquetFileReader.open(source)
        try:
            return tuple(int(block.getRowCount()) for block in reader.getFooter().getBlocks())
        finally:
            reader.close()

    def _path(self, url: str) -> Any:
        return self._jvm.org.apache.hadoop.fs.Path(url)

    def _open(self, url: str) -> tuple[Any, Any]:
        try:
            path = self._path(url)
            return path, path.getFileSystem(self._conf)
        except Py4JJavaError as error:
            raise UserError(f"cannot open {url}: {_reason(error)}") from None


def _reason(error: Py4JJavaError) -> str:
    return str(error.java_exception.getMessage() or error.java_exception.toString()).splitlines()[0]
