"""The feed, and the plain Arrow scan that is its limit, as processes that make a pass for every line they get.

    python -m benchmarks.feed_own scan|headrace --data DIR --threads T [--batch-size B] [--rank R --world-size W]
    python -m benchmarks.feed_own resume --data DIR --batch-size B
    python -m benchmarks.feed_own order --data DIR --to FILE

They answer as benchmarks/feed_peers/worker.py does. `resume` says how long a new process takes to its first batch in
the middle of an epoch, `order` writes the `row_id`s of an epoch in the order in which they came.
"""

from __future__ import annotations

import argparse
import gc
import json
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from training.feed import Feed
from training.programs import keep_freed_memory
from training.reader import open_folder


def scan(folder: Path, *, threads: int) -> Callable[[], int]:
    """Every row group of the files as an Arrow table, in order, by as many threads; no shuffle, no torch."""
    paths = sorted(str(path) for path in folder.glob("*.parquet"))
    footers = {path: pq.read_metadata(path) for path in paths}

    def one_pass() -> int:
        waiting: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        for path, footer in footers.items():
            for number in range(footer.num_row_groups):
                waiting.put((path, number))
        counts = [0] * threads

        def read(thread: int) -> None:
            files: dict[str, pq.ParquetFile] = {}
            while True:
                try:
                    path, number = waiting.get_nowait()
                except queue.Empty:
                    return
                if path not in files:
                    files[path] = pq.ParquetFile(pa.OSFile(path), metadata=footers[path])
                counts[thread] += files[path].read_row_group(number, use_threads=False).num_rows

        running = [threading.Thread(target=read, args=(thread,)) for thread in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return sum(counts)

    return one_pass


def headrace(feed: Feed) -> Callable[[], int]:
    """An epoch of the feed; each column of each batch is looked at as a tensor."""

    def one_pass() -> int:
        rows = 0
        for batch in feed:
            assert all(len(batch[name]) == batch.num_rows for name in batch.columns)
            rows += batch.num_rows
        return rows

    return one_pass


def answer(one_pass: Callable[[], int]) -> None:
    """The protocol: a warm-up, then one pass a line."""
    print(json.dumps({"ready": True, "rows": one_pass()}), flush=True)
    process = psutil.Process()
    for _ in sys.stdin:
        cpu_before, began = time.process_time(), time.perf_counter()
        rows = one_pass()
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_before
        rss_mb = process.memory_info().rss / 1e6
        print(json.dumps({"rows": rows, "seconds": seconds, "cpu_s": cpu_s, "rss_mb": rss_mb}), flush=True)


def resume(folder: Path, *, batch_size: int) -> None:
    """Seconds to the first batch in the middle of an epoch, since the files were opened and since the process began."""
    opened = time.time()
    feed = Feed(open_folder(str(folder)), batch_size_per_rank=batch_size)
    state = feed.state_dict()
    state["step"] = len(feed) // 2
    feed.load_state_dict(state)
    next(iter(feed))
    now = time.time()
    began = psutil.Process().create_time()
    print(json.dumps({"rows": feed.rows.num_rows, "since_opening_s": now - opened, "since_start_s": now - began}))


def order(folder: Path, to: Path, *, batch_size: int, num_lanes: int | None) -> None:
    feed = Feed(open_folder(str(folder), columns=["row_id"]), batch_size_per_rank=batch_size, num_lanes=num_lanes)
    np.save(to, np.concatenate([batch["row_id"].numpy() for batch in feed]))


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("what", choices=("scan", "headrace", "resume", "order"))
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--to", type=Path)
    command.add_argument("--lanes", type=int)
    command.add_argument("--threads", type=int, default=1)
    command.add_argument("--batch-size", type=int, default=16384)
    command.add_argument("--memory-mb", type=int, default=512)
    command.add_argument("--rank", type=int, default=0)
    command.add_argument("--world-size", type=int, default=1)
    given = command.parse_args()
    keep_freed_memory()
    gc.freeze()
    if given.what == "scan":
        answer(scan(given.data, threads=given.threads))
    elif given.what == "order":
        order(given.data, given.to, batch_size=1000, num_lanes=given.lanes)
    elif given.what == "resume":
        resume(given.data, batch_size=given.batch_size)
    else:
        feed = Feed(
            open_folder(str(given.data)),
            batch_size_per_rank=given.batch_size,
            rank=given.rank,
            world_size=given.world_size,
            workers=given.threads,
            memory_bytes=given.memory_mb << 20,
        )
        answer(headrace(feed))


if __name__ == "__main__":
    main()
