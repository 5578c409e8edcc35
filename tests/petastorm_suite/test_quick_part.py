"""A quick part of petastorm's own test-suite, on the adapter; `make test-petastorm` runs all of it."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_quick_part_passes_as_on_pyarrow_14(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.petastorm_suite.run", "--quick", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
