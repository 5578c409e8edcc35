"""Where logs land as Parquet: KIND/day=YYYY-MM-DD/SEGMENT.parquet, and a ledger that says what is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.durable import make_folder, sync_folder, write_whole
from schemas.errors import UserError
from schemas.landed import LEDGER, Landed
from schemas.served import Kind
from schemas.version import now_utc
from serving.log_rows import by_day

_ROW_GROUP_BYTES = 32 << 20


class ParquetDays:
    """A folder of days. A segment's files have its name, so that landing it again writes the same files again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def landed(self, kind: Kind, segment: str) -> Landed | None:
        try:
            return Landed.model_validate_json(self._entry(kind, segment).read_bytes())
        except FileNotFoundError:
            return None

    def land(
        self,
        kind: Kind,
        segment: str,
        *,
        records: int,
        xxh3_128: str,
        read: Callable[[], Iterator[pa.Table]],
        known: int = 0,
    ) -> Landed:
        """Write the rows by day, then the ledger's entry; killed before the entry, nothing has landed.

        Raises LedgerError where the rows do not make up the records, UserError where the disk does not take them.
        """
        drafts: dict[str, _Draft] = {}
        try:
            for table in read():
                for day, rows in by_day(table):
                    if day not in drafts:
                        drafts[day] = _Draft(self.folder / kind / f"day={day}" / f"{segment}.parquet", table.schema)
                    drafts[day].write(rows)
            counts = {day: draft.close() for day, draft in sorted(drafts.items())}
            entry = Landed(
                kind=kind,
                segment=segment,
                records=records,
                xxh3_128=xxh3_128,
                rows=counts,
                known=known,
                landed_at=now_utc(),
            )
            entry.check()
            for draft in drafts.values():
                draft.publish()
            make_folder(self._entry(kind, segment).parent)
            write_whole(self._entry(kind, segment), entry.model_dump_json(indent=1).encode())
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written to: {error}. The same command goes on.") from None
        finally:
            for draft in drafts.values():
                draft.discard()
        return entry

    def _entry(self, kind: Kind, segment: str) -> Path:
        return self.folder / LEDGER / kind / f"{segment}.json"


class _Draft:
    """One day's file under a name that Spark and pyarrow leave out, until it is whole."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        make_folder(path.parent)
        self.path, self._draft = path, path.with_name(f".{path.name}.draft")
        self._file: BinaryIO = self._draft.open("wb")
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = self._rows = 0

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._waiting_bytes += table.nbytes
        if self._waiting_bytes >= _ROW_GROUP_BYTES:
            self._write_row_group()

    def close(self) -> int:
        """Bring the file to the disk; give its rows, as the file itself has them."""
        self._write_row_group()
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        return pq.read_metadata(self._draft).num_rows

    def publish(self) -> None:
        self._draft.replace(self.path)
        sync_folder(self.path.parent)

    def discard(self) -> None:
        """Let go of the file; a draft that was not published goes away."""
        with suppress(OSError):  # What it holds back does not fit on a full disk either.
            self._file.close()
        self._draft.unlink(missing_ok=True)

    def _write_row_group(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
            self._waiting, self._waiting_bytes = [], 0
