"""Records as a server writes them, for tests of what becomes of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

from schemas.served import COLUMNS, Action, Impression, Kind, Shown
from serving.append_log import AppendLog

MIDNIGHT_MS = 1_767_225_600_000
"""2026-01-01 00:00 UTC."""


def impression(request_id: str, *, time_ms: int = MIDNIGHT_MS, items: int = 2) -> Impression:
    shown = tuple(
        Shown(
            item_id=f"i{place}",
            position=place,
            score=0.1 * place,
            propensity=0.5,
            explored=place == 1,
            features={"genre": [2, 3], "age": 0.25},
        )
        for place in range(items)
    )
    return Impression(
        request_id=request_id,
        time_ms=time_ms,
        generation="0001",
        user_id='u "1", ü',
        policy="epsilon_greedy(0.1)",
        context={"hour": 3, "device": "tv"},
        features={"history": [5, 6, 7]},
        items=shown,
        num_candidates=200,
    )


def action(action_id: str, *, time_ms: int = MIDNIGHT_MS, value: float | None = None, user_id: str = "u1") -> Action:
    return Action(
        action_id=action_id,
        request_id="r1",
        item_id="i1",
        user_id=user_id,
        action="click",
        value=value,
        time_ms=time_ms,
    )


def line(record: Impression | Action) -> bytes:
    return record.model_dump_json().encode()


def write_log(logs: Path, kind: Kind, records: Iterable[Impression | Action | bytes]) -> None:
    """One sealed segment."""
    log = AppendLog(logs / kind, writer="w")
    for future in [log.append(record if isinstance(record, bytes) else line(record)) for record in records]:
        future.result(timeout=10)
    log.close()


def landed_rows(folder: Path, kind: Kind) -> pa.Table:
    """All rows that landed in a folder of days, with a column `day`."""
    files = sorted((folder / kind).glob("day=*/*.parquet"))
    if not files:
        return COLUMNS[kind].empty_table()
    return ds.dataset(files, partitioning="hive", partition_base_dir=str(folder / kind)).to_table()
