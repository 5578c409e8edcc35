"""Gives petastorm 0.13.1, unpatched, what pyarrow 15 and 16 and numpy 2 took away from under it.

petastorm reads through three things that pyarrow dropped: `pyarrow.filesystem`, `pyarrow.hdfs` and the
first `ParquetDataset`, which lists a folder as *pieces*. This file builds the small part of them that
petastorm asks for, on fsspec and `pyarrow.parquet.ParquetFile`. `install()` puts them in place, and does
nothing to a pyarrow that still has them; it also applies the repairs of petastorm_threads. Call it before the
first `import petastorm`. Spark's Python processes need it too where petastorm's functions run in them, as in
its `materialize_dataset`.

Today's pyarrow stays as it is for everyone else: `pq.read_table`, and so `pandas.read_parquet`, look their
dataset class up in `pyarrow.parquet.core`, which is not touched, and `pq.ParquetDataset` is the old class
only for code of the packages in LEGACY_CALLERS.
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

LEGACY_CALLERS = {"petastorm", "horovod"}  # top-level packages written for the dataset class of old

PartitionKeys = list[tuple[str, int]]  # one (column name, index into that level's values) a folder level


class _SharedLock(type(local.LocalFileSystem)):  # type: ignore[misc]
    """fsspec gives each class a lock; with one of its own, a class made in a function cannot go to Spark."""

    def __init__(cls, *definition: Any):
        super().__init__(*definition)
        if "_instantiation_lock" in vars(cls):
            cls._instantiation_lock = local.LocalFileSystem._instantiation_lock


class LocalFileSystem(local.LocalFileSystem, metaclass=_SharedLock):
    """Local files as fsspec lists them; reading goes through Arrow's own file, which lets go of the GIL."""

    cachable = False

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "rb":
            return pa.OSFile(self._strip_protocol(path), "rb")
        return super().open(path, mode, **options)


class ArrowFileSystem(ArrowFSWrapper):
    """A file system of today's pyarrow as fsspec lists it; reading goes through Arrow's own file as well."""

    cachable = False

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "rb":
            return self.fs.open_input_file(self._strip_protocol(path))
        return super().open(path, mode, **options)


class HadoopFileSystem:
    """HDFS through libhdfs. petastorm derives a class that tries the next name node when a method fails here.

    `get_capacity` and a few others are there to be derived from; pyarrow no longer offers them.
    """

    def __init__(self, host: str = "default", port: int = 0, user: str | None = None, **options: Any):
        self._hdfs = ArrowFileSystem(pa.fs.HadoopFileSystem(host, port, user=user, **options))


def _method_of_hdfs(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._hdfs, name)(*args, **kwargs)

    method.__name__ = name  # petastorm's failover asks for it
    return method


_METHODS_OF_HDFS = """cat chmod chown delete df disk_usage download exists find get_capacity get_space_used
    info isdir isfile ls mkdir mv open rename rm stat upload walk"""
for _name in _METHODS_OF_HDFS.split():
    setattr(HadoopFileSystem, _name, _method_of_hdfs(_name))


class PartitionSet:
    """One level of hive folders: its column name and the values seen, in the order of the listing."""

    def __init__(self, name: str, keys: Iterable[str] = ()):
        self.name = name
        self.keys = list(keys)
        self.key_indices = {key: index for index, key in enumerate(self.keys)}

    def get_index(self, key: str) -> int:
        """The place of a value in `keys`; a new one is added."""
        if key not in self.key_indices:
            self.key_indices[key] = len(self.keys)
            self.keys.append(key)
        return self.key_indices[key]

    @property
    def dictionary(self) -> pa.Array:
        """The values as int64 when every one of them is a whole number, otherwise as strings."""
        try:
            return pa.array([int(key) for key in self.keys], pa.int64())
        except ValueError:
            return pa.array(self.keys, pa.string())


class ParquetPartitions(list[PartitionSet]):
    """The levels of hive folders, outermost first; empty, and so false, for a folder without any."""

    @property
    def partition_names(self) -> set[str]:
        return {level.name for level in self}


