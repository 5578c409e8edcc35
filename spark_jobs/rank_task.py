"""What a barrier task does on its executor: agree with the others on who is which rank, and run that rank.

The rank is a process of its own, the very program that horovodrun would start. It never outlives its task: it ends
with the task's process (PR_SET_PDEATHSIG), and when the driver hangs up.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from pyspark import BarrierTaskContext, SparkFiles

from spark_jobs.rank_output import MOST_BYTES, Line

_NEEDED = ("horovod", "petastorm", "psutil", "pyarrow", "safetensors", "torch")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, kw_only=True)
class RankJob:
    """What all tasks are told: the program, where it works, and how to reach the driver."""

    module: str
    arguments: tuple[str, ...]
    folder: str
    """Where the command was given, from which relative paths lead; the same on every host."""
    code: str | None
    """The archive of our packages among Spark's files; None where they can be imported as it is."""
    driver: str
    port: int
    secret: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a task is: its machine, how the other tasks reach it, and the GPU that Spark gave it."""

    host: str
    interface: str
    address: str
    gpu: str | None


def run_rank(job: RankJob) -> Iterator[None]:
    """Run this task's rank to its end. Raises where it fails, which fails the stage and so ends the others."""
    context = BarrierTaskContext.get()
    task = context.partitionId()
    with closing(Line(job.driver, job.port, job.secret)) as line:
        if why := unfit(job):
            line.refuse(why)
            raise RuntimeError(why)
        places = [Place(**json.loads(text)) for text in context.allGather(json.dumps(asdict(_place(context, line))))]
        host, local_rank = places[task].host, [place.host for place in places[:task]].count(places[task].host)
        with _rendezvous(job, places) if task == 0 else nullcontext() as environments:
            mine: dict[str, str] = json.loads(context.allGather(json.dumps(environments))[0])[host][local_rank]
            mine |= gpus_of(host, places)
            exit_code = _run(job, mine, line)
            line.ended(int(mine["HOROVOD_RANK"]), exit_code)
            if exit_code != 0:
                raise RuntimeError(f"rank {mine['HOROVOD_RANK']} on {host} ended with exit code {exit_code}")
            context.barrier()  # the rendezvous is needed until the last rank has left
    return iter(())


def unfit(job: RankJob) -> str | None:
    """What this host lacks, and what to do; None where it lacks nothing."""
    host = socket.gethostname()
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        return (
            f"{sys.executable} on {host} lacks {', '.join(missing)}: ranks need the environment that `make setup` "
            "makes, on every worker at the path that PYSPARK_PYTHON or --conf spark.pyspark.python names."
        )
    if not Path(job.folder).is_dir():
        return (
            f"{host} has no folder {job.folder}, where this command was given and from which relative paths lead: "
            "give it in a folder that all hosts share, or in / with absolute paths."
        )
    return None


def _place(context: BarrierTaskContext, line: Line) -> Place:
    """Where this task is. The others reach it on its way to the driver, unless HOROVOD_GLOO_IFACE names another."""
    import psutil  # of the ranks' environment: a worker that only prepares data need not have it

    found = [
        (interface, one.address)
        for interface, addresses in psutil.net_if_addrs().items()
        for one in addresses
        if one.family == socket.AF_INET
    ]
    wanted, own = os.environ.get("HOROVOD_GLOO_IFACE"), line.own_address
    chosen = [pair for pair in found if (pair[0] == wanted if wanted else pair[1] == own)]
    if not chosen:
        what = f"interface {wanted}" if wanted else f"interface with the address {own}"
        raise RuntimeError(f"{socket.gethostname()} has no network {what}")
    gpus = context.resources().get("gpu")
    return Place(
        host=socket.gethostname(),
        interface=chosen[0][0],
        address=chosen[0][1],
        gpu=gpus.addresses[0] if gpus is not None else None,
    )


def gpus_of(host: str, places: Sequence[Place]) -> dict[str, str]:
    """Show each rank of a host the GPUs of all its ranks, in the order of local ranks.

    A rank takes the GPU numbered by its local rank, and NCCL wants to see those of its neighbours.
    """
    visible = [place.gpu for place in places if place.host == host and place.gpu is not None]
    return {"CUDA_VISIBLE_DEVICES": ",".join(visible)} if visible else {}


@contextmanager
def _rendezvous(job: RankJob, places: Sequence[Place]) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Horovod's rendezvous on this host; gives the ranks' environments by host."""
    command = [sys.executable, "-P", "-m", "training.rendezvous", "--address", places[0].address]
    interfaces = {place.host: place.interface for place in places}
    for host, ranks in Counter(place.host for place in places).items():
        command += ["--host", host, str(ranks), interfaces[host]]
    with _process(command, job, {}, stdin=subprocess.PIPE) as server:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())


def _run(job: RankJob, environment: Mapping[str, str], line: Line) -> int:
    """Run a rank and pass on what it prints; give its exit code, as a shell has it (128 and the signal)."""
    command = [sys.executable, "-P", "-m", job.module, *job.arguments]
    with _process(command, job, environment, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT) as rank:
        line.when_hung_up(lambda: _kill(rank))
        assert rank.stdout is not None
        while text := rank.stdout.readline(MOST_BYTES):
            line.say(text.decode(errors="replace").removesuffix("\n"))
        exit_code = rank.wait()
    return exit_code if exit_code >= 0 else 128 - exit_code


@contextmanager
def _process(
    command: Sequence[str], job: RankJob, environment: Mapping[str, str], *, stdin: int, stderr: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, with our packages, which ends at the end of this or of this process."""
    ours = [str(Path(SparkFiles.get(job.code)))] if job.code is not None else []
    path = os.pathsep.join([*ours, *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path, **quiet, **environment},
        cwd=job.folder,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )
    threading.Thread(target=_end_group_with, args=(process,), daemon=True).start()
    try:
        yield process
    finally:
        _kill(process)
        process.wait()


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_group_with(process: subprocess.Popen[bytes]) -> None:
    """What a process left behind would hold its output open."""
    process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
