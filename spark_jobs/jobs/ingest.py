"""Ingest: raw tables -> checked events by day, items and users, with every row accounted for; run again, it goes on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.contract import Contract, Table, TableName, read_contract
from schemas.errors import UserError
from schemas.event_store import NO_DAY, CheckResult, DayRows, StoreState, TableState
from schemas.evolution import Change, changes, refuse_incompatible
from schemas.ledger import Ledger, TableLedger
from schemas.manifest import DataFile, Manifest
from schemas.settings import digest_of
from schemas.storage import absolute, join
from schemas.version import VERSION, code_version, now_utc
from spark_jobs.checks import refuse_failed, rule_checks, table_of, whole_checks
from spark_jobs.command_line import parser, run
from spark_jobs.datasets import read_part
from spark_jobs.day_plan import Arrivals, DayPlan, arrivals, plan_all, plan_days, plan_one_day, with_day_counted
from spark_jobs.event_store import EventStore, claim, day_of_path
from spark_jobs.hadoop_files import FileStatus, HadoopFiles
from spark_jobs.session import size_shuffles, step
from spark_jobs.sources import find_source, naming_broken_files
from spark_jobs.spark_types import spark_schema
from spark_jobs.streaming import watch
from spark_jobs.table_build import Built, TableBuild, build_days, count_lines
from spark_jobs.transforms.foreign_keys import known_values
from spark_jobs.transforms.rules import NAMED_TIME_FORMATS

# What events refer to is there before them.
ORDER: tuple[TableName, ...] = ("items", "users", "events")
Parts = dict[str, tuple[DataFile, ...]]


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    contract: str
    raw: str
    out: str
    max_quarantined: float
    as_of_ms: int | None = None
    """Against what freshness is judged; None is now."""
    day: str | None = None
    """Build this day again and nothing else."""
    rebuild: bool = False
    """Read every file again and replace everything."""
    keep_versions: int = 2
    arrived: tuple[str, ...] | None = None
    """Take in these files of events only; None stands for all below `raw`."""


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How arriving files are watched for."""

    once: bool = False
    """Take in what is there and end."""
    every_s: float = 10.0
    files_per_batch: int = 1000
    checkpoint: str | None = None


@dataclass
class Run:
    """What one run has to do with and has done so far; tables are added as they are built."""

    config: IngestConfig
    contract: Contract
    store: EventStore
    evolution: tuple[Change, ...]
    states: dict[str, TableState] = field(default_factory=dict)
    parts: Parts = field(default_factory=dict)
    checks: list[CheckResult] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def spark(self) -> SparkSession:
        return self.store.spark

    def stood(self, name: str) -> TableState | None:
        standing = self.store.standing
        return standing.store.tables.get(name) if standing is not None and standing.store is not None else None

    def stood_parts(self, name: str) -> Parts:
        standing = self.store.standing
        names = (name, f"quarantine/{name}")
        return {part: standing.parts.get(part, ()) for part in names} if standing is not None else {}


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
        wanted = (
            {*run.config.arrived, *(file.url for file in stood.sources if stood)} if stood else {*run.config.arrived}
        )
        found["events"] = [file for file in found["events"] if file.url in wanted]
    return found


def take_in(run: Run, name: TableName, files: list[FileStatus]) -> bool:
    """Bring one table up to date; whether anything was built."""
    table = run.contract.tables()[name]
    build = TableBuild(store=run.store, name=name, table=table, known=known_keys(run, table))
    if run.config.day is not None and run.stood(name) is not None:
        return name == "events" and take_day(run, build, files, run.config.day)
    stood = run.stood(name)
    came = arrivals(stood.sources if stood else (), files)
    whole = stood is None or rebuilds_whole(run, name, table, came)
    if not whole and not came.unread:
        keep(run, name)
        return False
    assert stood is not None or whole
    with step(run.spark, f"{name}: lines and days of the files"):
        if whole or stood is None:
            counted = count_lines(build, files)
            plan = plan_all(counted, files)
        else:
            counted = count_lines(build, came.unread)
            plan = plan_days(stood.sources, came, counted)
    refuse_empty(name, files, sum(sum(file.days.values()) for file in plan.sources))
    with step(run.spark, f"{name}: rows checked and written"):
        built = build_plan(build, plan, came)
    with step(run.spark, f"{name}: judged"):
        settle(run, build, plan, built)
    return True


