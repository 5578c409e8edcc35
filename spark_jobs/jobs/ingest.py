"""Ingest: raw tables -> checked events by day, items and users, with every row accounted for; run again, it goes on."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from schemas.contract import Contract, TableName, read_contract
from schemas.errors import UserError
from schemas.event_store import StoreState
from schemas.evolution import Change, changes, refuse_incompatible
from schemas.ledger import Ledger, TableLedger
from schemas.manifest import Manifest
from schemas.settings import digest_of
from schemas.storage import absolute
from schemas.version import VERSION
from spark_jobs.checks import table_of
from spark_jobs.command_line import day, moment, parser, run, share
from spark_jobs.event_store import EventStore, claim
from spark_jobs.hadoop_files import FileStatus, HadoopFiles
from spark_jobs.publication import identity
from spark_jobs.session import size_shuffles
from spark_jobs.sources import find_source, naming_broken_files
from spark_jobs.streaming import watch
from spark_jobs.table_update import IngestConfig, Run, take_in
from spark_jobs.transforms.rules import NAMED_TIME_FORMATS

# What events refer to is there before them.
ORDER: tuple[TableName, ...] = ("items", "users", "events")


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How arriving files are watched for."""

    once: bool = False
    """Take in what is there and end."""
    every_s: float = 10.0
    files_per_batch: int = 1000
    checkpoint: str | None = None


def ingest(spark: SparkSession, config: IngestConfig) -> None:
    """Take in what is new below `config.raw`, check it, and publish the next version of `config.out`."""
    contract = read_contract(config.contract)
    check_time_formats(spark, contract)
    store = claim_for(spark, config, contract)
    run = Run(config, contract, store, evolution_of(store, contract, config))
    sources = find_sources(run)
    size_shuffles(spark, sum(file.bytes for files in sources.values() for file in files))
    with naming_broken_files():
        built = [take_in(run, name, sources[name]) for name in ORDER if name in sources]
    if any(built) or run.evolution or store.standing is None:
        publish(run)
    else:
        print(f"ingest: {config.out} stands already, made with these settings from these files.")
    # Not where the work failed: by the claim the next run knows what this one left for its own.
    store.release()


def ingest_stream(spark: SparkSession, config: IngestConfig, stream: StreamConfig) -> None:
    """Take files of events in as they arrive, a version of the folder a batch; see `watch`."""
    contract = read_contract(config.contract)

    def take_in_batch(files: tuple[str, ...]) -> None:
        ingest(spark, replace(config, arrived=files))

    watch(
        spark,
        contract.events,
        config.raw,
        stream.checkpoint or f"{config.out.rstrip('/')}.checkpoint",
        take_in_batch,
        once=stream.once,
        every_s=stream.every_s,
        files_per_batch=stream.files_per_batch,
    )


def claim_for(spark: SparkSession, config: IngestConfig, contract: Contract) -> EventStore:
    """Claim the folder, once it is known that there is something to read: a mistake in --raw makes no folder."""
    for name, table in contract.tables().items():
        find_source(HadoopFiles(spark), config.raw, table, name)
    return claim(spark, config.out)


def check_time_formats(spark: SparkSession, contract: Contract) -> None:
    """Raise UserError naming the first column whose time format Spark cannot read."""
    for name, table in contract.tables().items():
        for column in table.columns:
            if column.type != "timestamp_ms" or column.time_format in NAMED_TIME_FORMATS:
                continue
            try:
                spark.range(1).select(F.try_to_timestamp(F.lit("?"), F.lit(column.time_format))).collect()
            except PySparkException as error:
                raise UserError(
                    f"{name}.{column.name}: time_format {column.time_format!r} is none of "
                    f"{', '.join(NAMED_TIME_FORMATS)} and no Spark datetime pattern: {str(error).splitlines()[0]}"
                ) from None


def evolution_of(store: EventStore, contract: Contract, config: IngestConfig) -> tuple[Change, ...]:
    """How the contract differs from the last version's; UserError for what published days cannot follow."""
    if store.standing is None:
        return ()
    found = changes(store.standing.contract, contract)
    if not config.rebuild:
        refuse_incompatible(found, where=config.out)
    for change in found:
        print(f"ingest: {change} ({change.effect})")
    return found


