"""What the programs of this package share: ranks, cores, one voice for all ranks."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from functools import partial

import torch

from schemas.errors import CheckpointNotWritten, LedgerError, LossNotFinite, SnapshotDamaged, UserError
from schemas.programs import TRIAL, answering_mistakes
from training.horovod_ranks import ElasticRanks
from training.ranks import Ranks, start_ranks

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


_OF_ONE_RANK = (SnapshotDamaged, LedgerError, LossNotFinite, CheckpointNotWritten)


def run(name: str, work: Callable[[Ranks], None]) -> int:
    """Run `work` on this rank; give the exit code.

    Of a mistake in what was asked for rank 0 speaks for all; damaged data, or a loss that is no number, may be met by
    one rank alone, which says so.
    """
    share_cores()
    keep_freed_memory()
    gc.freeze()  # what the imports made is not looked through again at each collection: a twentieth of the feed's time
    ranks = start_ranks()

    def speaks(error: UserError) -> bool:
        return ranks.rank == 0 or isinstance(error, _OF_ONE_RANK)

    # Elastic ranks do the work anew whenever some have died or come.
    whole = partial(ranks.carry_out, work) if isinstance(ranks, ElasticRanks) else partial(work, ranks)
    return answering_mistakes(name, whole, speaks=speaks)


def share_cores() -> None:
    """Divide the machine's cores among its ranks: left alone, torch takes all of them for every rank.

    OMP_NUM_THREADS, where it is set, is the user's own choice and stays; but torchrun itself sets it to 1 for several
    ranks, however many cores there are, where a search has not set it for its trial.
    """
    by_torchrun = "LOCAL_WORLD_SIZE" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    by_torchrun = by_torchrun and TRIAL not in os.environ
    if "OMP_NUM_THREADS" in os.environ and not by_torchrun:
        return
    local_ranks = int(os.environ.get("HOROVOD_LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))


def keep_freed_memory() -> None:
    """Have glibc reuse large blocks: given back after each batch, they cost page faults for every batch anew.

    An epoch of the demo's two-tower: 187,000 page faults and 0.54 s of system time before, 11,000 and 0.06 s after.
    Elsewhere than on glibc nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def speaker(name: str, ranks: Ranks) -> Callable[[str], None]:
    """Prints a line, on rank 0 only."""

    def say(line: str) -> None:
        if ranks.rank == 0:
            print(f"{name}: {line}", flush=True)

    return say


def device() -> torch.device:
    """The GPU of this rank where there is one."""
    # With its number: the feed's thread, which has a current device of its own, copies to it too.
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
