"""Fewer rows than a Parquet folder holds, in files of the same layout, for loaders that read Parquet."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.feed_peers.rows import Rows


def convert(rows: Rows, out: Path) -> None:
    """Write the rows in one file, with the row groups, compression and encodings of the first file of `rows`."""
    metadata = pq.read_metadata(rows.files[0])
    column = metadata.row_group(0).column(0)
    with pq.ParquetWriter(
        out / "part-0.parquet",
        rows.schema,
        compression=column.compression.lower().removesuffix("_raw"),
        use_dictionary=column.has_dictionary_page,
        store_schema=False,
    ) as writer:
        for table in rows.tables():
            writer.write_table(pa.table(table.columns, schema=rows.schema), metadata.row_group(0).num_rows)
