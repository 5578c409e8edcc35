"""Horovod's own TorchEstimator on Spark: `fit_on_parquet`, which reads the files by petastorm.

    python -m benchmarks.training_peers.in_torch_estimator --snapshot DIR --steps N --batch 8192 --ranks RANKS

The estimator multiplies the learning rate by the number of ranks. A step is over when the loss is read; its update is
made when the next one begins. Horovod waits for other ranks by spinning (WaitAndClear in mpi_ops_v2.cc), so CPU time
holds the waiting too.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from horovod.spark.common.backend import SparkBackend
from horovod.spark.common.store import FilesystemStore
from horovod.spark.torch import TorchEstimator
from pyspark.sql import SparkSession
from torch import Tensor, nn

from benchmarks.training_peers import report
from benchmarks.training_peers.model import DLRM
from benchmarks.training_peers.snapshot import LABEL, Snapshot

ROOT = Path(__file__).parent.parent.parent

warnings.filterwarnings("ignore", category=FutureWarning)  # petastorm and Horovod on pyarrow 14 give one at every turn


class ColumnsToDLRM(nn.Module):
    """Takes what the estimator gives: a float tensor (B,) a column."""

    def __init__(self, snapshot: Snapshot, *, layers: str, sparse: bool) -> None:
        super().__init__()
        self.num_numbers = len(snapshot.numbers)
        self.dlrm = DLRM(self.num_numbers, snapshot.rows_of_tables, layers=layers, sparse=sparse)

    def forward(self, *columns_B: Tensor) -> Tensor:
        numbers_BN = torch.stack(columns_B[: self.num_numbers], dim=1)
        index_BF = torch.stack(columns_B[self.num_numbers :], dim=1).int()
        return self.dlrm(numbers_BN, index_BF)


class Store(FilesystemStore):
    def get_parquet_dataset(self, path: str) -> pq.ParquetDataset:
        # Repair: Horovod 0.28.1, which wants pyarrow < 11, asks for `pieces` and for a schema with `to_arrow_schema`.
        # Only pyarrow's legacy class has them, and pyarrow 14 gives it when it is asked for.
        return pq.ParquetDataset(self.get_localized_path(path), filesystem=self.fs, use_legacy_dataset=True)


def timed(folder: Path, warm_up: int, steps: int) -> Callable[..., Any]:
    """The estimator's own minibatch function, with a clock; after the last step every rank leaves its times."""
    clock = report.Clock(warm_up)

    def train_minibatch(*arguments: Any) -> Any:
        import horovod.torch as hvd
        from horovod.spark.torch.remote import _train_minibatch_fn

        outputs, loss = _train_minibatch_fn()(*arguments)
        clock.step_is_over(loss.item())
        if len(clock.ended_s) == warm_up + steps:
            (folder / f"rank-{hvd.rank()}.json").write_text(json.dumps(clock.times()))
        return outputs, loss

    return train_minibatch


def fit(given: Any, snapshot: Snapshot, scratch: Path) -> None:
    """One epoch of as many steps as are asked for."""
    sparse = snapshot.is_sparse(given.batch)
    torch.manual_seed(0)
    model = ColumnsToDLRM(snapshot, layers=given.layers, sparse=sparse)
    made = torch.optim.Adagrad if given.optimizer == "adagrad" else torch.optim.SGD
    threads = max(1, len(os.sched_getaffinity(0)) // given.ranks)
    settings = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    columns = [*snapshot.numbers, *snapshot.values]
    estimator = TorchEstimator(
        backend=SparkBackend(given.ranks, env=settings, stdout=sys.stderr, stderr=sys.stderr, verbose=1),
        store=Store(str(scratch / "store"), train_path=str(linked(snapshot, scratch))),
        model=model,
        optimizer=made(model.parameters(), lr=report.LEARNING_RATES[given.optimizer]),
        loss=nn.BCEWithLogitsLoss(),
        feature_cols=columns,
        label_cols=[LABEL],
        input_shapes=[[-1]] * len(columns),
        batch_size=given.batch,
        epochs=1,
        train_steps_per_epoch=given.warm_up + given.steps,
        train_minibatch_fn=timed(scratch, given.warm_up, given.steps),
        train_reader_num_workers=given.workers,
        reader_pool_type="thread",
        inmemory_cache_all=given.in_memory,
        random_seed=0,
        use_gpu=False,
        verbose=0,
    )
    estimator.fit_on_parquet()


def linked(snapshot: Snapshot, scratch: Path) -> Path:
    """A folder of links to the files: the estimator writes beside the folder that it reads."""
    folder = scratch / "train"
    folder.mkdir()
    for file in snapshot.files:
        (folder / file.name).symlink_to(file.resolve())
    return folder


def main() -> None:
    command = report.parser(__doc__ or "")
    command.add_argument("--ranks", type=int, default=1)
    command.add_argument("--workers", type=int, default=2, help="reading threads of each rank (2)")
    command.add_argument("--in-memory", action="store_true", help="all is read before the first step")
    given = command.parse_args(namespace=report.Arguments())
    # Spark's Python workers, and below them the ranks, import this package, by the interpreter of this environment.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    spark = (
        SparkSession.builder.appName("TorchEstimator")
        .master(f"local[{given.ranks}]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        fit(given, Snapshot.read(given.snapshot), scratch)
        found = [json.loads((scratch / f"rank-{rank}.json").read_text()) for rank in range(given.ranks)]
    more = {"workers": given.workers, "in_memory": given.in_memory, "spark_peak_rss_mb": round(report.usage()[1], 1)}
    report.print_line("torch_estimator", given, found, **more)
    spark.stop()


if __name__ == "__main__":
    main()
