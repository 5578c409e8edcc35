"""NVTabular on the CPU: Categorify, LogOp, Normalize and FillMissing on Dask, shuffled by its writer.

Its values of equal count are in no order of ours, so a column's sums agree for train only, where such values weigh
the same.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks.spark_peers import job
from benchmarks.spark_peers.job import Phases

warnings.filterwarnings("ignore")

import dask  # type: ignore[import-not-found]  # noqa: E402
import nvtabular as nvt  # type: ignore[import-not-found]  # noqa: E402
from merlin.io import Shuffle  # type: ignore[import-not-found]  # noqa: E402
from nvtabular import ops  # noqa: E402

_PART_SIZE = "256MB"
_ROWS_PER_PART = 1_000_000


def cuts(files: list[Path]) -> list[int]:
    """The first moments of valid and of test."""
    times = np.concatenate([pq.read_table(file, columns=["time_ms"])["time_ms"].to_numpy() for file in files])
    places = [job.rank_of_cut(share, len(times)) - 1 for share in job.SHARES_BEFORE]
    return [int(np.partition(times, place)[place]) + 1 for place in places]


def split_by_time(events: Path, cuts_ms: list[int], folder: Path) -> dict[str, nvt.Dataset]:
    """Each split's rows in files of their own: Categorify takes neither a partition without rows nor an index with
    gaps, so the rows cannot be filtered on the way."""
    first_ms, last_ms = (0, *cuts_ms), (*cuts_ms, 1 << 62)
    found = {}
    for split, first, last in zip(job.SPLITS, first_ms, last_ms, strict=True):
        inside = (ds.field("time_ms") >= first) & (ds.field("time_ms") < last)
        scanner = ds.dataset(events, format="parquet").scanner(filter=inside)
        ds.write_dataset(
            scanner,
            folder / split,
            format="parquet",
            max_rows_per_file=_ROWS_PER_PART,
            max_rows_per_group=_ROWS_PER_PART,
            min_rows_per_group=_ROWS_PER_PART // 8,
        )
        found[split] = nvt.Dataset(str(folder / split), engine="parquet", part_size=_PART_SIZE, cpu=True)
    return found


def workflow(scratch: Path) -> nvt.Workflow:
    values = list(job.VALUES) >> ops.Categorify(freq_threshold=job.MIN_COUNT, out_path=str(scratch), dtype="int32")
    numbers = list(job.NUMBERS) >> ops.LogOp() >> ops.Normalize(out_dtype=np.float32) >> ops.FillMissing(fill_val=0)
    label = ["label"] >> ops.LambdaOp(lambda column: column.astype(np.float32), dtype=np.float32)
    kept = ["row_id", "time_ms"]
    return nvt.Workflow(kept + label + numbers + values)


def main() -> None:
    given = job.arguments(__doc__ or "")
    phase = Phases(given.out)
    dask.config.set(scheduler="threads", num_workers=len(os.sched_getaffinity(0)))
    files = sorted(given.events.rglob("*.parquet"))
    with phase("split"):
        splits = split_by_time(given.events, cuts(files), given.scratch / "splits")
    with phase("fit"):
        encoding = workflow(given.scratch)
        encoding.fit(splits["train"])
    with phase("vocabularies"):
        for c in job.VALUES:
            found = pd.read_parquet(given.scratch / "categories" / f"unique.{c}.parquet")
            (given.out / "vocab" / c).mkdir(parents=True)
            found.to_parquet(given.out / "vocab" / c / "part-0.parquet")
    for split, rows in splits.items():
        with phase(split):
            encoding.transform(rows).to_parquet(
                str(given.out / split),
                shuffle=Shuffle.PER_WORKER,
                out_files_per_proc=job.num_files(rows.num_rows),
                row_group_size=job.ROWS_PER_ROW_GROUP,
            )


if __name__ == "__main__":
    main()