class ParquetDatasetPiece:
    """One file, or one row group of it, with the values that its hive folders give to its rows."""

    def __init__(
        self,
        path: str,
        open_file_func: Callable[[str], Any] | None = None,
        row_group: int | None = None,
        partition_keys: PartitionKeys | None = None,
    ):
        self.path = path
        self.open_file_func = open_file_func or LocalFileSystem().open
        self.row_group = row_group
        self.partition_keys = partition_keys or []
        self._footer: pq.FileMetaData | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ParquetDatasetPiece) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple:
        return self.path, self.row_group, tuple(self.partition_keys)

    def open(self) -> pq.ParquetFile:
        source = self.open_file_func(self.path)
        # What is not local is read ahead: a row group in a few large requests instead of one a column.
        return pq.ParquetFile(source, pre_buffer=not isinstance(source, pa.OSFile))

    def get_metadata(self) -> pq.FileMetaData:
        """The file's footer, read once."""
        if self._footer is None:
            with self.open() as file:
                self._footer = file.metadata
        return self._footer

    def read(
        self,
        columns: Iterable[str] | None = None,
        use_threads: bool = True,
        partitions: ParquetPartitions | None = None,
    ) -> pa.Table:
        """The rows of this piece; the columns of its hive folders come last, as dictionaries."""
        if self.partition_keys and partitions is None:
            raise ValueError(f"{self.path} lies in hive folders: pass the dataset's partitions to read it")
        columns = None if columns is None else list(columns)
        with self.open() as file:
            row_groups = range(file.num_row_groups) if self.row_group is None else [self.row_group]
            table = file.read_row_groups(row_groups, columns=columns, use_threads=use_threads)
        for level, (name, index) in zip(partitions or (), self.partition_keys, strict=False):
            indices = pa.array(np.full(table.num_rows, index, dtype=np.int32))
            table = table.append_column(name, pa.DictionaryArray.from_arrays(indices, level.dictionary))
        return table


class LegacyParquetDataset:
    """A Parquet folder, file or list of files as pieces; those of a folder in the order of their paths.

    `paths` is what the caller named, without a protocol; `partitions` is None unless that is a folder. As on
    pyarrow 14, `filters` choose hive folders only: a condition on a column of the files keeps every piece.
    Unlike there, folder names are unquoted, as Spark quotes them (`x%3Ay` is `x:y`).
    """

    def __init__(
        self,
        path_or_paths: str | Sequence[str],
        filesystem: Any = None,
        *,
        validate_schema: bool = True,
        filters: list | None = None,
        metadata_nthreads: int | None = None,  # a folder is listed in one call, without threads
    ):
        is_arrow = isinstance(filesystem, pa.fs.FileSystem)
        self.fs = ArrowFileSystem(filesystem) if is_arrow else filesystem or LocalFileSystem()
        strip_protocol = getattr(self.fs, "_strip_protocol", str)
        is_one = isinstance(path_or_paths, str | Path)
        named = [strip_protocol(str(path)) for path in ([path_or_paths] if is_one else path_or_paths)]
        self.paths: str | list[str] = named[0] if is_one else named
        self.metadata_path: str | None = None
        self.common_metadata_path: str | None = None
        self.partitions: ParquetPartitions | None = None
        if len(named) == 1 and self.fs.isdir(named[0]):
            self.partitions = ParquetPartitions()
            self.pieces = self._pieces_of_folder(named[0], self.partitions)
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

        def schema_of_file(schema: pq.ParquetSchema) -> pa.Schema:
            hive = self.partitions.partition_names if self.partitions else set()
            return pa.schema([field for field in schema.to_arrow_schema() if field.name not in hive])

        for piece in self.pieces:
            expected, found = schema_of_file(self.schema), schema_of_file(piece.get_metadata().schema)
            if not found.equals(expected):
                raise ValueError(f"Schema in {piece.path} was different:\n{found}\n\nvs\n\n{expected}")

    def _piece_of_file(self, path: str) -> ParquetDatasetPiece:
        if not self.fs.isfile(path):
            raise OSError(f"Passed non-file path: {path}")
        return ParquetDatasetPiece(path, self.fs.open)

    def _pieces_of_folder(self, root: str, partitions: ParquetPartitions) -> list[ParquetDatasetPiece]:
        pieces = []
        for path in sorted(self.fs.find(root), key=lambda path: path.split("/")):
            below_root = path.strip("/").removeprefix(root.strip("/")).strip("/").split("/")
            if below_root in (["_metadata"], ["_common_metadata"]):
                setattr(self, f"{below_root[0][1:]}_path", path)
            if any(part.startswith(("_", ".")) or part.endswith((".crc", "_$folder$")) for part in below_root):
                continue
            keys = _partition_keys(below_root[:-1], partitions)
            pieces.append(ParquetDatasetPiece(path, self.fs.open, partition_keys=keys))
        if any(len(piece.partition_keys) != len(partitions) for piece in pieces):
            raise ValueError(f"Found files in an intermediate directory of {root}: move them to the innermost")
        return pieces

    def _read_metadata(self, path: str | None) -> pq.FileMetaData | None:
        if path is None:
            return None
        with self.fs.open(path, "rb") as source:
            return pq.read_metadata(source)


