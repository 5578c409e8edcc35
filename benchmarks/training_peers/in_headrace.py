"""Headrace's own training, timed: epochs from the files, and as many steps on one batch held in memory, in turn.

    horovodrun -np RANKS --gloo python -m benchmarks.training_peers.in_headrace --snapshot DIR --layers small
    horovodrun -np RANKS --gloo python -m benchmarks.training_peers.in_headrace --tables 1,16,256 --policy sharded

The first prints one line of JSON. An epoch is training.loop's own, with its counting and its ledger. The second times
one table of each size (MB): look-up, gradient, update; and gives the memory of a rank.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.training_peers import report
from benchmarks.training_peers.model import LAYERS
from schemas.snapshot import open_snapshot
from training.checkpoint import Progress
from training.embeddings.placement import place_tables
from training.embeddings.tables import EmbeddingTables
from training.loop import Trainer
from training.programs import device, run
from training.ranks import Ranks
from training.recipe import read_recipe
from training.step_clock import PhaseClock
from training.tasks import catalogue_of, fresh_model, task_of

_TABLE_WIDTH, _IDS, _WARM_UP = 16, 8192, 5


def speed(ranks: Ranks, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of epochs and of as many steps in memory, alternating; the first of each is a warm-up."""
    bottom, top = LAYERS[given.layers]
    settings = [f"batch_size_per_rank={given.batch}", f"model.bottom={[*bottom]}", f"model.top={[*top]}"]
    settings += [f"precision={given.precision}", f"model.width={given.width}", f"model.tables={given.policy}"]
    snapshot, recipe = open_snapshot(given.snapshot), read_recipe("dlrm", settings)
    catalogue = catalogue_of(snapshot)
    model = fresh_model(snapshot, catalogue, recipe, ranks, device())
    task = task_of(model, snapshot, catalogue, recipe, ranks, device())
    trainer = Trainer(task=task, snapshot=snapshot, recipe=recipe, ranks=ranks, device=device(), say=lambda line: None)
    ranks.start_alike(model)
    stepper, feed = trainer.stepper(), trainer.feed("train", ("row_id", *task.columns))
    held = replace(next(iter(trainer.feed("train", ("row_id", *task.columns)))).to(device()), step=0)
    steps, rows = feed.plan().num_steps, snapshot.manifest.rows("train")
    epochs, in_memory, waited = [], [], []
    for epoch in range(given.runs + 1):
        clock = PhaseClock(torch.device("cpu"))
        feed_of = _Clocked(feed, clock)
        began = time.perf_counter()
        trainer.train_epoch(feed_of, stepper, Progress(epochs_done=epoch))  # type: ignore[arg-type]
        _all_done(ranks)
        epochs.append(time.perf_counter() - began)
        waited.append(clock.seconds["feed"])
        model.train()
        began = time.perf_counter()
        for number in range(steps):
            stepper.step([held], epoch=epoch, number=number)
        _all_done(ranks)
        in_memory.append((time.perf_counter() - began) * rows / (steps * held.global_rows))
    memory = ranks.sum(torch.tensor([report.usage()[1]], dtype=torch.float64), "peak_rss")  # of all ranks, as peers do
    from_files, step = statistics.median(epochs[1:]), statistics.median(in_memory[1:])
    return {
        "ranks": ranks.size,
        "layers": given.layers,
        "precision": given.precision,
        "batch_per_rank": given.batch,
        "samples_per_s": round(rows / from_files, 1),
        "samples_per_s_in_memory": round(rows / step, 1),
        "feed_share": round(statistics.median(b / a for a, b in zip(epochs[1:], in_memory[1:], strict=True)), 4),
        "waits_for_feed": round(statistics.median(w / e for w, e in zip(waited[1:], epochs[1:], strict=True)), 4),
        "steps": steps,
        "epochs_s": [round(seconds, 3) for seconds in epochs],
        "in_memory_s": [round(seconds, 3) for seconds in in_memory],
        "peak_rss_mb": round(float(memory), 1),
    }


class _Clocked:
    """The feed, whose batches are waited for by the clock."""

    def __init__(self, feed: Any, clock: PhaseClock) -> None:
        self._feed, self._clock = feed, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)

    def __len__(self) -> int:
        return len(self._feed)

    def __iter__(self) -> Any:
        batches = iter(self._feed)
        while True:
            with self._clock.within("feed"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def tables(ranks: Ranks, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One table of each size: milliseconds a step, and this rank's memory; ids are drawn with a long tail."""
    if given.cap_mb:
        resource.setrlimit(resource.RLIMIT_DATA, (given.cap_mb << 20, given.cap_mb << 20))
    found = []
    for mb in given.tables:
        rows = int(mb * 1e6) // (4 * _TABLE_WIDTH)
        ids = {"table": _IDS}
        planned = place_tables({"table": rows}, width=_TABLE_WIDTH, ids_per_step=ids, world_size=ranks.size)
        placed = place_tables(
            {"table": rows}, width=_TABLE_WIDTH, ids_per_step=ids, world_size=ranks.size, policy=given.policy
        )
        one = EmbeddingTables({"id": "table"}, _TABLE_WIDTH, placed, ranks, seed=0, device=device())
        gradients = ranks.summing(one.train())
        random, seconds = np.random.default_rng(ranks.rank), []
        for _ in range(_WARM_UP + given.steps):
            drawn = np.exp(random.random(_IDS) * np.log(rows)).astype(np.int64)  # the r-th comes 1/r as often
            index = {"id": torch.from_numpy(drawn).to(device())}
            _all_done(ranks)
            began = time.perf_counter()
            one.zero_grad()
            one(index).square().sum().backward()
            gradients.wait()
            one.update(0.05)
            _all_done(ranks)
            seconds.append(time.perf_counter() - began)
        found.append(
            {
                "ranks": ranks.size,
                "mb": mb,
                "rows": rows,
                "policy": given.policy,
                "planner": "sharded" if planned.tables[0].is_sharded else "replicated",
                "step_ms": round(statistics.median(seconds[_WARM_UP:]) * 1000, 3),
                "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
                "cap_mb": given.cap_mb,
            }
        )
        del one, gradients
    return found


def _all_done(ranks: Ranks) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    ranks.sum(torch.zeros(1), "all_done")


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--snapshot", help="folder that `headrace prepare` published")
    command.add_argument("--layers", choices=tuple(LAYERS), default="small")
    command.add_argument("--batch", type=int, default=8192, help="rows of a rank's batch (8192)")
    command.add_argument("--width", type=int, default=16, help="of an embedding (16)")
    command.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    command.add_argument("--runs", type=int, default=3, help="epochs that count, after one to warm up (3)")
    command.add_argument("--tables", type=lambda text: [float(mb) for mb in text.split(",")], help="MB, with commas")
    command.add_argument("--policy", choices=("auto", "sharded", "replicated"), default="auto")
    command.add_argument("--steps", type=int, default=20, help="of each table (20)")
    command.add_argument("--cap-mb", type=int, default=0, help="most data memory of a rank's process (0: no cap)")
    given = command.parse_args(arguments)

    def work(ranks: Ranks) -> None:
        found = tables(ranks, given) if given.tables else [speed(ranks, given)]
        if ranks.rank == 0:
            for line in found:
                print(json.dumps(line), flush=True)

    return run("training-own", work)


if __name__ == "__main__":
    sys.exit(main())
