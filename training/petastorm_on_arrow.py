"""Gives petastorm 0.13.1, unpatched, what pyarrow 15 and 16 and numpy 2 took away from under it.

petastorm reads through three things that pyarrow dropped: `pyarrow.filesystem` and `pyarrow.hdfs` (file systems with
pyarrow's own interface) and the first `ParquetDataset`, which lists a folder as *pieces*. This file builds the small
part of them that petastorm asks for, on fsspec and `pyarrow.parquet.ParquetFile`. `install()` puts them in place and
does nothing to a pyarrow which still has them; it also applies the repairs of petastorm_threads. Call it before the
first `import petastorm`.

Today's pyarrow stays as it is for everyone else: `pq.read_table`, and with it `pandas.read_parquet`, look their
dataset class up in `pyarrow.parquet.core`, which is not touched; and `pq.ParquetDataset` is the old class only for
code of the packages in LEGACY_CALLERS.
"""

from __future__ import annotations

import operator
import runpy
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from fsspec.implementations import local
from fsspec.implementations.arrow import ArrowFSWrapper

from training import petastorm_threads

LEGACY_CALLERS = {"petastorm", "horovod"}  # top-level packages written for the dataset class that pyarrow 15 dropped

PartitionKeys = list[tuple[str, int]]  # one (column name, index into that level's values) a folder level


class _WithoutOwnLock(type(local.LocalFileSystem)):  # type: ignore[misc]
    """fsspec gives every class a lock, and with one of its own a class made in a function cannot go to Spark."""

    def __init__(cls, *definition: Any):
        super().__init__(*definition)
        if "_instantiation_lock" in vars(cls):
            cls._instantiation_lock = local.LocalFileSystem._instantiation_lock


class LocalFileSystem(local.LocalFileSystem, metaclass=_WithoutOwnLock):
    """Local files as fsspec lists them; reading goes through Arrow's own file, which lets go of the GIL."""

    cachable = False

    @classmethod
    def get_instance(cls) -> LocalFileSystem:
        return cls()

    def open(self, path: str, mode: str = "rb", **options: Any):  # noqa: A003 - the interface's name
        if mode == "rb":
            return pa.OSFile(self._strip_protocol(path), "rb")
        return super().open(path, mode, **options)


class HadoopFileSystem:
    """HDFS through libhdfs. petastorm subclasses this to try the next name node when one method here fails."""

    def __init__(self, host: str = "default", port: int = 0, user: str | None = None, kerb_ticket: str | None = None,
                 extra_conf: dict[str, str] | None = None, driver: str = "libhdfs"):
        self._hdfs = ArrowFSWrapper(pa.fs.HadoopFileSystem(host, port, user=user, kerb_ticket=kerb_ticket,
                                                           extra_conf=extra_conf))

    def open(self, path: str, mode: str = "rb", **options: Any):  # noqa: A003 - the interface's name
        return self._hdfs.open(path, mode, **options)


def _delegate(name: str) -> Callable[..., Any]:
    def method(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._hdfs, name)(*args, **kwargs)
    method.__name__ = name
    return method


def _gone(name: str) -> Callable[..., Any]:
    def method(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"pyarrow no longer offers {name} on HDFS: ask `hdfs dfs` instead")
    method.__name__ = name
    return method


for _name in ("cat", "delete", "disk_usage", "download", "exists", "find", "info", "isdir", "isfile", "ls", "mkdir",
              "mv", "rename", "rm", "stat", "upload", "walk"):
    setattr(HadoopFileSystem, _name, _delegate(_name))
for _name in ("chmod", "chown", "df", "get_capacity", "get_space_used"):
    setattr(HadoopFileSystem, _name, _gone(_name))


class PartitionSet:
    """One level of hive folders: its column name and the values seen, in the order of the listing."""

    def __init__(self, name: str, keys: Iterable[str] = ()):
        self.name = name
        self.keys = list(keys)

    @property
    def dictionary(self) -> pa.Array:
        """The values as int64 when every one of them is a whole number, otherwise as strings."""
        try:
            return pa.array([int(key) for key in self.keys], pa.int64())
        except ValueError:
            return pa.array(self.keys, pa.string())