def _partition_keys(folders: Sequence[str], partitions: ParquetPartitions) -> PartitionKeys:
    """The keys of a file in these folders; levels and values not seen before are added to `partitions`."""
    keys = []
    for depth, folder in enumerate(folders):
        name, equals, value = map(unquote, folder.partition("="))
        if not equals:
            raise ValueError(f"Directory name did not appear to be a partition: {folder}")
        if depth == len(partitions):
            partitions.append(PartitionSet(name))
        level = partitions[depth]
        if level.name != name:
            raise ValueError(f"Folders of one level are partitioned by {level.name} and by {name}")
        keys.append((name, level.get_index(value)))
    return keys


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    **{"=": operator.eq, "==": operator.eq, "!=": operator.ne},
    **{"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge},
    **{"in": lambda value, wanted: value in wanted, "not in": lambda value, wanted: value not in wanted},
}


def _accepts(piece: ParquetDatasetPiece, partitions: ParquetPartitions, filters: list) -> bool:
    """Whether any of the filters' conjunctions holds; a flat list of (name, comparison, value) is one.

    Folder names are text, so they are compared as the type that the filter's value has.
    """
    texts = {name: level.keys[i] for level, (name, i) in zip(partitions, piece.partition_keys, strict=True)}
    conjunctions = [filters] if isinstance(filters[0][0], str) else filters

    def holds(name: str, comparison: str, wanted: Any) -> bool:
        kind = type(next(iter(wanted)) if comparison in ("in", "not in") else wanted)
        return name not in texts or _COMPARISONS[comparison](kind(texts[name]), wanted)

    return any(all(holds(*condition) for condition in conjunction) for conjunction in conjunctions)


def install() -> None:
    """Make `import petastorm` work, here and in the processes of its pool; a second call changes nothing."""
    if not hasattr(pq, "ParquetDatasetPiece"):
        _install_in_pyarrow()
    names = {"unicode_": np.str_, "string_": np.bytes_, "float": float, "in1d": _in1d}
    for name, value in names.items():
        if not hasattr(np, name):
            setattr(np, name, value)

    from petastorm.workers_pool import exec_in_new_process, process_pool

    exec_in_new_process.exec_in_new_process = process_pool.exec_in_new_process = _exec_in_new_process
    petastorm_threads.repair()


def _in1d(values: Any, wanted: Any, **options: Any) -> np.ndarray:
    return np.isin(np.ravel(values), wanted, **options)


def _install_in_pyarrow() -> None:
    pa.ArrowIOError = pa.lib.ArrowIOError = OSError
    pa.LocalFileSystem, pa.HadoopFileSystem, pa.localfs = LocalFileSystem, HadoopFileSystem, LocalFileSystem()
    pa.filesystem, pa.hdfs = types.ModuleType("pyarrow.filesystem"), types.ModuleType("pyarrow.hdfs")
    pa.filesystem.LocalFileSystem = LocalFileSystem
    pa.hdfs.HadoopFileSystem = pa.hdfs.connect = HadoopFileSystem
    sys.modules |= {"pyarrow.filesystem": pa.filesystem, "pyarrow.hdfs": pa.hdfs}

    class ParquetDataset(pq.ParquetDataset):
        __doc__ = pq.ParquetDataset.__doc__

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1).f_globals
            package = (caller.get("__package__") or caller.get("__name__") or "").partition(".")[0]
            return LegacyParquetDataset(*args, **kwargs) if package in LEGACY_CALLERS else object.__new__(cls)

    ParquetDataset.__module__, ParquetDataset.__qualname__ = "pyarrow.parquet", "ParquetDataset"
    pq.ParquetDataset, pq.ParquetDatasetPiece = ParquetDataset, ParquetDatasetPiece
    pq.PartitionSet, pq.ParquetPartitions = PartitionSet, ParquetPartitions


def _exec_in_new_process(func: Callable[..., Any], *args: Any, **kwargs: Any) -> subprocess.Popen:
    """petastorm's start of a pool's process, a fresh interpreter, which here calls install() first of all."""
    import dill  # type: ignore[import-untyped]

    with tempfile.NamedTemporaryFile(suffix=".petastorm", delete=False) as call:
        dill.dump((func, args, kwargs), call)
    repository = str(Path(__file__).resolve().parents[1])
    start = f"import sys; sys.path.append({repository!r}); from {__name__} import run_worker; run_worker()"
    return subprocess.Popen([sys.executable, "-c", start, call.name])


def run_worker() -> None:
    """What a process of the pool runs: install(), then petastorm's own entry point."""
    install()
    runpy.run_module("petastorm.workers_pool.exec_in_new_process_entrypoint", run_name="__main__")
