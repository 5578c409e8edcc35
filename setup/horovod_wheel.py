"""Builds Horovod's wheel for this environment's torch, once, and prints the path of the kept wheel.

Horovod publishes no wheels, and one that was built for another torch does not load, so ours are kept by
what they were built for: `<cache>/wheels/<key>/`. Horovod's sources are not patched:
`horovod/toolchain.cmake` has CMake read `horovod/cxx20.cmake`. Run by the environment's own Python, which
must hold torch already; only the standard library is used. Progress goes to stderr, the path to stdout.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HOROVOD_VERSION = "0.28.1"
TOOLCHAIN = Path(__file__).resolve().parent / "horovod"
POLL_S = 1.0
REPORT_EVERY_S = 30.0
BYTES_PER_COMPILER = 2 * 1024**3


@dataclass(frozen=True)
class Nccl:
    """Where nvcc and NCCL are: the folder over bin/nvcc, nccl.h's folder, and the library itself."""

    cuda_home: Path
    include: Path
    library: Path


@dataclass(frozen=True)
class Target:
    """What a wheel is built for; two targets with the same key may share a wheel."""

    torch_version: str  # with its local part, such as 2.13.0+cpu
    with_mpi: bool
    nccl: Nccl | None

    @property
    def key(self) -> str:
        digest = hashlib.sha256()
        for file in sorted(TOOLCHAIN.iterdir()):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return "-".join(
            [
                f"horovod{HOROVOD_VERSION}",
                f"torch{self.torch_version}",
                f"cp{sys.version_info.major}{sys.version_info.minor}",
                f"{sys.platform}_{platform.machine()}",
                "nccl" if self.nccl else "nonccl",
                "mpi" if self.with_mpi else "nompi",
                digest.hexdigest()[:12],
            ]
        )


def main() -> int:
    target = current_target()
    cache = cache_folder()
    kept = cache / "wheels" / target.key
    kept.parent.mkdir(parents=True, exist_ok=True)
    with only_one_at_a_time(cache / "wheels" / f"{target.key}.lock"):
        if not only_wheel(kept):
            build(target, kept, log=cache / "logs" / f"{target.key}.log")
        else:
            say(f"kept wheel found: {kept.name}")
    print(only_wheel(kept))
    return 0


def cache_folder() -> Path:
    if "HEADRACE_CACHE" in os.environ:
        return Path(os.environ["HEADRACE_CACHE"]).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"


def current_target() -> Target:
    try:
        import torch
    except ImportError as error:
        raise SystemExit(f"torch must be installed before Horovod is built for it: {error}") from error
    return Target(
        torch_version=torch.__version__,
        with_mpi=os.environ.get("HEADRACE_WITH_MPI") == "1",
        nccl=find_nccl() if torch.version.cuda else None,
    )


def find_nccl() -> Nccl | None:
    """nvcc with NCCL's header and library, or None; the NCCL that comes with torch is looked at last."""
    cuda_home = find_cuda_home()
    if cuda_home is None:
        say("torch has CUDA, but there is no nvcc: Horovod is built without NCCL")
        return None
    given = os.environ.get("HOROVOD_NCCL_HOME")
    roots = [Path(given)] if given else []
    roots += [cuda_home, Path("/usr/local"), Path("/usr")]
    roots += [Path(entry) / "nvidia" / "nccl" for entry in sys.path if entry]
    for root in roots:
        folders = [root / "lib", root / "lib64", root / "lib" / f"{platform.machine()}-linux-gnu"]
        libraries = [
            folder / name for folder in folders for name in ("libnccl.so", "libnccl.so.2") if (folder / name).exists()
        ]
        if (root / "include" / "nccl.h").exists() and libraries:
            return Nccl(cuda_home, root / "include", libraries[0])
    say("torch has CUDA, but NCCL's nccl.h and libnccl.so are not there: Horovod is built without NCCL")
    return None


def find_cuda_home() -> Path | None:
    for name in ("HOROVOD_CUDA_HOME", "CUDA_HOME"):
        home = os.environ.get(name)
        if home and (Path(home) / "bin" / "nvcc").exists():
            return Path(home)
    for nvcc in (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if nvcc and Path(nvcc).exists():
            home_of_nvcc = Path(nvcc).resolve().parent.parent
            if (home_of_nvcc / "include" / "cuda_runtime.h").exists():
                return home_of_nvcc
    return None


@contextmanager
def only_one_at_a_time(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is building this wheel: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def only_wheel(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("*.whl"))), None) if folder.is_dir() else None


