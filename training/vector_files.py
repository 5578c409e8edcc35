"""Vectors that another model made of a snapshot's items: found as Parquet, checked, and put in the vocabulary's order.

Legend: I rows of the item vocabulary, R rows read at once, W numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from fsspec.spec import AbstractFileSystem
from numpy.typing import NDArray
from torch import Tensor

from schemas.bundle import VectorsOfItems
from schemas.errors import UserError
from schemas.features import NUM_RESERVED
from schemas.settings import digest_of
from schemas.storage import filesystem, sha256_of
from training.catalogue import Catalogue
from training.ranks import Ranks
from training.vector_rows import ITEM_ID, VECTOR, VectorRows, check_columns, rows_of


@dataclass(frozen=True, kw_only=True)
class GivenVectors:
    """By item_idx, zeros where an item has none."""

    vectors: Tensor
    """Shape (I, W), float32."""
    has_vector: Tensor
    """Shape (I,), uint8: 1 or 0."""
    digest: str
    ignored: int
    """Rows of items that the snapshot does not know."""

    @property
    def width(self) -> int:
        return int(self.vectors.shape[1])

    @property
    def covered(self) -> int:
        return int(self.has_vector.count_nonzero())

    def described(self) -> VectorsOfItems:
        return VectorsOfItems(width=self.width, digest=self.digest, covered=self.covered)

    def line(self) -> str:
        items = len(self.has_vector) - NUM_RESERVED
        return (
            f"item vectors of {self.width:,} numbers: {self.covered:,} of {items:,} items "
            f"({self.covered / items:.1%}) have one, the others share a learned one; "
            f"{self.ignored:,} rows are of no item of the snapshot"
        )


@dataclass(frozen=True)
class VectorFiles:
    """Parquet files with item_id and vector; one or those of a folder, hidden ones left out."""

    url: str
    fs: AbstractFileSystem
    paths: tuple[str, ...]
    digest: str
    """SHA-256 over the contents; of a folder over its files' names, too."""

    @classmethod
    def find(cls, url: str, ranks: Ranks) -> VectorFiles:
        """Look them up, and read them once for the digest; UserError where there are none."""
        try:
            fs, root = filesystem(url)
            is_folder = fs.isdir(root)
            listed = sorted(fs.find(root)) if is_folder or fs.exists(root) else []
        except Exception as error:  # refused, or no answer: the clients of object stores have errors of their own
            raise UserError(f"--item-vectors: {url} cannot be opened: {error}") from error
        start = root.strip("/")
        names = [path.strip("/").removeprefix(start).strip("/") for path in listed]
        paths = [path for path, name in zip(listed, names, strict=True) if not is_folder or _is_data(name)]
        if not paths:
            what = "the folder has no file that ends in .parquet" if is_folder else "there is no such file or folder"
            raise UserError(f"--item-vectors: {url}: {what}.")
        mine = bytearray()
        if ranks.rank == 0:  # for all ranks
            contents = {path.strip("/").removeprefix(start): sha256_of(fs, path) for path in paths}
            mine = bytearray.fromhex(digest_of(contents))
        digest = ranks.gather(np.frombuffer(mine, np.uint8), "item_vectors_digest").tobytes().hex()
        return cls(url, fs, tuple(paths), digest)

    def read(self, catalogue: Catalogue) -> GivenVectors:
        """Match by item_id. In memory: the table to be, the ids, and some thousands of rows.

        UserError names the file and row, or the item, for ids that are null or twice there, and for vectors that are
        missing, of another length than the first, or not finite.
        """
        places_R = self._places(catalogue.table)
        vectors_IW: NDArray[np.float32] | None = None
        has_vector_I = np.zeros(len(catalogue.table) + NUM_RESERVED, dtype=np.uint8)
        start = 0
        for part in self._rows([ITEM_ID, VECTOR]):
            width = None if vectors_IW is None else vectors_IW.shape[1]
            vectors_RW = part.vectors(width)
            if vectors_IW is None:
                vectors_IW = np.zeros((len(has_vector_I), vectors_RW.shape[1]), dtype=np.float32)
            place_R = places_R[start : start + len(vectors_RW)]
            start += len(place_R)
            known_R = place_R >= 0
            vectors_IW[place_R[known_R]] = vectors_RW[known_R]
            has_vector_I[place_R[known_R]] = 1
        assert vectors_IW is not None, "some row was matched"
        return GivenVectors(
            vectors=torch.from_numpy(vectors_IW),
            has_vector=torch.from_numpy(has_vector_I),
            digest=self.digest,
            ignored=int((places_R < 0).sum()),
        )

    def _rows(self, columns: list[str]) -> Iterator[VectorRows]:
        for path in self.paths:
            yield from rows_of(self.fs, path, columns)

    def _places(self, items: pa.Table) -> NDArray[np.int64]:
        """For each row of all files its item_idx, or -1; one hash join over the ids."""
        for path in self.paths:
            check_columns(self.fs, path)
        chunks = []
        for part in self._rows([ITEM_ID]):
            if part.ids.null_count:
                raise part.wrong(int(np.argmax(part.ids.is_null().to_numpy(zero_copy_only=False))), "has no item_id")
            chunks.append(part.ids)
        ids = pa.chunked_array(chunks, pa.large_string()).combine_chunks()
        counted = pc.value_counts(ids)
        twice = counted.filter(pc.greater(counted.field("counts"), 1))
        if len(twice):
            first = twice[0].as_py()
            raise UserError(
                f"--item-vectors: {self.url} has {first['counts']:,} rows of the item_id {first['values']!r}, and so "
                f"for {len(twice):,} items: leave one row an item."
            )
        known = items["item_id"].cast(pa.large_string()).combine_chunks()
        found = pc.index_in(ids, value_set=known)
        is_known = found.is_valid().to_numpy(zero_copy_only=False)
        if not is_known.any():
            such = f"{ids[0].as_py()!r} there and {known[0].as_py()!r} in the snapshot" if len(ids) else "it has no row"
            raise UserError(f"--item-vectors: {self.url} has no vector of any item of the snapshot: {such}.")
        places = np.full(len(ids), -1, dtype=np.int64)
        places[is_known] = items["item_idx"].to_numpy()[found.drop_null().to_numpy()]
        return places


def _is_data(name: str) -> bool:
    """By its path below the folder: Spark and others leave hidden files beside the data."""
    hidden = any(part.startswith(("_", ".")) for part in PurePosixPath(name).parts)
    return name.endswith(".parquet") and not hidden
