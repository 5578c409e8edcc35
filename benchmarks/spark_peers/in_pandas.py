"""pandas: everything in memory, one column after another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.spark_peers import job
from benchmarks.spark_peers.job import Phases


def cuts(times: np.ndarray) -> list[int]:
    """The first moments of valid and of test."""
    places = [job.rank_of_cut(share, len(times)) - 1 for share in job.SHARES_BEFORE]
    return [int(np.partition(times, place)[place]) + 1 for place in places]


def vocabulary(values: pd.Series) -> pd.DataFrame:
    """value, idx, count."""
    counts = values.value_counts()
    counts = counts[counts >= job.MIN_COUNT]
    frequent = pd.DataFrame({"value": counts.index.to_numpy(np.int32), "count": counts.to_numpy(np.int64)})
    frequent["text"] = frequent["value"].astype(str)
    frequent = frequent.sort_values(["count", "text"], ascending=[False, True], ignore_index=True)
    frequent["idx"] = np.arange(len(frequent), dtype=np.int32) + job.FIRST_IDX
    return frequent[["value", "idx", "count"]]


def indexed(values: pd.Series, entries: pd.DataFrame) -> np.ndarray:
    place = pd.Index(entries["value"]).get_indexer(values)
    index = np.where(place < 0, job.UNSEEN_IDX, place + job.FIRST_IDX).astype(np.int32)
    index[values.isna().to_numpy()] = job.NULL_IDX
    return index


def standardised(values: pd.Series, is_train: np.ndarray) -> np.ndarray:
    logs = np.log1p(values)
    train = logs[is_train]
    scaled = (logs - train.mean()) / (train.std(ddof=0) or 1.0)
    return scaled.fillna(0).to_numpy(np.float32)


def write(rows: pd.DataFrame, folder: Path) -> None:
    """In a random order, in files of equal size."""
    folder.mkdir()
    order = np.random.default_rng(job.SEED).permutation(len(rows))
    for number, places in enumerate(np.array_split(order, job.num_files(len(rows)))):
        rows.take(places).to_parquet(
            folder / f"part-{number:05d}.parquet",
            index=False,
            compression="lz4",
            use_dictionary=False,
            row_group_size=job.ROWS_PER_ROW_GROUP,
        )


def main() -> None:
    given = job.arguments(__doc__ or "")
    phase = Phases(given.out)
    (given.out / "vocab").mkdir()
    with phase("read"):
        times = pd.read_parquet(given.events, columns=["time_ms"])["time_ms"].to_numpy()
    with phase("fit"):
        valid_ms, test_ms = cuts(times)
        is_train = times < valid_ms
    done: dict[str, np.ndarray] = {"time_ms": times}
    for column in (*job.KEPT, *job.NUMBERS, *job.VALUES):
        if column in done:
            continue
        # A column at a time: read, fitted and encoded, so that only what is written is kept.
        with phase("read"):
            values = pd.read_parquet(given.events, columns=[column])[column]
        if column in job.NUMBERS:
            with phase("encode"):
                done[column] = standardised(values, is_train)
        elif column in job.VALUES:
            with phase("fit"):
                entries = vocabulary(values[is_train])
                (given.out / "vocab" / column).mkdir()
                entries.to_parquet(given.out / "vocab" / column / "part-0.parquet", compression="lz4", index=False)
            with phase("encode"):
                done[column] = indexed(values, entries)
        else:
            done[column] = values.to_numpy(np.float32 if column == "label" else None)
    splits = {"train": is_train, "valid": (times >= valid_ms) & (times < test_ms), "test": times >= test_ms}
    rows = pd.DataFrame({column: done.pop(column) for column in job.COLUMNS}, copy=False)
    for split, belongs in splits.items():
        with phase(split):
            write(rows[belongs], given.out / split)


if __name__ == "__main__":
    main()
