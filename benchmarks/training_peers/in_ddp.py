"""Plain torch: DistributedDataParallel over gloo, torch's DataLoader over the Parquet files.

    torchrun --nproc-per-node RANKS -m benchmarks.training_peers.in_ddp --snapshot DIR --steps N --batch 8192

The tables' gradient is the smaller of dense and sparse. Tried on two busy cores, CPU time of one thread: a step takes
about 400 ms, with dense and with sparse gradients, with one table and with 26 (within 3 %); torch.compile saves 2 to
4 % after 47 s of compiling. A batch costs 5 ms, or 7 by way of a worker; from a map-style dataset of all rows in
memory 7, or 13 by way of a worker. Arithmetic is float32, as everybody's here; bfloat16 by autocast halves a step.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.training_peers import report
from benchmarks.training_peers.group import join
from benchmarks.training_peers.loader import batches
from benchmarks.training_peers.model import DLRM
from benchmarks.training_peers.snapshot import Snapshot


def optimizers(model: nn.Module, name: str, *, sparse: bool) -> list[torch.optim.Optimizer]:
    """torch's fused kernels, one for all dense parameters; none takes sparse gradients."""
    made = torch.optim.Adagrad if name == "adagrad" else torch.optim.SGD
    tables = [weight for path, weight in model.named_parameters() if sparse and "tables." in path]
    others = [weight for path, weight in model.named_parameters() if not (sparse and "tables." in path)]
    rate = report.LEARNING_RATES[name]
    return [made(others, lr=rate, fused=True), *([made(tables, lr=rate)] if tables else [])]


def main() -> None:
    command = report.parser(__doc__ or "")
    command.add_argument("--workers", type=int, default=1, help="of each rank's DataLoader (1)")
    command.add_argument("--source", choices=("loader", "feed"), default="loader", help="or Headrace's feed (loader)")
    command.add_argument("--gradients", choices=("dense", "sparse"), help="of the tables (the smaller of the two)")
    given = command.parse_args(namespace=report.Arguments())
    rank, ranks = join()

    snapshot = Snapshot.read(given.snapshot)
    torch.manual_seed(0)
    sparse = given.gradients == "sparse" if given.gradients else snapshot.is_sparse(given.batch)
    dlrm = DLRM(len(snapshot.numbers), snapshot.rows_of_tables, layers=given.layers, sparse=sparse)
    model = DistributedDataParallel(dlrm, gradient_as_bucket_view=True, static_graph=True, forward_sync_buffers=False)
    optimised = optimizers(model, given.optimizer, sparse=sparse)
    loss_of = nn.BCEWithLogitsLoss()
    clock = report.Clock(given.warm_up)
    if given.source == "feed":
        from benchmarks.training_peers.headrace_feed import batches as of_feed

        rows = of_feed(given.snapshot, snapshot, given.batch, rank=rank, ranks=ranks)
    else:
        rows = batches(snapshot, given.batch, rank=rank, ranks=ranks, workers=given.workers)
    for _ in range(given.warm_up + given.steps):
        numbers, index, label = next(rows)
        for one in optimised:
            one.zero_grad()
        loss = loss_of(model(numbers, index), label)
        loss.backward()
        for one in optimised:
            one.step()
        clock.step_is_over(loss.item())

    found: list = [None] * ranks
    dist.all_gather_object(found, clock.times())
    if rank == 0:
        gradients = "sparse" if sparse else "dense"
        report.print_line("ddp", given, found, gradients=gradients, workers=given.workers, source=given.source)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