class ParquetPartitions:
    """The levels of hive folders, outermost first; empty, and so false, for a folder without any."""

    def __init__(self, levels: Sequence[PartitionSet] = ()):
        self.levels = list(levels)

    @property
    def partition_names(self) -> set[str]:
        return {level.name for level in self.levels}

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, level: int) -> PartitionSet:
        return self.levels[level]

    def value(self, level: int, index: int) -> Any:
        return self.levels[level].dictionary[index].as_py()


class ParquetDatasetPiece:
    """One file, or one row group of it, with the values that its hive folders give to its rows."""

    def __init__(self, path: str, open_file_func: Callable[[str], Any] | None = None, row_group: int | None = None,
                 partition_keys: PartitionKeys | None = None):
        self.path = path
        self.open_file_func = open_file_func or LocalFileSystem().open
        self.row_group = row_group
        self.partition_keys = partition_keys or []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ParquetDatasetPiece) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        return f"ParquetDatasetPiece({self.path!r}, row_group={self.row_group}, partition_keys={self.partition_keys})"

    def _identity(self) -> tuple:
        return self.path, self.row_group, tuple(self.partition_keys)

    def open(self) -> pq.ParquetFile:  # noqa: A003 - the interface's name
        return _parquet_file(self.open_file_func(self.path))

    def get_metadata(self) -> pq.FileMetaData:
        with self.open() as file:
            return file.metadata

    def read(self, columns: Iterable[str] | None = None, use_threads: bool = True,
             partitions: ParquetPartitions | None = None) -> pa.Table:
        """The rows of this piece; the columns of its hive folders come last, as dictionaries."""
        columns = None if columns is None else list(columns)
        with self.open() as file:
            if self.row_group is None:
                table = file.read(columns=columns, use_threads=use_threads)
            else:
                table = file.read_row_group(self.row_group, columns=columns, use_threads=use_threads)
        if self.partition_keys and partitions is None:
            raise ValueError(f"{self.path} lies in hive folders: pass the dataset's partitions to read it")
        for level, (name, index) in enumerate(self.partition_keys):
            indices = pa.array(np.full(table.num_rows, index, dtype=np.int32))
            values = pa.DictionaryArray.from_arrays(indices, partitions[level].dictionary)
            table = table.append_column(name, values)
        return table


