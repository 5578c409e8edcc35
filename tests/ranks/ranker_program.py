"""Six steps of a ranker on fixed global batches, shared out over the ranks as they come; rank 0 writes what came out.

A rank that ends with threads of torch.distributed still under way exits with 3: they may abort it.

python -m tests.ranks.ranker_program SNAPSHOT OUT.json
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch

from schemas.snapshot import open_snapshot
from training.batch import Batch, to_columns
from training.optimizers import Optimizers
from training.programs import run
from training.ranks import Ranks
from training.recipe import read_recipe
from training.tasks import catalogue_of, fresh_model, task_of

CPU = torch.device("cpu")
ROWS = 90
UNEVEN = (0.0, 0.1, 0.7, 1.0)  # shares of a batch, of the first three ranks


def learn(
    ranks: Ranks, url: str, tables: str, rule: str, travels_as: torch.dtype = torch.float32
) -> dict[str, list[float]]:
    """The loss of each step, and at the end the logits of all rows."""
    snapshot = open_snapshot(url)
    settings = ["model.width=4", "model.top=[16]", f"model.tables={tables}", "optimizer.table_learning_rate=0.1"]
    settings.append(f"optimizer.table_optimizer={rule}")
    recipe, catalogue = read_recipe("dlrm", settings), catalogue_of(snapshot)
    model = fresh_model(snapshot, catalogue, recipe, ranks, CPU)
    task = task_of(model, snapshot, catalogue, recipe, ranks, CPU)
    optimizers, gradients = Optimizers(model, recipe.optimizer), ranks.summing(model, travels_as=travels_as)
    table = pq.read_table(Path(url) / "train" / "part-00000.parquet").select(list(task.columns))
    losses = []
    for step in range(6):
        rows = table.slice(step * ROWS, ROWS)
        # Unequal parts, and in the second step none at all for rank 0.
        ends = [int(share * ROWS) for share in UNEVEN] if ranks.size == 3 else [0, 20 * (step != 1), ROWS]
        part = rows if ranks.size == 1 else rows.slice(ends[ranks.rank], ends[ranks.rank + 1] - ends[ranks.rank])
        columns = to_columns(part, snapshot.transform.lengths)
        batch = Batch(columns=columns, positions=torch.arange(part.num_rows), global_rows=ROWS, step=step)
        optimizers.zero_grad()
        loss = task.loss_sum(batch, 0)
        (loss / ROWS).backward()
        gradients.wait()
        optimizers.step(step)
        losses.append(float(ranks.sum(loss.detach().reshape(1), "loss")) / ROWS)
    with torch.no_grad():
        every = to_columns(table, snapshot.transform.lengths)
        whole = Batch(columns=every, positions=torch.arange(table.num_rows), global_rows=table.num_rows, step=0)
        return {"losses": losses, "logits": model.eval()(whole).flatten().tolist()}


def exit_with_3_where_threads_are_left() -> None:
    left = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    if any("gloo" in name for name in left):
        print(f"ranker: threads are left at the end: {left}", file=sys.stderr, flush=True)
        os._exit(3)


def main() -> int:
    url, out = sys.argv[1:]
    if "HOROVOD_SIZE" not in os.environ:
        atexit.register(exit_with_3_where_threads_are_left)  # what is registered first runs last

    def work(ranks: Ranks) -> None:
        found = {
            f"{tables}, {rule}": learn(ranks, url, tables, rule)
            for tables in ("sharded", "replicated")
            for rule in ("adagrad", "adam")
        }
        found["half"] = learn(ranks, url, "replicated", "adagrad", torch.float16)
        if ranks.rank == 0:
            Path(out).write_text(json.dumps(found))

    return run("ranker", work)


if __name__ == "__main__":
    sys.exit(main())
