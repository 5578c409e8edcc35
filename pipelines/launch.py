"""Starting the programs of the other packages: Spark jobs under spark-submit, training under horovodrun or torchrun."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NoReturn

from pipelines import profiles
from pipelines.elastic import Elastic
from schemas.errors import UserError

ROOT = Path(__file__).parent.parent
# Spark makes one method of a stage's joins; the JVM would interpret what has over 8,000 bytes of code.
_COMPILE_LARGE_METHODS = "-XX:-DontCompileHugeMethods"
# Little data ends before what the JVM's second compiler makes of the code has paid for itself. With one compiler Java
# reserves 48 MB for code, which a plan of many columns fills: the job then ends with an error of the JVM.
FOR_SMALL_DATA, _SMALL_BYTES = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m", 16 << 20
# Written by setup/spark_archive.py. Java says nothing where it is of no use, as with a jar put before Spark's own.
_CLASS_ARCHIVE = Path(sys.prefix) / "spark.jsa"
_USE_ARCHIVE = f"-XX:SharedArchiveFile={_CLASS_ARCHIVE} -Xlog:cds=off -Xlog:cds+dynamic=off"
_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
Launcher = Literal["horovod", "torch"]
_SHIPPED = ("schemas", "spark_jobs")
SECRETS = ("PGPASSWORD", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""Variables that horovodrun, which hands a rank its environment as arguments, would show to everybody on its host."""
_RANK_ENDED = re.compile(r"^Process \d+ exit with status code (\d+)\.")
_BY_SIGNAL, _BY_WATCHDOG = 128, 75  # a shell's codes above 128; training.watchdog's
_RANK_PREFIX = re.compile(r"^\[\d+\]<std(out|err)>:")


def spark_submit(
    job: str,
    arguments: Sequence[str],
    *,
    master: str | None = None,
    conf: Sequence[str] = (),
    profile: str | None = None,
) -> int:
    """Run spark_jobs/jobs/<job>.py under spark-submit; give its exit code.

    Without a master it is local[*], and Spark's log is kept to errors. To a cluster our code goes with --py-files.
    A profile is read after the site's own defaults; `conf` and `master` win over it.
    """
    command = [_program("spark-submit")]
    given = dict(setting.split("=", 1) for setting in conf if "=" in setting)
    if profile is not None:
        file = profiles.find(profile)
        given = profiles.settings(file) | given
        profiles.make_event_folder(given)
        # spark-submit would read the file in place of conf/spark-defaults.conf, where a site says where its things are.
        command += ["--properties-file", str(file), "--load-spark-defaults"]
    master = master or given.get("spark.master")
    # Spark draws its bar on a terminal only; in a file it would be thousands of characters.
    shows_progress = "true" if sys.stderr.isatty() else "false"
    memory = [] if not is_local(master) or _names_memory(given) else [f"spark.driver.memory={_quarter_of_memory()}"]
    for setting in (f"spark.ui.showConsoleProgress={shows_progress}", *memory, *conf):
        command += ["--conf", setting]
    with tempfile.TemporaryDirectory(prefix="headrace-") as scratch:
        if not is_local(master):
            command += ["--py-files", str(zip_of_code(Path(scratch) / "headrace.zip", _SHIPPED))]
        if master is not None:
            command += ["--master", master]
        log_settings = f"-Dlog4j2.configurationFile={ROOT / 'spark_jobs' / 'log4j2.properties'}"
        # Spark puts these before the extraJavaOptions of a profile or --conf, which would replace one another.
        options = [log_settings, _COMPILE_LARGE_METHODS, *([_USE_ARCHIVE] if _CLASS_ARCHIVE.exists() else [])]
        options += [FOR_SMALL_DATA] if is_local(master) and has_small_data(arguments) else []
        command += ["--conf", f"spark.driver.defaultJavaOptions={' '.join(options)}"]
        command += ["--conf", f"spark.executor.defaultJavaOptions={_COMPILE_LARGE_METHODS}"]
        command += [str(ROOT / "spark_jobs" / "jobs" / f"{job}.py"), *arguments]
        return subprocess.run(command, env=environment(), check=False).returncode


def program(module: str, arguments: Sequence[str]) -> int:
    """Run `python -m module`; give its exit code."""
    return subprocess.run([sys.executable, "-m", module, *arguments], env=environment(), check=False).returncode