def build(target: Target, kept: Path, *, log: Path) -> None:
    """Build in a folder beside `kept` and rename it there, so that a broken build is never found."""
    say(f"building Horovod {HOROVOD_VERSION} for torch {target.torch_version}; log: {log}")
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".building-") as name:
        scratch = Path(name)
        (scratch / "wheel").mkdir()
        # --no-cache-dir: pip's own cache of built wheels does not know which torch they were built for.
        command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-build-isolation"]
        command += ["--no-cache-dir", "--no-binary", "horovod", "--wheel-dir", str(scratch / "wheel")]
        command += [f"horovod=={HOROVOD_VERSION}"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=build_environment(target, scratch),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                elapsed_s = watch(process, log)
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if process.returncode != 0 or not only_wheel(scratch / "wheel"):
            raise SystemExit(
                f"Horovod's build failed after {elapsed_s:.0f} s (pip's exit status {process.returncode}). "
                f"The first errors in its log, {log}:\n{first_errors(log)}"
            )
        shutil.rmtree(kept, ignore_errors=True)
        (scratch / "wheel").rename(kept)
    say(f"built in {elapsed_s:.0f} s")


def build_environment(target: Target, scratch: Path) -> dict[str, str]:
    environment = dict(os.environ)
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "TMPDIR": str(scratch),
        "PYTHONUNBUFFERED": "1",
        "MAKEFLAGS": f"-j{num_compilers()}",
        "CMAKE_TOOLCHAIN_FILE": str(TOOLCHAIN / "toolchain.cmake"),
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",  # CMake 4 refuses the minimum that Horovod's gloo names
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITH_MPI" if target.with_mpi else "HOROVOD_WITHOUT_MPI": "1",
    }
    if target.nccl:
        environment |= {
            "HOROVOD_GPU": "CUDA",
            "HOROVOD_GPU_OPERATIONS": "NCCL",
            "HOROVOD_CUDA_HOME": str(target.nccl.cuda_home),
            # torch's build flags name CUDA's libraries, and take /usr/local for its home where nvcc is a link there.
            "CUDA_HOME": str(target.nccl.cuda_home),
            "HOROVOD_NCCL_INCLUDE": str(target.nccl.include),
            "HOROVOD_NCCL_LIB": str(linkable_nccl(target.nccl, scratch)),
            "HOROVOD_NCCL_LINK": "SHARED",
        }
    return environment


def linkable_nccl(nccl: Nccl, scratch: Path) -> Path:
    """A folder with a `libnccl.so`: the NCCL that comes with torch has only `libnccl.so.2`."""
    folder = scratch / "nccl"
    folder.mkdir()
    (folder / "libnccl.so").symlink_to(nccl.library)
    return folder


def num_compilers() -> int:
    """One per core, and no more than the memory holds."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory_bytes // BYTES_PER_COMPILER))


def watch(process: subprocess.Popen[bytes], log: Path) -> float:
    """Say how far the build is until it ends: in place on a terminal, else a line every half minute."""
    begin_s = time.monotonic()
    reported_s = begin_s
    in_place = sys.stderr.isatty()
    while process.poll() is None:
        time.sleep(POLL_S)
        now_s = time.monotonic()
        line = f"Horovod's build: {now_s - begin_s:4.0f} s, {percent_built(log)}"
        if in_place:
            print(f"\r    {line}   ", end="", file=sys.stderr, flush=True)
        elif now_s - reported_s >= REPORT_EVERY_S:
            say(line)
            reported_s = now_s
    if in_place:
        print(file=sys.stderr)
    return time.monotonic() - begin_s


def percent_built(log: Path) -> str:
    """The last percentage that CMake's make printed."""
    found = re.findall(rb"\[ *(\d+)%\]", log.read_bytes())
    return f"{int(found[-1])} %" if found else "configuring"


def first_errors(log: Path) -> str:
    """The first errors of the compiler, CMake or pip, or, where there are none, the log's end."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    errors = [line for line in lines if re.search(r"\berror: |CMake Error|^ERROR:", line)]
    return "\n".join(f"    {line}" for line in (errors[:12] or lines[-12:]))


def say(text: str) -> None:
    print(f"    {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