def known_keys(run: Run, table: Table) -> dict[str, DataFrame]:
    """By column with a reference, the keys that the table referred to has accepted."""
    known = {}
    for column in table.columns:
        if column.references is None:
            continue
        name, _, key = column.references.partition(".")
        referred: Table = getattr(run.contract, name)
        rows = read_part(run.spark, run.store.url, run.parts[name], spark_schema(referred))
        known[column.name] = known_values(rows, key, rows=run.states[name].total().accepted)
    return known


def rebuilds_whole(run: Run, name: TableName, table: Table, came: Arrivals) -> bool:
    """Whether every row must be judged again, and why."""
    if run.config.rebuild:
        return True
    ruled = [change for change in run.evolution if change.table == name and change.effect == "rebuild"]
    referred = {column.references.partition(".")[0] for column in table.columns if column.references}
    altered = [other for other in referred if run.states[other].total() != _total(run.stood(other))]
    if name != "events":
        return bool(came.unread or came.gone or ruled or not table.source.is_files)
    why = ""
    if ruled:
        why = f"{ruled[0]}"
    elif altered:
        why = f"events refer to {altered[0]}, which changed"
    elif came.unread and table.the("event_time").name not in table.key:
        why = "the key is without the event time, so a row can repeat one of any other day"
    elif not table.source.is_files:
        why = "the source is no files, so what is new in it cannot be told"
    if why and came.gone:
        raise UserError(
            f"events: all days must be built again ({why}), and {came.gone[0].url} is gone: bring it back, or give "
            "--rebuild to make the store of the files that are there."
        )
    if why:
        print(f"ingest: events: all days are built again: {why}.")
    return bool(why)


def keep(run: Run, name: TableName) -> None:
    """Let a table stand as it is in the last version."""
    stood = run.stood(name)
    assert stood is not None
    run.states[name] = stood
    run.parts |= run.stood_parts(name)


def take_day(run: Run, build: TableBuild, files: list[FileStatus], day: str) -> bool:
    """Build one day again from the files known to hold rows of it; everything else stands."""
    stood = run.stood("events")
    assert stood is not None
    read = plan_one_day(stood.sources, files, day)
    counted = count_lines(build, read)
    rows = {file.url: file.days.get(day, 0) for file in counted}
    plan = DayPlan(days=frozenset({day}), read=read, sources=with_day_counted(stood.sources, day, rows))
    with step(run.spark, f"{build.name}: {day} built again"):
        settle(run, build, plan, build_days(build, read, plan.days, counted))
    return True


def build_plan(build: TableBuild, plan: DayPlan, came: Arrivals) -> Built:
    """Build the days of a plan; rows that are only added come from the files that arrived."""
    read = {file.url for file in plan.read}
    sources = [file for file in plan.sources if file.url in read]
    if not plan.added_to or len(plan.read) == len(came.unread):
        return build_days(build, plan.read, plan.days, sources)
    assert plan.days is not None
    met = build_days(build, plan.read, plan.days - plan.added_to, sources)
    unread = {file.url for file in came.unread}
    added = build_days(build, came.unread, plan.added_to, [file for file in sources if file.url in unread])
    names = {*met.parts, *added.parts}
    parts = {name: met.parts.get(name, ()) + added.parts.get(name, ()) for name in names}
    return Built(parts=parts, days=met.days | added.days)