class LegacyParquetDataset:
    """A Parquet folder, file or list of files as pieces, in the order of their paths.

    `paths` is what the caller named, without a protocol; `partitions` is None unless it names a folder. As in pyarrow
    14, `filters` choose hive folders only: a condition on a column of the files keeps every piece. Unlike there,
    values are unquoted as Spark quotes them (`x%3Ay` is `x:y`).
    """

    def __init__(self, path_or_paths: str | Sequence[str], filesystem: Any = None, *, validate_schema: bool = True,
                 filters: list | None = None, metadata_nthreads: int | None = None):
        """`metadata_nthreads` is accepted and not needed: a folder is listed in one call."""
        self.fs = _file_system(filesystem)
        several = not isinstance(path_or_paths, (str, Path))
        named = [self._without_protocol(path) for path in (path_or_paths if several else [path_or_paths])]
        self.paths: str | list[str] = named if several else named[0]
        self.metadata_path: str | None = None
        self.common_metadata_path: str | None = None
        self.partitions: ParquetPartitions | None = None
        if len(named) == 1 and self.fs.isdir(named[0]):
            self.pieces = self._pieces_of_folder(named[0])
        else:
            self.pieces = [self._piece_of_file(path) for path in named]
        if filters and self.partitions:
            self.pieces = [piece for piece in self.pieces if _accepts(piece, self.partitions, filters)]
        if validate_schema:
            self.validate_schemas()

    @cached_property
    def metadata(self) -> pq.FileMetaData | None:
        """What `_metadata` says of all row groups; None without that file."""
        return self._read_metadata(self.metadata_path)

    @cached_property
    def common_metadata(self) -> pq.FileMetaData | None:
        """What `_common_metadata` says of the schema; None without that file."""
        return self._read_metadata(self.common_metadata_path)

    @cached_property
    def schema(self) -> pq.ParquetSchema:
        return (self.common_metadata or self.metadata or self.pieces[0].get_metadata()).schema

    def read(self, columns: Iterable[str] | None = None, use_threads: bool = True) -> pa.Table:
        """All rows, in the order of the pieces."""
        return pa.concat_tables([piece.read(columns, use_threads, self.partitions) for piece in self.pieces])

    def validate_schemas(self) -> None:
        """ValueError when a file's columns are not those of the dataset, hive columns aside."""
        if not self.pieces:
            return
        hive = self.partitions.partition_names if self.partitions else set()
        expected = _without(self.schema.to_arrow_schema(), hive)
        for piece in self.pieces:
            found = _without(piece.get_metadata().schema.to_arrow_schema(), hive)
            if not found.equals(expected, check_metadata=False):
                raise ValueError(f"Schema in {piece.path} was different:\n{found}\n\nvs\n\n{expected}")

    def _without_protocol(self, path: str | Path) -> str:
        strip = getattr(self.fs, "_strip_protocol", str)
        return strip(str(path))

    def _piece_of_file(self, path: str) -> ParquetDatasetPiece:
        if not self.fs.isfile(path):
            raise OSError(f"Passed non-file path: {path}")
        return ParquetDatasetPiece(path, self.fs.open)

    def _pieces_of_folder(self, root: str) -> list[ParquetDatasetPiece]:
        levels: list[PartitionSet] = []
        depths: set[int] = set()
        pieces = []
        below_root = len(root.rstrip("/")) + 1
        for path in sorted(self.fs.find(root), key=lambda path: path.split("/")):
            *folders, name = path[below_root:].split("/")
            if not folders and name in ("_metadata", "_common_metadata"):
                setattr(self, name.removeprefix("_") + "_path", path)
            if any(part.startswith(("_", ".")) for part in (*folders, name)) or name.endswith((".crc", "_$folder$")):
                continue
            depths.add(len(folders))
            pieces.append(ParquetDatasetPiece(path, self.fs.open, partition_keys=_hive_keys(folders, levels)))
        if len(depths) > 1:
            raise ValueError(f"Found files in an intermediate directory: {root} holds files at depths {sorted(depths)}")
        self.partitions = ParquetPartitions(levels)
        return pieces

    def _read_metadata(self, path: str | None) -> pq.FileMetaData | None:
        if path is None:
            return None
        with self.fs.open(path, "rb") as source:
            return pq.read_metadata(source)


def _file_system(filesystem: Any) -> Any:
    if filesystem is None:
        return LocalFileSystem()
    if isinstance(filesystem, pa.fs.FileSystem):
        return ArrowFSWrapper(filesystem)
    return filesystem


def _parquet_file(source: Any) -> pq.ParquetFile:
    """Arrow reads its own files without the GIL, so take Arrow's file out of the wrapper that fsspec puts around it.

    Files that are not local are read ahead, a row group in a few large requests instead of one a column.
    """
    source = getattr(source, "stream", source) if not isinstance(source, pa.NativeFile) else source
    return pq.ParquetFile(source, pre_buffer=not isinstance(source, pa.OSFile))


def _hive_keys(folders: Sequence[str], levels: list[PartitionSet]) -> PartitionKeys:
    """Partition keys of a file in these folders; new names and values are added to `levels`."""
    keys = []
    for depth, folder in enumerate(folders):
        name, equals, value = folder.partition("=")
        if not equals:
            raise ValueError(f"Directory name did not appear to be a partition: {folder}")
        if depth == len(levels):
            levels.append(PartitionSet(unquote(name)))
        level = levels[depth]
        if level.name != unquote(name):
            raise ValueError(f"Folders of one level are partitioned by {level.name} and by {unquote(name)}")
        value = unquote(value)
        if value not in level.keys:
            level.keys.append(value)
        keys.append((level.name, level.keys.index(value)))
    return keys


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge, "in": lambda value, wanted: value in wanted, "not in": lambda value, wanted: value not in wanted,
}


