"""Killed at random moments more than fifty times, a feed that goes on from its last state loses and repeats no row."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.feed import Feed
from training.reader import open_folder
from training.row_group_cache import RowGroupCache

KILLS = 60
FILES, GROUPS_PER_FILE, ROWS = 4, 10, 4_000
BATCH = 25
SECONDS_PER_BATCH = 0.003
ROOT = Path(__file__).parents[2]


def write_folder(folder: Path) -> None:
    """Row groups of unequal sizes with the ids 0 to ROWS - 1."""
    random_ = np.random.default_rng(0)
    cuts = np.sort(random_.choice(np.arange(1, ROWS), FILES * GROUPS_PER_FILE - 1, replace=False))
    groups = np.split(np.arange(ROWS), cuts)
    schema = pa.schema([pa.field("row_id", pa.int64(), nullable=False)])
    folder.mkdir()
    for number in range(FILES):
        with pq.ParquetWriter(folder / f"part-{number}.parquet", schema) as writer:
            for ids in groups[number * GROUPS_PER_FILE : (number + 1) * GROUPS_PER_FILE]:
                writer.write_table(pa.table({"row_id": ids}, schema))


def consume(data: str, cache: Path | None, log: Path, state: dict | None, rank: int, world_size: int) -> None:
    """A rank's process: the rest of the epoch, each batch acknowledged by one line with the state behind it."""
    kept = RowGroupCache(cache, max_bytes=20_000) if cache else None
    rows = open_folder(data, columns=["row_id"], cache=kept)
    feed = Feed(
        rows, batch_size_per_rank=BATCH, rank=rank, world_size=world_size, workers=1, seed=7, memory_bytes=20_000
    )
    if state is not None:
        feed.load_state_dict(state)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def acknowledge(row_ids: list[int]) -> None:
        line = json.dumps({"state": feed.state_dict(), "rows": row_ids}) + "\n"
        os.write(file, line.encode())
        os.fsync(file)

    for batch in feed:
        time.sleep(SECONDS_PER_BATCH)  # training on it
        acknowledge(batch["row_id"].tolist())
    acknowledge([])  # with the state at the beginning of the next epoch


@dataclass
class Acknowledged:
    """What the ranks wrote, over all of their lives."""

    state: dict | None = None
    epochs: dict[int, Counter[int]] = field(default_factory=dict)
    world_sizes: set[int] = field(default_factory=set)

    @property
    def epoch(self) -> int:
        return self.state["epoch"] if self.state else 0

    def take(self, logs: list[Path]) -> None:
        """Add the steps that every rank wrote; the others are done again."""
        lines = [[json.loads(line) for line in whole_lines(log)] for log in logs]
        steps = min(map(len, lines))
        for of_ranks in zip(*(of_rank[:steps] for of_rank in lines), strict=True):
            assert all(line["state"] == of_ranks[0]["state"] for line in of_ranks)
            self.epochs.setdefault(self.epoch, Counter()).update(row for line in of_ranks for row in line["rows"])
            self.state = of_ranks[0]["state"]


def whole_lines(log: Path) -> list[bytes]:
    return log.read_bytes().split(b"\n")[:-1] if log.exists() else []


def start(rank: int, *arguments: Any) -> int:
    """A child that consumes as this rank, forked: it starts in milliseconds, for all is imported."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        consume(*arguments[:-1], rank, arguments[-1])
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def uses_shared_memory(pid: int) -> bool:
    return "/dev/shm" in Path(f"/proc/{pid}/maps").read_text()


def soak(folder: str, seed: int) -> None:
    """Run ranks and kill them until KILLS are done, then let the epoch end; print what was acknowledged."""
    assert threading.active_count() == 1, "a fork would lose the other threads"
    scratch, chance, done = Path(folder), random.Random(seed), Acknowledged()
    kills = killed_at_work = shared = lives = 0
    world_size = 1
    while kills < KILLS or done.epochs.get(done.epoch):
        lives += 1
        if chance.random() < 0.3:
            world_size = chance.choice([1, 2, 3])
        done.world_sizes.add(world_size)
        cache = scratch / "cache" if chance.random() < 0.5 else None
        logs = [scratch / f"life-{lives}-rank-{rank}.log" for rank in range(world_size)]
        pids = [start(rank, str(scratch / "data"), cache, log, done.state, world_size) for rank, log in enumerate(logs)]
        if kills < KILLS:
            if chance.random() < 0.7:  # in the middle of its work, the others while it starts
                until = time.monotonic() + 20
                while not whole_lines(logs[0]) and time.monotonic() < until:
                    time.sleep(0.001)
            time.sleep(chance.uniform(0.005, 0.06))
            shared += sum(map(uses_shared_memory, pids))
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        ends = [os.waitpid(pid, 0)[1] for pid in pids]
        assert all(os.WIFSIGNALED(end) or os.WEXITSTATUS(end) == 0 for end in ends), "a rank failed: see above"
        was_killed = any(map(os.WIFSIGNALED, ends))
        kills += was_killed
        killed_at_work += was_killed and any(map(whole_lines, logs))
        done.take(logs)
    print(
        json.dumps(
            {
                "kills": kills,
                "killed_at_work": killed_at_work,
                "shared": shared,
                "lives": lives,
                "world_sizes": sorted(done.world_sizes),
                "epochs": [[sorted(rows.elements()), epoch] for epoch, rows in done.epochs.items()],
            }
        )
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_after_sixty_kills_every_row_was_acknowledged_exactly_once_and_nothing_is_left(tmp_path):
    write_folder(tmp_path / "data")
    before = {path: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    # A process of its own: forks need a parent without threads, and other tests may have started some.
    program = f"from {__name__} import soak; soak({str(tmp_path)!r}, seed=1)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["kills"] >= 60
    assert found["killed_at_work"] >= 30  # others were killed while they started
    assert found["world_sizes"] == [1, 2, 3]
    assert found["epochs"], "no epoch was ended"
    for rows, epoch in found["epochs"]:
        assert rows == list(range(ROWS)), f"epoch {epoch}"
    assert found["shared"] == 0
    assert {path: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before
    unfinished = list((tmp_path / "cache").glob("*.unfinished"))
    kept = list((tmp_path / "cache").glob("*.arrow"))
    assert len(unfinished) + len(kept) == len(list((tmp_path / "cache").iterdir()))
    for path in kept:
        with pa.memory_map(str(path)) as file:
            assert pa.ipc.open_file(file).read_all().column_names == ["row_id"]
