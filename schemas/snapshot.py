"""Opening a published folder, finding its files, and proving that it is whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.spec import AbstractFileSystem

from schemas.errors import LedgerError, SnapshotDamaged, UserError
from schemas.features import FeatureTransform
from schemas.manifest import MANIFEST, SPLITS, DataFile, Kind, Manifest
from schemas.settings import parse_model
from schemas.storage import filesystem, join, sha256_of


@dataclass(frozen=True)
class Snapshot:
    """A published folder and its manifest."""

    url: str
    manifest: Manifest

    @property
    def transform(self) -> FeatureTransform:
        assert self.manifest.transform is not None, "only a snapshot has features"
        return self.manifest.transform

    def files(self, part: str) -> tuple[DataFile, ...]:
        return self.manifest.parts.get(part, ())

    def file_url(self, file: DataFile) -> str:
        return join(self.url, file.path)

    def read(self, part: str, columns: list[str] | None = None) -> pa.Table:
        """Read a whole part into memory: for vocabularies, items and other small tables."""
        fs, root = filesystem(self.url)
        tables = [pq.read_table(join(root, file.path), columns=columns, filesystem=fs) for file in self.files(part)]
        if not tables:
            raise UserError(f"{self.url}: there is no part {part!r}; it has {', '.join(self.manifest.parts)}.")
        # Files of several versions of a contract may lack a column, or hold it in a narrower type.
        return pa.concat_tables(tables, promote_options="permissive")

    def read_schema(self, part: str) -> pa.Schema:
        """The columns of a part, of its first file."""
        fs, root = filesystem(self.url)
        with fs.open(join(root, self.files(part)[0].path), "rb") as file:
            return pq.read_schema(file)

    def verify(self, *, checksums: bool = True, progress: Callable[[str], None] = lambda path: None) -> None:
        """Prove that every file is there, whole and unchanged, and that the ledger adds up over the files.

        Raises SnapshotDamaged naming the file and the numbers, or LedgerError naming the sums. The row groups are
        compared with each file's footer, for what a rank reads is planned from the manifest's.
        `checksums=False` compares sizes only, which needs no reading.
        """
        fs, root = filesystem(self.url)
        for files in self.manifest.parts.values():
            for file in files:
                path = join(root, file.path)
                progress(file.path)
                if not fs.exists(path):
                    raise SnapshotDamaged(f"{self.url}: {file.path} is missing; it held {file.rows:,} rows.")
                size = fs.size(path)
                if size != file.bytes:
                    raise SnapshotDamaged(
                        f"{self.url}: {file.path} has {size:,} bytes, the manifest says {file.bytes:,} "
                        f"({file.rows:,} rows): it was cut short or written again."
                    )
                if checksums and (found := sha256_of(fs, path)) != file.sha256:
                    raise SnapshotDamaged(
                        f"{self.url}: {file.path} was changed: its SHA-256 is {found[:16]}..., "
                        f"the manifest says {file.sha256[:16]}... ({file.rows:,} rows)."
                    )
                if checksums and (row_groups := _row_groups(fs, path)) != file.row_groups:
                    raise SnapshotDamaged(
                        f"{self.url}: {file.path} has {sum(row_groups):,} rows in row groups of {_short(row_groups)}, "
                        f"the manifest says {file.rows:,} in {_short(file.row_groups)}: the manifest was changed."
                    )
        self._check_ledger()

    def _check_ledger(self) -> None:
        ledger = self.manifest.ledger
        ledger.check()
        if self.manifest.kind == "snapshot":
            assert ledger.splits is not None
            promised = {split: getattr(ledger.splits, split) for split in SPLITS}
        else:
            promised = {name: table.accepted for name, table in ledger.tables.items()}
        for part, rows in promised.items():
            if (found := self.manifest.rows(part)) != rows:
                raise LedgerError(f"{self.url}: {part} holds {found:,} rows, the ledger says {rows:,}.")


def _row_groups(fs: AbstractFileSystem, path: str) -> tuple[int, ...]:
    with fs.open(path, "rb") as file:
        footer = pq.read_metadata(file)
    return tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups))


def _short(row_groups: tuple[int, ...]) -> str:
    return " + ".join(f"{rows:,}" for rows in row_groups[:4]) + (" + ..." if len(row_groups) > 4 else "")


def open_snapshot(url: str, *, kind: Kind = "snapshot") -> Snapshot:
    """Open a published folder; UserError where there is none, or where it is of another kind."""
    fs, root = filesystem(url)
    try:
        text = fs.cat_file(join(root, MANIFEST)).decode(errors="replace")  # then it is no JSON, and said to be damaged
    except (FileNotFoundError, NotADirectoryError):
        text = None
    except Exception as error:  # refused, or no answer: the clients of object stores have errors of their own
        raise UserError(f"{url} cannot be opened: {error}") from error
    return snapshot_of(url, text, kind=kind)


def snapshot_of(url: str, text: str | None, *, kind: Kind) -> Snapshot:
    """The published folder whose manifest reads `text`; None stands for a folder without one."""
    if text is None:
        raise UserError(
            f"{url} is no published folder: it has no {MANIFEST}. Was the job that writes it interrupted? "
            "Run it again: it clears what it left and starts afresh."
        )
    try:
        content = json.loads(text)
    except ValueError as error:
        raise SnapshotDamaged(f"{url}: {MANIFEST} is not JSON: {error}") from None
    manifest = parse_model(Manifest, content, where=f"{url}/{MANIFEST}")
    if manifest.kind != kind:
        job = {"events": "ingest", "served": "feedback"}.get(kind, "prepare")
        raise UserError(f"{url} holds {manifest.kind!r}, and {kind!r} is wanted: give what `headrace {job}` wrote.")
    return Snapshot(url=url, manifest=manifest)