def _accepts(piece: ParquetDatasetPiece, partitions: ParquetPartitions, filters: list) -> bool:
    """Whether any of the filters' conjunctions holds; a flat list of (name, operator, value) is one conjunction.

    Folder names are text, so a value is compared as the type that the filter's value has.
    """
    values = {name: partitions.value(level, index) for level, (name, index) in enumerate(piece.partition_keys)}
    conjunctions = [filters] if isinstance(filters[0][0], str) else filters

    def holds(name: str, symbol: str, wanted: Any) -> bool:
        example = next(iter(wanted)) if symbol in ("in", "not in") else wanted
        return _OPERATORS[symbol](type(example)(values[name]), wanted)

    return any(all(holds(*condition) for condition in conjunction if condition[0] in values)
               for conjunction in conjunctions)


def _without(schema: pa.Schema, names: set[str]) -> pa.Schema:
    return pa.schema([field for field in schema if field.name not in names])


def install() -> None:
    """Make `import petastorm` work here and in the processes of its process pool; a second call changes nothing."""
    if not hasattr(pq, "ParquetDatasetPiece"):
        _install_on_pyarrow()
    for name, value in {"unicode_": np.str_, "string_": np.bytes_, "float": float,
                        "in1d": lambda a, b, **options: np.isin(np.ravel(a), b, **options)}.items():
        if not hasattr(np, name):
            setattr(np, name, value)
    _start_workers_with_this()
    petastorm_threads.repair()


def _install_on_pyarrow() -> None:
    pa.ArrowIOError = pa.lib.ArrowIOError = OSError
    pa.LocalFileSystem, pa.HadoopFileSystem, pa.localfs = LocalFileSystem, HadoopFileSystem, LocalFileSystem()
    for name, members in {"filesystem": {"LocalFileSystem": LocalFileSystem},
                          "hdfs": {"HadoopFileSystem": HadoopFileSystem, "connect": HadoopFileSystem}}.items():
        module = types.ModuleType(f"pyarrow.{name}", f"Stand-in from {__name__}.")
        vars(module).update(members)
        sys.modules[module.__name__] = module
        setattr(pa, name, module)
    pq.PartitionSet, pq.ParquetPartitions, pq.ParquetDatasetPiece = PartitionSet, ParquetPartitions, ParquetDatasetPiece

    class ParquetDataset(pq.ParquetDataset):
        __doc__ = pq.ParquetDataset.__doc__

        def __new__(cls, *args: Any, **kwargs: Any):
            caller = sys._getframe(1).f_globals
            package = (caller.get("__package__") or caller.get("__name__") or "").partition(".")[0]
            return LegacyParquetDataset(*args, **kwargs) if package in LEGACY_CALLERS else object.__new__(cls)

    ParquetDataset.__module__, ParquetDataset.__qualname__ = "pyarrow.parquet", "ParquetDataset"
    pq.ParquetDataset = ParquetDataset


def _start_workers_with_this() -> None:
    """The process pool starts fresh interpreters that import petastorm first: have them call install() before."""
    from petastorm.workers_pool import exec_in_new_process, process_pool

    exec_in_new_process.exec_in_new_process = process_pool.exec_in_new_process = _exec_in_new_process


def _exec_in_new_process(func: Callable[..., Any], *args: Any, **kwargs: Any) -> subprocess.Popen:
    """Same as petastorm's function of this name, with install() called first in the new process."""
    import dill

    with tempfile.NamedTemporaryFile(suffix=".petastorm", delete=False) as call:
        dill.dump((func, args, kwargs), call)
    repository = str(Path(__file__).resolve().parents[1])
    start = f"import sys; sys.path.append({repository!r}); from {__name__} import run_worker; run_worker()"
    return subprocess.Popen([sys.executable, "-c", start, call.name])


def run_worker() -> None:
    """What a process of the pool runs: install(), then petastorm's own start of a worker."""
    install()
    runpy.run_module("petastorm.workers_pool.exec_in_new_process_entrypoint", run_name="__main__")