def find_sources(run: Run) -> dict[TableName, list[FileStatus]]:
    """The files of every table; of events only those that arrived, where the caller says which."""
    files = run.store.files
    found = {name: find_source(files, run.config.raw, table, name) for name, table in run.contract.tables().items()}
    if run.config.arrived is not None:
        stood = run.stood("events")
        wanted = {*run.config.arrived, *(file.url for file in (stood.sources if stood is not None else ()))}
        found["events"] = [file for file in found["events"] if file.url in wanted]
    return found


def publish(run: Run) -> None:
    """Publish the next version and say what it holds."""
    store, config = run.store, run.config
    state = StoreState(version=store.version, tables=run.states, checks=tuple(run.checks), evolution=run.evolution)
    ledgers: dict[str, TableLedger] = {name: run.states[name].ledger() for name in run.contract.tables()}
    settings = resolved(run)
    store.commit(
        Manifest(
            **identity(config.out, settings),
            kind="events",
            contract=run.contract,
            ledger=Ledger(tables=ledgers),
            parts={name: files for name, files in run.parts.items()},
            store=state,
        ),
        keep_versions=config.keep_versions,
    )
    for line in run.said:
        print(line)
    for name, ledger in ledgers.items():
        print(
            f"ingest: {name}: {ledger.rows:,} rows = {ledger.accepted:,} accepted + "
            f"{ledger.duplicates:,} duplicates + {ledger.quarantined:,} quarantined"
        )
    shown = table_of(tuple(run.checks))
    if shown:
        print(shown)
    print(f"ingest: published {config.out} (version {state.version})")


def resolved(run: Run) -> dict[str, Any]:
    """What names the content: equal for equal rows under the same contract, whatever the runs that led there."""
    content = {
        name: {day: [rows.accepted, rows.checksum] for day, rows in state.days.items()}
        for name, state in run.states.items()
    }
    return {
        "job": "ingest",
        "release": VERSION,
        "contract": run.contract.digest(),
        "max_quarantined": run.config.max_quarantined,
        "content": digest_of(content),
    }


def main(arguments: list[str] | None = None) -> int:
    command = parser("ingest", __doc__ or "")
    add = command.add_argument
    add("--contract", required=True, help="built-in contract's name, or a path ending in .yaml")
    add("--raw", required=True, help="folder or URL that holds the raw files")
    add("--out", required=True, help="folder or URL to publish, or to bring up to date")
    add("--max-quarantined", type=share, default=0.1, help="stop where a larger share of a table's rows is bad")
    add("--as-of", type=moment, help="the moment by which freshness is judged, ISO 8601; now unless given")
    add("--day", type=day, help="build this day of events again, and nothing else")
    add("--rebuild", action="store_true", help="read every file again and replace everything")
    add("--keep-versions", type=int, default=2, help="versions whose files stay, the newest among them")
    add("--stream", action="store_true", help="go on running, and take files of events in as they arrive")
    add("--once", action="store_true", help="with --stream: take in what is there, and end")
    add("--every", type=float, default=10.0, help="with --stream: seconds between looks")
    add("--files-per-batch", type=int, default=1000, help="with --stream: files that one version takes in, at most")
    add("--checkpoint", help="with --stream: folder or URL of the stream's notes; beside --out unless given")
    given = command.parse_args(arguments)
    if given.stream and (given.day is not None or given.rebuild):
        command.error("--stream takes in what is new; run --day and --rebuild without it")
    if given.day is not None and given.rebuild:
        command.error("--day and --rebuild are two different things")
    config = IngestConfig(
        contract=given.contract,
        raw=absolute(given.raw),
        out=absolute(given.out),
        max_quarantined=given.max_quarantined,
        as_of_ms=given.as_of,
        day=given.day,
        rebuild=given.rebuild,
        keep_versions=given.keep_versions,
    )
    if not given.stream:
        return run("ingest", lambda spark: ingest(spark, config))
    stream = StreamConfig(
        once=given.once,
        every_s=given.every,
        files_per_batch=given.files_per_batch,
        checkpoint=absolute(given.checkpoint) if given.checkpoint else None,
    )
    return run("ingest", lambda spark: ingest_stream(spark, config, stream))


if __name__ == "__main__":
    sys.exit(main())
