"""Files at any Hadoop URL (file, hdfs, s3a ...) from the driver: the one place that talks to Hadoop's FileSystem."""

from __future__ import annotations

import codecs
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from schemas.errors import UserError
from schemas.storage import join

T = TypeVar("T")
_OBJECT_STORES = ("s3a", "s3", "s3n", "gs", "oss", "cos", "cosn", "obs")


@dataclass(frozen=True)
class FileStatus:
    url: str
    bytes: int
    modified_ms: int


class HadoopFiles:
    """Small files and listings; data goes through Spark."""

    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark
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
        """The first line of a text file as Spark reads it: decompressed by its ending, without a byte order mark.

        UserError for a file that is not what its ending says, or cannot be read.
        """
        path, fs = self._open(url)
        codec = self._jvm.org.apache.hadoop.io.compress.CompressionCodecFactory(self._conf).getCodec(path)
        stream = fs.open(path)
        stream = codec.createInputStream(stream) if codec is not None else stream
        try:
            text = self._jvm.org.apache.hadoop.io.Text()
            self._jvm.org.apache.hadoop.util.LineReader(stream).readLine(text, 1 << 20)
            return bytes(text.copyBytes()).removeprefix(codecs.BOM_UTF8)
        except Py4JJavaError as error:
            raise UserError(f"{url} cannot be read ({_reason(error)}): is it damaged? Nothing was published.") from None
        finally:
            stream.close()

    def size_and_sha256(self, url: str) -> tuple[int, str]:
        """A file's size in bytes and its SHA-256, read as a stream."""
        path, fs = self._open(url)
        stream = fs.open(path)
        try:
            digest = self._jvm.org.apache.commons.codec.digest.DigestUtils.sha256Hex(stream)
            return int(fs.getFileStatus(path).getLen()), str(digest)
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
        self.write_bytes(url, text.encode(), overwrite=overwrite)

    def write_bytes(self, url: str, content: bytes, *, overwrite: bool = False) -> None:
        """Write a small file; without `overwrite` the file must not exist."""
        path, fs = self._open_plain(url)
        try:
            stream = fs.create(path, overwrite)
            stream.write(content)
            stream.close()
        except Py4JJavaError as error:
            raise UserError(f"cannot write {url}: {_reason(error)}") from None

    def write_new(self, url: str, text: str) -> bool:
        """Write a small file whole, unless it is there; whether it was written. Of two jobs one can.

        HDFS makes a file for one creator only. Java's local files do not, but a hard link is made once.
        """
        path, fs = self._open_plain(url)
        if fs.exists(path):
            return False
        if self._is_local(fs):
            draft = f"{url}.{uuid.uuid4().hex}"
            self.write_text(draft, text)
            try:
                self._jvm.java.nio.file.Files.createLink(self._local(url), self._local(draft))
            except Py4JJavaError as error:
                if "FileAlreadyExistsException" in str(error.java_exception.toString()):
                    return False
                raise UserError(f"cannot write {url}: {_reason(error)}") from None
            finally:
                self.delete(draft)
            return True
        self.write_text(url, text)
        return True

    def replace_text(self, url: str, text: str) -> None:
        """Let a small file hold another text: readers find the old one or the new one, whole.

        A rename that overwrites is atomic on HDFS and local disks; object stores have no rename, and a PUT is atomic.
        """
        path, fs = self._open_plain(url)
        if str(fs.getUri().getScheme()) in _OBJECT_STORES:
            self.write_text(url, text, overwrite=True)
            return
        draft = join(url.rsplit("/", 1)[0], f".{url.rsplit('/', 1)[1]}.{uuid.uuid4().hex}")
        self.write_text(draft, text)
        if self._is_local(fs):
            # A release before this one wrote checksums beside small files; the old one would not fit the new text.
            self.delete(join(url.rsplit("/", 1)[0], f".{url.rsplit('/', 1)[1]}.crc"))
            if not fs.rename(self._path(draft), path):
                raise UserError(f"cannot replace {url}: is its folder writable?")
            return
        options = self._jvm.org.apache.hadoop.fs.Options.Rename
        gateway: Any = self._spark._sc._gateway
        renames = gateway.new_array(options, 1)
        renames[0] = options.OVERWRITE
        context = self._jvm.org.apache.hadoop.fs.FileContext.getFileContext(path.toUri(), self._conf)
        context.rename(self._path(draft), path, renames)

    def delete(self, url: str) -> None:
        """Delete a file; one that is not there is no error."""
        path, fs = self._open_plain(url)
        fs.delete(path, False)

    def files_below(self, url: str) -> list[str]:
        """URLs of all files in a folder and its folders; none where there is no such folder."""
        path, fs = self._open(url)
        if not fs.exists(path):
            return []
        found, walk = [], fs.listFiles(path, True)
        while walk.hasNext():
            found.append(str(walk.next().getPath().toString()))
        return sorted(found)

    def empty_files_below(self, url: str) -> list[FileStatus]:
        """Files without a byte in a folder and its folders: Spark passes them over. Hidden ones are left out."""
        path, fs = self._open(url)
        found, walk = [], fs.listFiles(path, True)
        while walk.hasNext():
            status = walk.next()
            if status.getLen() == 0:
                found.append(FileStatus(status.getPath().toString(), 0, status.getModificationTime()))
        return [s for s in found if not any(part[:1] in ("_", ".") for part in self.path_below(s.url, url).split("/"))]

    def qualified(self, url: str) -> str:
        """A folder as the URLs of its files begin, however it was written."""
        path, fs = self._open(url)
        return str(fs.makeQualified(path).toString())

    def path_below(self, url: str, root: str) -> str:
        """The path of a listed file relative to a folder, however the folder was written."""
        return url.removeprefix(self.qualified(root)).lstrip("/")

    def can_decompress(self, url: str) -> bool:
        """Whether the codec that a file's name asks for is at hand."""
        try:
            self.check_readable(url)
        except UserError:
            return False
        return True

    def check_readable(self, url: str) -> None:
        """Raise UserError for a compressed text file whose codec is not at hand."""
        path, _ = self._open(url)
        codec = self._jvm.org.apache.hadoop.io.compress.CompressionCodecFactory(self._conf).getCodec(path)
        if codec is None:
            return
        try:
            codec.createDecompressor()
        except Py4JJavaError as error:
            raise UserError(
                f"{url} cannot be decompressed: {_reason(error)}. Give it as .gz or plain text, "
                "or run Spark with Hadoop's native libraries."
            ) from None

    def parquet_schema(self, url: str) -> str:
        """The schema in a Parquet file's footer, as text; UserError where the file is none."""
        try:
            return self._footer(url, lambda footer: str(footer.getFileMetaData().getSchema().toString()))
        except Py4JJavaError as error:
            raise UserError(f"{url} is no whole Parquet file: {_reason(error)}") from None

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
        return self._footer(url, lambda footer: tuple(int(block.getRowCount()) for block in footer.getBlocks()))

    def _footer(self, url: str, read: Callable[[Any], T]) -> T:
        hadoop = self._jvm.org.apache.parquet.hadoop
        source = hadoop.util.HadoopInputFile.fromPath(self._path(url), self._conf)
        reader = hadoop.ParquetFileReader.open(source)
        try:
            return read(reader.getFooter())
        finally:
            reader.close()

    def _path(self, url: str) -> Any:
        return self._jvm.org.apache.hadoop.fs.Path(url)

    def _local(self, url: str) -> Any:
        return self._jvm.java.io.File(self._path(url).toUri().getPath()).toPath()

    def _is_local(self, fs: Any) -> bool:
        return str(fs.getUri().getScheme()) == "file"

    def _open_plain(self, url: str) -> tuple[Any, Any]:
        """Without the checksum files that Hadoop writes beside local ones: data and checksum are replaced in two
        steps, and a reader between them would find the file damaged."""
        path, fs = self._open(url)
        return path, fs.getRawFileSystem() if hasattr(fs, "getRawFileSystem") and self._is_local(fs) else fs

    def _open(self, url: str) -> tuple[Any, Any]:
        try:
            path = self._path(url)
            return path, path.getFileSystem(self._conf)
        except Py4JJavaError as error:
            raise UserError(f"cannot open {url}: {_reason(error)}") from None


def _reason(error: Py4JJavaError) -> str:
    return str(error.java_exception.getMessage() or error.java_exception.toString()).splitlines()[0]
