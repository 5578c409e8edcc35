"""The logs that levers are measured on: MovieLens 100K, and KuaiRand-Pure with propensities estimated from counts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from pipelines import launch
from pipelines.data import fetch
from schemas.errors import UserError

LOG = "log_standard_4_25_to_5_08_pure.parquet"
_CATALOG = launch.ROOT / "schemas" / "catalog"
_EXPONENT = 0.5


def ml_100k(folder: Path) -> Path:
    """A snapshot as the demo prepares it: by time, with histories; what stands is kept."""
    raw = folder / "raw"
    print(fetch("ml-100k", raw))
    return _prepared(folder, "ml-100k", raw, [])


def kuairand(raw: Path, folder: Path, *, rows: int) -> Path:
    """A snapshot of the log's first `rows` rows (0: all) with a column of propensities; what stands is kept."""
    if not (raw / LOG).is_file():
        raise UserError(f"{raw} is not there: KuaiRand-Pure's files; --kuairand says where they are.")
    with_column, contract = folder / "raw", folder / "contract.yaml"
    if not contract.exists():
        with_column.mkdir(parents=True, exist_ok=True)
        for file in raw.glob("*.csv"):
            shutil.copyfile(file, with_column / file.name)
        log = pq.read_table(raw / LOG)
        log = log.slice(0, rows) if rows else log
        propensity = estimated(log["video_id"].to_numpy())
        pq.write_table(log.append_column("propensity", pa.array(propensity)), with_column / LOG)
        draft = contract.with_suffix(".draft")
        draft.write_text(_contract(), encoding="utf-8")
        os.replace(draft, contract)
    sizes = ["--features", "kuairand", "--history-length", "20", "--seen-length", "200", "--num-negatives", "20"]
    return _prepared(folder, f"{contract}", with_column, sizes)


def estimated(items: NDArray[np.int64]) -> NDArray[np.float32]:
    """(count of the row's item / largest count) ** 0.5: the power law of Yang et al. 2018 (section 3), for a log that
    does not say with what probability its items were shown."""
    _, place, count = np.unique(items, return_inverse=True, return_counts=True)
    found: NDArray[np.float32] = ((count / count.max()) ** _EXPONENT)[place].astype(np.float32)
    return found


def _contract() -> str:
    """KuaiRand's, with the column."""
    contract = yaml.safe_load((_CATALOG / "kuairand.yaml").read_text(encoding="utf-8"))
    meaning = "how likely it was shown, estimated from how often it was"
    column = {"name": "propensity", "type": "float32", "role": "propensity", "range": {"min": 0, "max": 1}}
    contract["events"]["columns"].append(column | {"meaning": meaning})
    return yaml.safe_dump(contract, sort_keys=False)


def _prepared(folder: Path, contract: str, raw: Path, sizes: list[str]) -> Path:
    events, snapshot = folder / "events", folder / "snapshot"
    steps = {
        "ingest": ["--contract", contract, "--raw", f"{raw}", "--out", f"{events}"],
        "prepare": ["--events", f"{events}", "--out", f"{snapshot}", *sizes],
    }
    for job, words in steps.items():
        code = launch.spark_submit(job, words)
        if code != 0:
            raise UserError(f"{job} ended with code {code}; what it said stands above.")
    return snapshot
