"""Small raw logs and contracts, written by hand, and the two jobs on them with settings for small logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pyspark.sql import SparkSession

from spark_jobs.jobs.ingest import ingest
from spark_jobs.jobs.prepare import PrepareConfig, prepare
from spark_jobs.table_update import IngestConfig

FILM_CONTRACT: dict[str, Any] = {
    "name": "films",
    "meaning": "ten ratings of four films",
    "events": {
        "source": {"format": "delimited", "path": "ratings.tsv", "delimiter": "\t"},
        "key": ["user_id", "item_id"],
        "columns": [
            {"name": "user_id", "source": "who", "type": "string", "role": "user", "meaning": "who rated"},
            {"name": "item_id", "source": "film", "type": "string", "role": "item", "meaning": "the film"},
            {"name": "stars", "type": "float32", "role": "label", "range": {"min": 1, "max": 5}, "meaning": "stars"},
            {"name": "at", "type": "timestamp_ms", "role": "event_time", "time_format": "epoch_s", "meaning": "when"},
            {"name": "device", "type": "string", "role": "categorical", "nullable": True, "meaning": "seen on"},
            {"name": "price", "type": "float32", "role": "numeric", "nullable": True, "meaning": "paid, in cents"},
        ],
    },
    "items": {
        "source": {"format": "delimited", "path": "films.tsv", "delimiter": "\t"},
        "key": ["item_id"],
        "columns": [
            {"name": "item_id", "source": "film", "type": "string", "role": "item", "meaning": "the film"},
            {"name": "name", "type": "string", "role": "title", "meaning": "as shown"},
            {"name": "genres", "type": "list<string>", "role": "categorical", "nullable": True, "meaning": "genres"},
            {"name": "year", "type": "int32", "role": "categorical", "meaning": "of release"},
        ],
    },
    "users": {
        "source": {"format": "jsonl", "path": "people.jsonl"},
        "key": ["user_id"],
        "columns": [
            {"name": "user_id", "type": "string", "role": "user", "meaning": "who"},
            {"name": "age", "type": "int32", "role": "numeric", "meaning": "in years"},
        ],
    },
}

FILM_HEADER = b"who\tfilm\tstars\tat\tdevice\tprice"
# With the shares 0.6, 0.2, 0.2: six of train, two of valid, two of test; film d, user u4, car and boat come later.
FILM_EVENTS = [
    b"u1\ta\t5\t1\ttv\t10",
    b"u1\tb\t4\t2\ttv\t20",
    b"u2\ta\t3\t3\tphone\t30",
    b"u2\tc\t2\t4\t\t",
    b"u3\ta\t1\t5\ttv\t20",
    b"u1\tc\t5\t6\tphone\t20",
    b"u2\tb\t4\t7\ttv\t1000",
    b"u3\td\t4\t8\tcar\t20",
    b"u4\ta\t3\t9\ttv\t20",
    b"u1\td\t5\t10\tboat\t5000",
]
FILM_REFUSED = {
    b"u9\ta\t9\t5\ttv\t1": "range:stars",
    b"u9\tb\tgood\t5\ttv\t1": "type:stars",
    b"u9\tc": "width",
    b"u\xff9\ta\t3\t5\ttv\t1": "encoding",
    b"u1\ta\t1\t11\ttv\t10": "duplicate_key",
}
FILM_ITEMS = [b"film\tname\tgenres\tyear", b"a\tAlpha\tdrama war\t1990", b"b\tBeta\tdrama\t1991"]
FILM_ITEMS += [b"c\tGamma\t\t1990", b"d\tDelta\tnoir\t2001"]
FILM_USERS = [{"user_id": f"u{i}", "age": age} for i, age in enumerate((30, 20, 40, 90, 50), start=1)]


def write_film_log(folder: Path) -> Path:
    """Write the raw film log into `folder`/raw; give the path of its contract."""
    write_lines(folder / "raw" / "ratings.tsv", [FILM_HEADER, *FILM_REFUSED, b"", *FILM_EVENTS])
    write_lines(folder / "raw" / "films.tsv", FILM_ITEMS)
    write_lines(folder / "raw" / "people.jsonl", [json.dumps(user).encode() for user in FILM_USERS])
    return write_contract(folder, FILM_CONTRACT)


def write_click_log(folder: Path, lines: list[bytes], **source: Any) -> Path:
    """Write a log of three columns, user, item and time in seconds, without other tables; give its contract's path."""
    write_lines(folder / "raw" / "clicks.csv", lines)
    columns = [
        {"name": "user", "type": "string", "role": "user", "meaning": "who"},
        {"name": "item", "type": "string", "role": "item", "meaning": "what"},
        {"name": "time", "type": "timestamp_ms", "role": "event_time", "meaning": "when"},
    ]
    events = {
        "source": {"path": "clicks.csv", "delimiter": ","} | source,
        "key": ["user", "item", "time"],
        "columns": columns,
    }
    return write_contract(folder, {"name": "clicks", "meaning": "clicks", "events": events})


def write_lines(path: Path, lines: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def write_contract(folder: Path, contract: dict[str, Any]) -> Path:
    path = folder / "contract.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(contract), encoding="utf-8")
    return path


def run_ingest(
    spark: SparkSession, contract: Path, raw: Path, out: Path, *, max_quarantined: float = 0.5, **changes: Any
) -> None:
    given: dict[str, Any] = {"contract": str(contract), "raw": str(raw), "out": str(out)}
    ingest(spark, IngestConfig(max_quarantined=max_quarantined, **given, **changes))


def run_prepare(spark: SparkSession, events: Path, out: Path, **changes: Any) -> None:
    settings: dict[str, Any] = {
        "split": "time:0.6,0.2,0.2",
        "history_length": 3,
        "seen_length": 10,
        "num_negatives": 4,
        "min_count": 1,
        "max_values": 1000,
        "seed": 0,
    }
    prepare(spark, PrepareConfig(events=str(events), out=str(out), **settings | changes))
