"""Run petastorm's own tests on the adapter and compare with what passes on pyarrow 14, where it needs none.

    python -m tests.petastorm_suite.run [--quick] [--list] [--only PART ...]

Exit code 1: a test that passes on pyarrow 14 does not pass here, and reasons.yaml has no reason for it.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
PASSES_ON_PYARROW_14 = HERE / "passes_on_pyarrow_14.txt"
REASONS = HERE / "reasons.yaml"
FOLDERS = ("hdfs/tests", "workers_pool/tests", "tests")
QUICK = (
    "test_hdfs_namenode",
    "test_codec_ndarray",
    "test_codec_scalar",
    "test_decode_row",
    "test_disk_cache",
    "test_shuffling_buffer",
    "test_unischema",
    "test_parquet_reader",
)
LEFT_OUT_OF_QUICK = "not partition and not asymetric"  # each of them writes a dataset with Spark
NEEDED = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "gcsfs": "gcsfs",
    "pytest_timeout": "pytest-timeout",
    "s3fs": "s3fs",
}

Outcomes = dict[str, str]  # test id -> passed, failed, skipped or left out


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    files = _test_files(QUICK if options.quick else options.only)
    if options.list:
        print("\n".join(files))
        return 0
    missing = [package for module, package in NEEDED.items() if not find_spec(module)]
    if missing and not options.quick:
        print(f"petastorm's tests also need: pip install {' '.join(missing)}")
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes: Outcomes = {}
    for number, together in enumerate([files] if options.quick else [[file] for file in files], start=1):
        print(f"--- {number} of {1 if options.quick else len(files)}: {' '.join(together)}", flush=True)
        outcomes |= _run(together, options)
    _keep(outcomes, options.out / "outcomes.json")
    return _compare(files, outcomes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.petastorm_suite.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="only the files that are done in a minute or so")
    parser.add_argument("--list", action="store_true", help="print the test files, run nothing")
    parser.add_argument("--only", nargs="+", default=(), metavar="PART", help="files whose name contains a PART")
    parser.add_argument(
        "--out",
        type=Path,
        default=REPOSITORY / "runs" / "petastorm_suite",
        help="folder for logs and outcomes.json (%(default)s)",
    )
    parser.add_argument("--timeout-s", type=int, default=600, help="for one test (%(default)s)")
    parser.add_argument("--without-adapter", action="store_true", help="leave petastorm alone, for an old pyarrow")
    return parser


def _petastorm() -> Path:
    """petastorm's folder, found without importing it."""
    spec = find_spec("petastorm")
    if not spec or not spec.submodule_search_locations:
        raise SystemExit("petastorm is not installed here: pip install --no-deps petastorm==0.13.1")
    return Path(spec.submodule_search_locations[0])


def _test_files(parts: tuple[str, ...] | list[str]) -> list[str]:
    """Test files whose name contains one of the parts, as paths below site-packages."""
    petastorm = _petastorm()
    files = [
        str(path.relative_to(petastorm.parent))
        for folder in FOLDERS
        for path in sorted((petastorm / folder).glob("test_*.py"))
    ]
    return [file for file in files if not parts or any(part in Path(file).name for part in parts)]


def _run(files: list[str], options: argparse.Namespace) -> Outcomes:
    """Run the files in one pytest process; tests that never ran, after a crash, are not in the result."""
    site_packages = _petastorm().parent
    name = "quick" if options.quick else Path(files[0]).stem
    notes = options.out / f"{name}.jsonl"
    notes.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        *(str(site_packages / file) for file in files),
        f"--rootdir={site_packages}",
        "-c",
        os.devnull,
        "-p",
        "no:cacheprovider",
        "-p",
        "no:pytest_forked",
        "-p",
        "tests.petastorm_suite.plugin",
        "--tb=native",
        f"--timeout={options.timeout_s}",
        "-v",
        "--color=no",
        *(["-k", LEFT_OUT_OF_QUICK] if options.quick else []),
    ]
    with open(options.out / f"{name}.log", "w") as log:
        pytest = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=_environment(notes, options.without_adapter),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            errors="replace",
        )
        for line in pytest.stdout or ():
            log.write(line)
            log.flush()
            if re.search(r"(PASSED|FAILED|SKIPPED|ERROR).*\[ *\d+%\]$", line.rstrip()):
                print(line.rstrip().rpartition("site-packages/")[2], flush=True)
    if pytest.wait() not in (0, 1, 5):
        print(f"pytest ended with {pytest.returncode}: see {log.name}", flush=True)
    return _outcomes(notes)


def _environment(notes: Path, without_adapter: bool) -> dict[str, str]:
    """Spark's Python processes find this Python and, through start_up/sitecustomize.py, the adapter."""
    python_path = [str(HERE / "start_up"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "TZ": "UTC",
        "OUTCOMES": str(notes),
        **({"WITHOUT_ADAPTER": "1"} if without_adapter else {}),
    }


def _outcomes(notes: Path) -> Outcomes:
    """A test fails if any of its phases fails: set-up, call and tear-down are noted one by one."""
    outcomes: Outcomes = {}
    for line in notes.read_text().splitlines() if notes.exists() else ():
        note = json.loads(line)
        if outcomes.get(note["test"]) != "failed":
            outcomes[note["test"]] = note["outcome"]
    return outcomes


def _keep(outcomes: Outcomes, file: Path) -> None:
    """Write outcomes.json; tests that did not run this time keep their last outcome."""
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | outcomes, indent=1, sort_keys=True) + "\n")


def _compare(files: list[str], outcomes: Outcomes) -> int:
    """Print the counts and every test that passes on pyarrow 14 but not here; 1 if one has no reason."""
    reasons: dict[str, str] = yaml.safe_load(REASONS.read_text()) or {}
    there = [test for test in PASSES_ON_PYARROW_14.read_text().split("\n") if test.partition("::")[0] in files]
    here = Counter(outcomes.values())
    lost = [test for test in there if outcomes.get(test) not in ("passed", "left out")]
    gained = [test for test, outcome in outcomes.items() if outcome == "passed" and test not in there]
    unexplained = []
    for test in lost:
        reason = next((why for pattern, why in reasons.items() if test == pattern or _matches(test, pattern)), None)
        print(f"\n{outcomes.get(test, 'not run'):8} {test}")
        print(f"         {reason or 'NO REASON GIVEN in reasons.yaml'}")
        if not reason:
            unexplained.append(test)
    print(f"\n{'':28}{'passed':>8}{'failed':>8}{'skipped':>8}")
    print(f"{'here':28}{here['passed']:8}{here['failed']:8}{here['skipped']:8}")
    print(f"{'on pyarrow 14':28}{len(there):8}")
    print(f"{len(lost)} pass only there ({len(unexplained)} without a reason), {len(gained)} pass only here")
    return 1 if unexplained else 0


def _matches(test: str, pattern: str) -> bool:
    """Patterns may hold * only: square brackets are part of pytest's ids."""
    return fnmatch.fnmatchcase(test, pattern.replace("[", "[[]"))


if __name__ == "__main__":
    sys.exit(main())
