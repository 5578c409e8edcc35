"""The benchmark of the Spark jobs: its rows, its measuring, its comparing and its figures."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.measured_process import measure
from benchmarks.results import Results
from benchmarks.spark import DataSet
from benchmarks.spark_data import generate
from benchmarks.spark_peers import job
from benchmarks.spark_summary import summary
from benchmarks.spark_tools import compare
from schemas.contract import read_contract
from schemas.feature_set import read_feature_set

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


def test_rows_are_the_same_every_time_and_have_the_columns_of_the_contract(tmp_path):
    generate(tmp_path / "a", 2_000)
    generate(tmp_path / "b", 2_000)
    a, b = pq.read_table(tmp_path / "a"), pq.read_table(tmp_path / "b")
    assert a.equals(b)
    contract = read_contract(str(BENCHMARKS / "criteo_like.yaml"))
    assert a.column_names == [column.name for column in contract.events.columns] == list(job.COLUMNS)
    for column in contract.events.columns:
        assert column.nullable or a[column.name].null_count == 0
    features = read_feature_set(str(BENCHMARKS / "criteo_like_features.yaml"), contract).features
    assert [feature.name for feature in features] == [*job.NUMBERS, *job.VALUES]


def test_one_value_of_a_hot_log_holds_40_percent(tmp_path):
    generate(tmp_path / "hot", 20_000, hot=True)
    generate(tmp_path / "plain", 20_000)

    def most(name: str) -> float:
        values = pq.read_table(tmp_path / name, columns=["c3"])["c3"].drop_null().to_numpy()
        return np.unique(values, return_counts=True)[1].max() / len(values)

    assert most("hot") == pytest.approx(0.4 + 0.6 * most("plain"), abs=0.02)


@pytest.mark.parametrize(("share", "rows", "rank"), [(0.8, 10, 8), (0.8, 11, 9), (0.9, 1_000_000, 900_000)])
def test_a_cut_comes_after_the_row_that_completes_its_share(share, rows, rank):
    assert job.rank_of_cut(share, rows) == rank


def test_memory_and_cpu_of_children_count_too(tmp_path):
    child = "held = bytearray(300 << 20); held[::4096] = b'1' * len(held[::4096]); import time; time.sleep(0.6)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    measured = measure([sys.executable, "-c", parent], tmp_path / "log")
    assert measured.outcome == "done"
    assert 300 < measured.peak_mb < 400
    assert measured.seconds > 0.6


def test_a_child_that_still_is_its_parents_copy_counts_once(tmp_path):
    code = (
        "import os, time; held = bytearray(300 << 20); held[::4096] = b'1' * len(held[::4096]); time.sleep(0.3)\n"
        "for _ in range(4):\n"
        "    if os.fork() == 0: time.sleep(0.3); os._exit(0)\n"
        "time.sleep(0.6)"
    )
    assert measure([sys.executable, "-c", code], tmp_path / "log").peak_mb < 400


def test_a_process_beyond_its_limit_is_ended(tmp_path):
    held = "held = bytearray(300 << 20); held[::4096] = b'1' * len(held[::4096]); import time; time.sleep(60)"
    measured = measure([sys.executable, "-c", held], tmp_path / "log", limit_mb=200)
    assert (measured.outcome, measured.seconds < 30) == ("out of memory", True)


@pytest.mark.parametrize(("code", "outcome"), [("raise MemoryError", "out of memory"), ("1 / 0", "failed")])
def test_an_end_without_memory_is_told_from_other_ends(tmp_path, code, outcome):
    assert measure([sys.executable, "-c", code], tmp_path / "log").outcome == outcome


def test_sums_must_be_the_same_but_for_the_rounding_of_numbers():
    sums = {split: {"rows": 100.0, "row_hashes": 7.0, "i1": 1.0, "c1": 300.0} for split in job.SPLITS}
    wanted = sums | {"vocabularies": {"c1": 5.0}}

    def written(split: str, **changed: float) -> dict[str, dict[str, float]]:
        return wanted | {split: wanted[split] | changed}

    assert compare(wanted, written("train", i1=1.00005), keeps_ties=True) == []
    assert compare(wanted, written("train", i1=1.001), keeps_ties=True) == ["train.i1: 1.001 instead of 1"]
    assert compare(wanted, written("test", c1=301.0), keeps_ties=True) == ["test.c1: 301 instead of 300"]
    assert compare(wanted, written("train", i1=float("nan")), keeps_ties=True) != []
    # Where values of equal count may change places, indices are known in train and as a sum.
    assert compare(wanted, written("test", c1=301.0), keeps_ties=False) == []
    assert compare(wanted, written("train", row_hashes=8.0), keeps_ties=False) == []
    assert compare(wanted, written("train", c1=301.0), keeps_ties=False) != []
    assert compare(wanted, written("vocabularies", c1=6.0), keeps_ties=False) != []


def test_a_later_call_goes_on_with_what_is_done_and_forgets_what_is_to_be_redone(tmp_path):
    small, path = DataSet(1_000, hot=False), tmp_path / "results.jsonl"
    first = Results(path, redo=[])
    first.add(small.key("duckdb", 0), {})
    first.add(small.key("polars", 0), {})
    later = Results(path, redo=["polars"])
    assert later.find(small.key("duckdb", 0)) is not None
    assert later.find(small.key("duckdb", 1)) is None
    assert later.find(small.key("polars", 0)) is None
    assert len(path.read_text().splitlines()) == 1


def run(data: str, tool: str, seconds: float, **more: object) -> dict[str, object]:
    rows = int(data.removesuffix("-hot"))
    done = {"outcome": "done", "cpu_s": 1.0, "peak_mb": 100.0, "differences": [], "file_bytes": [90, 110]}
    return {"data": data, "rows": rows, "tool": tool, "run": 0, "seconds": seconds, **done, **more}


def test_figures_are_ratios_of_medians():
    runs = [
        *(run("1000", "headrace", seconds) for seconds in (9.0, 2.0, 1.0)),
        run("1000", "mllib", 10.0),
        run("1000", "duckdb", 1.0),
        run("1000", "polars", 0.5),
        run("10000", "headrace", 10.0),
        run("10000", "mllib", 5.0, outcome="out of memory"),
        run("10000-hot", "headrace", 12.0),
    ]
    figures = summary(runs, {"1000": {"c1": 5, "c2": 7}})
    assert figures["distinct_values"] == {"1000": 12}
    assert figures["rows_per_s"]["1000"] == {"headrace": 500, "mllib": 100, "duckdb": 1000, "polars": 2000}
    assert figures["ratio_to_mllib"] == {"1000": 5.0, "10000": None, "10000-hot": None}
    assert figures["time_ratio_to_fastest_of_duckdb_polars"]["1000"] == 4.0
    assert figures["cost_per_row_growth"] == -0.5  # 2 ms a row became 1 ms
    assert figures["hot_key_growth"] == {"10000-hot": 0.2}
    assert figures["file_size_spread"]["1000"] == 0.2
    assert figures["not_done"] == {"10000 mllib": "out of memory"}
    assert figures["sums_agree"]
    assert not summary([*runs, run("1000", "pandas", 1.0, differences=["train.c1"])], {})["sums_agree"]