def settle(run: Run, build: TableBuild, plan: DayPlan, built: Built) -> None:
    """Put what was built beside what stands, and judge it; UserError where a check fails."""
    name, stood = build.name, run.stood(build.name)
    days, parts = dict(built.days), {name: (), f"quarantine/{name}": ()} | built.parts
    if plan.days is not None and stood is not None:
        for day, rows in stood.days.items():
            if day in plan.added_to:
                days[day] = rows.plus(days.get(day, DayRows()))
            elif day not in plan.days:
                days[day] = rows
        for part, files in run.stood_parts(name).items():
            gone = plan.days - plan.added_to
            parts[part] = tuple(file for file in files if day_of_path(file.path) not in gone) + parts[part]
    state = TableState(sources=plan.sources, days=dict(sorted(days.items())))
    judge(run, build, _sum(built.days), state, parts)
    run.states[name] = state
    run.parts |= parts
    if name == "events" and stood is not None and plan.days is not None:
        run.said.append(f"ingest: events: built {_named(plan.days)} from {len(plan.read):,} files; the rest stands.")


def judge(run: Run, build: TableBuild, built: DayRows, state: TableState, parts: Parts) -> None:
    """Check what was built against thresholds, and the table as it will stand for freshness and volume."""
    config, name = run.config, build.name
    as_of_ms = config.as_of_ms if config.as_of_ms is not None else int(datetime.now(UTC).timestamp() * 1000)
    before = _total(run.stood(name)) if run.stood(name) is not None else None
    sample = sampler(run, parts[f"quarantine/{name}"])
    results = rule_checks(name, build.table, built, max_quarantined=config.max_quarantined, sample=sample)
    results += whole_checks(name, build.table, state.total(), before, as_of_ms=as_of_ms)
    run.checks += results
    if any(result.verdict == "failed" for result in results):
        print(table_of(tuple(results)))
    refuse_failed(name, results, built)


def sampler(run: Run, refused: Sequence[DataFile]) -> Callable[[str], str]:
    """Shows one refused row that breaks a rule."""

    def sample(rule: str) -> str:
        rows = run.spark.read.parquet(*(join(run.store.url, file.path) for file in refused))
        broke = F.array_contains("rules", rule) | (F.col("rule") == rule)
        row = rows.where(broke).orderBy("file", "line").select("line", "file").first()
        return f"{bytes(row['line'])[:200].decode(errors='replace')!r} in {row['file']}." if row is not None else ""

    return sample


def refuse_empty(name: TableName, files: Sequence[FileStatus], rows: int) -> None:
    if rows == 0:
        raise UserError(f"{name}: {files[0].url} holds no rows.")


def publish(run: Run) -> None:
    """Publish the next version and say what it holds."""
    store, config = run.store, run.config
    state = StoreState(version=store.version, tables=run.states, checks=tuple(run.checks), evolution=run.evolution)
    ledgers: dict[str, TableLedger] = {name: run.states[name].ledger() for name in run.contract.tables()}
    settings = resolved(run)
    store.commit(
        Manifest(
            kind="events",
            id=config.out.rstrip("/").rsplit("/", 1)[-1],
            created_at=now_utc(),
            code_version=code_version(),
            contract=run.contract,
            config=settings,
            config_digest=digest_of(settings),
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


def _sum(days: Mapping[str, DayRows]) -> DayRows:
    return TableState(sources=(), days=dict(days)).total()


def _total(state: TableState | None) -> DayRows:
    return state.total() if state is not None else DayRows()


def _named(days: frozenset[str]) -> str:
    named = sorted(days - {NO_DAY})
    if len(named) <= 4:
        return ", ".join(named) or "rows without a day"
    return f"{len(named):,} days from {named[0]} to {named[-1]}"


def main(arguments: list[str] | None = None) -> int:
    command = parser("ingest", __doc__ or "")
    add = command.add_argument
    add("--contract", required=True, help="built-in contract's name, or a path ending in .yaml")
    add("--raw", required=True, help="folder or URL that holds the raw files")
    add("--out", required=True, help="folder or URL to publish, or to bring up to date")
    add("--max-quarantined", type=_share, default=0.1, help="stop where a larger share of a table's rows is bad")
    add("--as-of", type=_moment, help="the moment by which freshness is judged, ISO 8601; now unless given")
    add("--day", type=_day, help="build this day of events again, and nothing else")
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


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share between 0 and 1")
    return value


def _moment(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no ISO 8601 moment") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no day of the form 2024-05-31") from None


if __name__ == "__main__":
    sys.exit(main())
