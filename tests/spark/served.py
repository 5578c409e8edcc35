"""Responses and actions written by hand, landed as `headrace land` lands them, and the feedback job on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pyspark.sql import SparkSession

from schemas.manifest import Manifest
from schemas.served import COLUMNS, Kind
from schemas.snapshot import open_snapshot
from spark_jobs.jobs.feedback import FeedbackConfig, feedback
from tests.spark.logs import write_contract, write_lines

DAY_MS, HOUR_MS, MINUTE_MS = 86_400_000, 3_600_000, 60_000
MONDAY = 1_704_067_200_000  # 2024-01-01
DAYS = ("2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04")

VIDEO_CONTRACT: dict[str, Any] = {
    "name": "videos",
    "meaning": "videos shown, some of them watched",
    "events": {
        "source": {"path": "shown.csv", "delimiter": ","},
        "key": ["user", "video", "at"],
        "columns": [
            {"name": "user", "type": "string", "role": "user", "meaning": "who"},
            {"name": "video", "type": "int64", "role": "item", "meaning": "what"},
            {"name": "at", "type": "timestamp_ms", "role": "event_time", "time_format": "epoch_ms", "meaning": "when"},
            {"name": "clicked", "type": "int32", "role": "label", "one_of": ["0", "1"], "meaning": "clicked"},
            {"name": "watched", "type": "float32", "role": "label", "meaning": "seconds"},
            {"name": "device", "type": "string", "role": "categorical", "nullable": True, "meaning": "seen on"},
            {"name": "tab", "type": "int32", "role": "categorical", "nullable": True, "meaning": "part of the app"},
            {"name": "length", "type": "int32", "role": "numeric", "nullable": True, "meaning": "of the video"},
        ],
    },
    "items": {
        "source": {"path": "videos.csv", "delimiter": ","},
        "key": ["video", "since"],
        "columns": [
            {"name": "video", "type": "int64", "role": "item", "meaning": "the video"},
            {
                "name": "since",
                "type": "timestamp_ms",
                "role": "valid_from",
                "time_format": "epoch_ms",
                "meaning": "cut",
            },
            {"name": "seconds", "type": "int32", "role": "numeric", "meaning": "its length"},
        ],
    },
}
VIDEO_RULES: dict[str, Any] = {
    "event": "impression",
    "labels": {"clicked": {"action": "click"}, "watched": {"action": "watch", "take": "sum"}},
    "from_item": {"length": "seconds"},
    "window_hours": 1,
}


def write_video_log(folder: Path) -> Path:
    """Three events of the time before serving, and three videos, one of which was cut anew on Monday at noon."""
    lines = [b"user,video,at,clicked,watched,device,tab,length"]
    lines += [b"u1,1,1000,1,9,tv,1,60", b"u2,2,2000,0,0,tv,1,70", b"u1,3,3000,1,5,,,80"]
    write_lines(folder / "raw" / "shown.csv", lines)
    noon = MONDAY + 12 * HOUR_MS
    cuts = [(1, 0, 60), (1, noon, 50), (2, 0, 70), (3, 0, 80)]
    write_lines(folder / "raw" / "videos.csv", [b"video,since,seconds", *(f"{v},{t},{s}".encode() for v, t, s in cuts)])
    return write_contract(folder, VIDEO_CONTRACT)


def shown(request: str, user: str, time_ms: int, items: list[str], **more: Any) -> dict[str, Any]:
    """A response; its first item had the propensity 0.5, its second 0.25, and so on."""
    context = more.pop("context", {})
    return {
        "request_id": request,
        "time_ms": time_ms,
        "generation": "0001",
        "user_id": user,
        "policy": "epsilon_greedy(0.1)",
        "context": json.dumps(context),
        "features": "{}",
        "items": [
            {
                "item_id": item,
                "position": place,
                "score": 1.0,
                "propensity": 0.5 ** (place + 1),
                "explored": False,
                "features": "{}",
            }
            for place, item in enumerate(items)
        ],
        "num_candidates": 10,
        "fallback": more.pop("fallback", None),
    }


def did(id_: str, request: str, item: str, user: str, action: str, time_ms: int, value: float | None = None) -> dict:
    return {
        "action_id": id_,
        "request_id": request,
        "item_id": item,
        "user_id": user,
        "action": action,
        "value": value,
        "time_ms": time_ms,
    }


def land(landed: Path, kind: Kind, name: str, rows: list[dict[str, Any]]) -> list[Path]:
    """Write rows into a segment, a file a day, as the lander does."""
    files = []
    for day in sorted({row["time_ms"] // DAY_MS for row in rows}):
        stamp = str(pa.scalar(day, pa.int32()).cast(pa.date32()))
        path = landed / kind / f"day={stamp}" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        of_day = [row for row in rows if row["time_ms"] // DAY_MS == day]
        pq.write_table(pa.Table.from_pylist(of_day, schema=COLUMNS[kind]), path)
        files.append(path)
    return files


def run_feedback(
    spark: SparkSession, folder: Path, seed: Path, *, contract: Path, as_of_ms: int, rules: dict[str, Any], **more: Any
) -> Manifest:
    """The job on folder/landed; what it published in folder/served."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    feedback(
        spark,
        FeedbackConfig(
            landed=str(folder / "landed"),
            seed=str(seed),
            contract=str(contract),
            rules=str(folder / "rules.yaml"),
            out=str(folder / "served"),
            contract_out=str(folder / "contract-of-both.yaml"),
            as_of_ms=as_of_ms,
            **more,
        ),
    )
    snapshot = open_snapshot(str(folder / "served"), kind="served")
    snapshot.verify()
    return snapshot.manifest


def events_in(folder: Path) -> list[dict[str, Any]]:
    """The events of all files that lie there, as whoever lists the folder finds them, in order."""
    files = sorted((folder / "served" / "events").glob("day=*/*.parquet"))
    rows = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
    return sorted(rows, key=lambda row: (row["request_id"], row["position"]))
