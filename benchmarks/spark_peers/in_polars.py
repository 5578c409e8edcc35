"""Polars: lazy frames on the streaming engine, from Parquet to Parquet, sorted through its spill files."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl  # type: ignore[import-not-found]

from benchmarks.spark_peers import job
from benchmarks.spark_peers.job import Phases

_SHARE_OF_MEMORY = 0.5  # the budget counts frames that can be spilled, not all that the process takes


def cuts(log: pl.LazyFrame) -> tuple[int, int]:
    """The first moments of valid and of test."""
    times = log.select("time_ms").collect(engine="streaming")["time_ms"].sort()
    valid, test = (times[job.rank_of_cut(share, len(times)) - 1] + 1 for share in job.SHARES_BEFORE)
    return valid, test


def vocabulary(train: pl.LazyFrame, column: str) -> pl.DataFrame:
    """value, idx, count."""
    counts = train.select(value=column).drop_nulls().group_by("value").agg(count=pl.len())
    return (
        counts.filter(pl.col("count") >= job.MIN_COUNT)
        .sort("count", pl.col("value").cast(pl.String), descending=[True, False])
        .with_row_index("idx", offset=job.FIRST_IDX)
        .select("value", pl.col("idx").cast(pl.Int32), pl.col("count").cast(pl.Int64))
        .collect(engine="streaming")
    )


def encoded(rows: pl.LazyFrame, vocabularies: dict[str, pl.DataFrame], moments: dict[str, float]) -> pl.LazyFrame:
    numbers = [
        ((pl.col(i).log1p() - moments[f"{i}_mean"]) / (moments[f"{i}_std"] or 1.0)).fill_null(0).cast(pl.Float32)
        for i in job.NUMBERS
    ]
    values = [
        pl.when(pl.col(c).is_null())
        .then(job.NULL_IDX)
        .otherwise(
            pl.col(c).replace_strict(
                vocabularies[c]["value"], vocabularies[c]["idx"], default=job.UNSEEN_IDX, return_dtype=pl.Int32
            )
        )
        .cast(pl.Int32)
        .alias(c)
        for c in job.VALUES
    ]
    return rows.select("row_id", "time_ms", pl.col("label").cast(pl.Float32), *numbers, *values)


def write(rows: pl.LazyFrame, folder: Path) -> None:
    rows.sort(pl.col("row_id").hash(job.SEED)).sink_parquet(
        pl.PartitionBy(folder, max_rows_per_file=job.ROWS_PER_FILE, approximate_bytes_per_file=None),
        compression="lz4",
        row_group_size=job.ROWS_PER_ROW_GROUP,
        mkdir=True,
        engine="streaming",
    )


def main() -> None:
    given = job.arguments(__doc__ or "")
    # Read when the first query runs.
    os.environ["POLARS_OOC_MEMORY_BUDGET_MB"] = str(round(given.memory_mb * _SHARE_OF_MEMORY))
    os.environ["POLARS_OOC_SPILL_DIR"] = str(given.scratch)
    phase = Phases(given.out)
    log = pl.scan_parquet(given.events / "**/*.parquet")
    with phase("fit"):
        valid, test = cuts(log)
        train = log.filter(pl.col("time_ms") < valid)
        logs = {i: pl.col(i).log1p() for i in job.NUMBERS}
        moments = train.select(
            *(x.mean().alias(f"{i}_mean") for i, x in logs.items()),
            *(x.std(ddof=0).alias(f"{i}_std") for i, x in logs.items()),
        ).collect(engine="streaming")
        vocabularies = {c: vocabulary(train, c) for c in job.VALUES}
    with phase("vocabularies"):
        for c, values in vocabularies.items():
            (given.out / "vocab" / c).mkdir(parents=True)
            values.write_parquet(given.out / "vocab" / c / "part-0.parquet", compression="lz4")
    splits = {
        "train": train,
        "valid": log.filter(pl.col("time_ms").is_between(valid, test, closed="left")),
        "test": log.filter(pl.col("time_ms") >= test),
    }
    for split, rows in splits.items():
        with phase(split):
            write(encoded(rows, vocabularies, moments.row(0, named=True)), given.out / split)


if __name__ == "__main__":
    main()