def become(module: str, arguments: Sequence[str]) -> NoReturn:
    """Run `python -m module` in the place of this process, so that who kills the one kills the other."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment())


def on_ranks(
    module: str,
    arguments: Sequence[str],
    *,
    ranks: int,
    hosts: str | None = None,
    launcher: Launcher = "horovod",
    elastic: Elastic | None = None,
) -> int:
    """Run `python -m module` on as many ranks as asked; give the exit code.

    More than one start under horovodrun with gloo, whose marks before each line are taken off again, or under torchrun.
    """
    if ranks == 1 and hosts is None and elastic is None:
        return program(module, arguments)
    if launcher == "torch":
        if hosts is not None:
            raise UserError("--hosts is horovodrun's: start torchrun itself on each host, with its --nnodes.")
        here = ["--standalone", "--nproc-per-node", str(ranks)]
        # Behind the -- torchrun takes nothing for an abbreviation of its own options, as it did --run.
        return program("torch.distributed.run", [*here, "-m", "--", module, *arguments])
    if hosts is not None or (elastic is not None and elastic.discover is not None):
        refuse_secrets()
    with tempfile.TemporaryDirectory(prefix="headrace-") as scratch:
        command, settings = [_program("horovodrun")], environment()
        if elastic is not None and elastic.is_local:
            command = [sys.executable, "-m", "training.local_horovodrun"]
            # To Horovod each rank is a host of its own, which would take all cores.
            cores = len(os.sched_getaffinity(0))
            settings.setdefault("OMP_NUM_THREADS", str(max(1, cores // elastic.max_ranks)))
        command += ["-np", str(ranks), "--gloo"]
        command += ["-H", hosts] if hosts is not None else []
        command += elastic.options(Path(scratch)) if elastic is not None else []
        command += [sys.executable, "-m", module, *arguments]
        code, ends = _without_marks(command, settings)
        # A rank that dies while the others meet again takes them along: gloo ends their processes.
        for again in range(elastic.max_restarts if elastic is not None else 0):
            if code == 0 or not _have_died(ends):
                break
            print(f"headrace: no rank is left; all start again from the last checkpoint ({again + 1})", flush=True)
            code, ends = _without_marks(command, settings)
        return code


def refuse_secrets() -> None:
    """Raise UserError for a password in the environment, before ssh is given it."""
    for name in SECRETS:
        if name in os.environ:
            raise UserError(
                f"{name} would stand on ssh's command line, for all to read: use ~/.pgpass or ~/.mlflow/credentials on "
                "the hosts, and unset it."
            )


def _have_died(ends: Sequence[int]) -> bool:
    """Whether ranks ended by a signal or the watchdog, none by a mistake that another try would meet again."""
    return 2 not in ends and any(end > _BY_SIGNAL or end == _BY_WATCHDOG for end in ends)


def _without_marks(command: Sequence[str], settings: Mapping[str, str]) -> tuple[int, list[int]]:
    """Its exit code, and those of the ranks that did not end well."""
    ends = []
    with subprocess.Popen(
        command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(_RANK_PREFIX.sub("", line), end="", flush=True)
            if ended := _RANK_ENDED.match(line):
                ends.append(int(ended[1]))
    return running.returncode, ends


def has_small_data(arguments: Sequence[str]) -> bool:
    """Whether all data that the arguments of a job name is known, in folders here, and little.

    Folders alone say so: a job whose data comes from elsewhere, such as a database, names none that holds some.
    """
    total = 0
    for argument in arguments:
        if "://" in argument:
            return False
        if not argument.startswith("-") and os.path.isdir(argument):
            for folder, _, names in os.walk(argument):
                total += sum(os.path.getsize(os.path.join(folder, name)) for name in names)
                if total > _SMALL_BYTES:
                    return False
    return total > 0


def is_local(master: str | None) -> bool:
    return master is None or master.startswith("local")


def _names_memory(given: Mapping[str, str]) -> bool:
    """Whether anybody has said how much memory the driver gets: this call, the environment or the site."""
    key, variable = "spark.driver.memory", "SPARK_DRIVER_MEMORY"
    folder = Path(os.environ.get("SPARK_CONF_DIR") or _spark_home() / "conf")
    for name, wanted in (
        ("spark-defaults.conf", rf"^\s*{re.escape(key)}\b"),
        ("spark-env.sh", rf"^[^#]*\b{variable}="),
    ):
        file = folder / name
        if file.exists() and re.search(wanted, file.read_text(errors="replace"), re.MULTILINE):
            return True
    return key in given or variable in os.environ


def _spark_home() -> Path:
    """Where the spark-submit that is started has its conf folder: pip's lies in the package, others above their bin."""
    if "SPARK_HOME" in os.environ:
        return Path(os.environ["SPARK_HOME"])
    program = Path(_program("spark-submit")).resolve()
    package = find_spec("pyspark")
    if program.parent == Path(sys.executable).parent.resolve() and package is not None and package.origin is not None:
        return Path(package.origin).parent
    return program.parent.parent


def _quarter_of_memory() -> str:
    """What Java itself would take, and Spark does not: 1 GB is all that a local job had, driver and executor in one.

    Of this container's memory where there is a limit. Below 32 GB, for beyond it Java's references take twice the room.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _CONTAINER_LIMITS:
        text = file.read_text().strip() if file.exists() else ""
        limits += [int(text)] if text.isdigit() else []
    return f"{min(31 << 10, max(1024, min(limits) // 4 >> 20))}m"


def _program(name: str) -> str:
    """The program beside this Python, or the one on the path."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or name


def environment() -> dict[str, str]:
    """This environment, with our packages importable and this Python for Spark's driver and executors."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    mine = {"PYTHONPATH": path, "PYSPARK_PYTHON": sys.executable, "PYTHONUNBUFFERED": "1"}
    # Threads that wait in a spin take the cores that other ranks, or Spark, would use.
    mine["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    # Of the small program that puts together Spark's command line.
    mine["SPARK_LAUNCHER_OPTS"] = os.environ.get("SPARK_LAUNCHER_OPTS", "-XX:TieredStopAtLevel=1")
    mine["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, **mine}


def zip_of_code(path: Path, packages: Sequence[str]) -> Path:
    """Write our packages with the files that they read, for machines that have none or others; give the path."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in packages:
            for file in sorted((ROOT / package).rglob("*")):
                if file.suffix in (".py", ".yaml", ".yml", ".so"):
                    archive.write(file, file.relative_to(ROOT))
    return path
