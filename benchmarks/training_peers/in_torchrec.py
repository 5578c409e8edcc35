"""TorchRec's DLRM on the CPU: DistributedModelParallel over gloo, whole tables dealt out to the ranks.

    python -m torch.distributed.run --nproc-per-node RANKS -m benchmarks.training_peers.in_torchrec \\
        --snapshot DIR --steps N --batch 8192

--source memory trains on 16 batches that lie ready, again and again, which gives the speed of its step (and soon a loss
that tells nothing); --source parquet on what the loader makes of the files. The tables are FBGEMM's, whose backward
pass applies the optimizer. Row-wise sharding is not offered on CPUs, and data-parallel tables have no such optimizer.
TrainPipelineSparseDist, which sends the next batch's indices ahead, was no faster on two ranks of one machine.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor  # type: ignore[import-not-found]
from torchrec.datasets.utils import Batch as KeyedBatch  # type: ignore[import-not-found]
from torchrec.distributed import DistributedModelParallel  # type: ignore[import-not-found]
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # type: ignore[import-not-found]
from torchrec.distributed.planner import (  # type: ignore[import-not-found]
    EmbeddingShardingPlanner,
    ParameterConstraints,
    Topology,
)
from torchrec.models.dlrm import DLRM, DLRMTrain  # type: ignore[import-not-found]
from torchrec.optim import RowWiseAdagrad  # type: ignore[import-not-found]
from torchrec.optim.apply_optimizer_in_backward import (  # type: ignore[import-not-found]
    apply_optimizer_in_backward,
)
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper  # type: ignore[import-not-found]
from torchrec.optim.optimizers import in_backward_optimizer_filter  # type: ignore[import-not-found]

from benchmarks.training_peers import report
from benchmarks.training_peers.group import join
from benchmarks.training_peers.loader import Batch, batches
from benchmarks.training_peers.model import LAYERS, WIDTH
from benchmarks.training_peers.snapshot import Snapshot

BATCHES_IN_MEMORY = 16
CPU = torch.device("cpu")
OF_TABLES = {"adagrad": RowWiseAdagrad, "sgd": torch.optim.SGD}
OF_THE_REST = {"adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}

logging.getLogger("torchrec").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning)


class ToKeyed:
    """Turns the loader's indices (B, F) into TorchRec's, which lie feature by feature, each row a list of one."""

    def __init__(self, features: tuple[str, ...], batch_size: int) -> None:
        rows = len(features) * batch_size
        self._same_for_all = {
            "keys": list(features),
            "lengths": torch.ones(rows, dtype=torch.int64),
            "offsets": torch.arange(rows + 1),
            "stride": batch_size,
            "length_per_key": [batch_size] * len(features),
            "offset_per_key": list(range(0, rows + 1, batch_size)),
        }

    def __call__(self, batch: Batch) -> KeyedBatch:
        numbers_BN, index_BF, label_B = batch
        keyed = KeyedJaggedTensor(values=index_BF.t().flatten().long(), **self._same_for_all)
        return KeyedBatch(numbers_BN, keyed, label_B)


def sharded(snapshot: Snapshot, optimizer: str, layers: str, ranks: int) -> DistributedModelParallel:
    """The model, whose tables update themselves."""
    tables = [
        EmbeddingBagConfig(name=f"t_{name}", embedding_dim=WIDTH, num_embeddings=rows, feature_names=[name])
        for name, rows in zip(snapshot.values, snapshot.rows_of_tables, strict=True)
    ]
    bags = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    bottom, top = LAYERS[layers]
    model = DLRMTrain(DLRM(bags, len(snapshot.numbers), [*bottom, WIDTH], [*top, 1], dense_device=CPU))
    apply_optimizer_in_backward(OF_TABLES[optimizer], bags.parameters(), {"lr": report.LEARNING_RATES[optimizer]})
    whole_and_fused = ParameterConstraints(sharding_types=["table_wise"], compute_kernels=["fused"])
    planner = EmbeddingShardingPlanner(
        Topology(world_size=ranks, compute_device="cpu"),
        constraints={table.name: whole_and_fused for table in tables},
    )
    sharder = EmbeddingBagCollectionSharder()
    plan = planner.collective_plan(model, [sharder], dist.GroupMember.WORLD)
    return DistributedModelParallel(model, device=CPU, plan=plan, sharders=[sharder])


def optimizer_of(model: DistributedModelParallel, name: str) -> CombinedOptimizer:
    dense = dict(in_backward_optimizer_filter(model.named_parameters()))
    rate = report.LEARNING_RATES[name]
    of_dense = KeyedOptimizerWrapper(dense, lambda weights: OF_THE_REST[name](weights, lr=rate, fused=True))
    return CombinedOptimizer([model.fused_optimizer, of_dense])


def main() -> None:
    command = report.parser(__doc__ or "")
    command.add_argument("--source", choices=("memory", "parquet"), default="memory")
    command.add_argument("--workers", type=int, default=1, help="of each rank's DataLoader (1)")
    given = command.parse_args(namespace=report.Arguments())
    rank, ranks = join()

    snapshot = Snapshot.read(given.snapshot)
    torch.manual_seed(0)
    model = sharded(snapshot, given.optimizer, given.layers, ranks)
    optimizer = optimizer_of(model, given.optimizer)
    clock = report.Clock(given.warm_up)
    made = batches(snapshot, given.batch, rank=rank, ranks=ranks, workers=given.workers)
    rows: Iterator[KeyedBatch] = map(ToKeyed(snapshot.values, given.batch), made)
    if given.source == "memory":
        rows = itertools.cycle(list(itertools.islice(rows, BATCHES_IN_MEMORY)))
    for _ in range(given.warm_up + given.steps):
        optimizer.zero_grad()
        loss, _ = model(next(rows))
        loss.backward()
        optimizer.step()
        clock.step_is_over(loss.item())

    found: list = [None] * ranks
    dist.all_gather_object(found, clock.times())
    if rank == 0:
        report.print_line("torchrec", given, found, source=given.source, workers=given.workers)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
