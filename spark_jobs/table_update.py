"""Bringing one table of an event store up to date: which files to read, what to build, how to judge it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.contract import Contract, Table, TableName
from schemas.errors import UserError
from schemas.event_store import NO_DAY, CheckResult, DayRows, TableState
from schemas.evolution import Change
from schemas.manifest import DataFile
from schemas.storage import join
from spark_jobs.checks import refuse_failed, rule_checks, table_of, whole_checks
from spark_jobs.datasets import read_part
from spark_jobs.day_plan import Arrivals, DayPlan, arrivals, plan_all, plan_days, plan_one_day, with_day_counted
from spark_jobs.event_store import EventStore, day_of_path
from spark_jobs.hadoop_files import FileStatus
from spark_jobs.session import step
from spark_jobs.spark_types import spark_schema
from spark_jobs.table_build import Built, TableBuild, build_days, count_lines
from spark_jobs.transforms.foreign_keys import known_values

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


def take_in(run: Run, name: TableName, files: list[FileStatus]) -> bool:
    """Bring one table up to date; whether anything was built."""
    table = run.contract.tables()[name]
    build = TableBuild(store=run.store, name=name, table=table, known=known_keys(run, table))
    stood = run.stood(name)
    if run.config.day is not None and stood is not None:
        if name == "events":
            return take_day(run, build, files, run.config.day)
        keep(run, name)
        return False
    came = arrivals(stood.sources if stood else (), files, drops_gone=table.source.gone == "drop")
    whole = stood is None or rebuilds_whole(run, name, table, came)
    if not whole and not came.anything:
        keep(run, name)
        # A source that has stopped delivering shows here and nowhere else.
        refuse_failed(name, whole_checks(name, table, _total(stood), None, as_of_ms=as_of_ms(run.config)), DayRows())
        return False
    assert stood is not None or whole
    with step(run.spark, f"{name}: lines and days of the files"):
        if whole or stood is None:
            counted = count_lines(build, files)
            plan = plan_all(counted, files)
        else:
            counted = count_lines(build, came.unread) if came.unread else ()
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
        return bool(came.anything or came.gone or ruled or not table.source.is_files)
    why = ""
    if ruled:
        why = f"{ruled[0]}"
    elif altered:
        why = f"events refer to {altered[0]}, which changed"
    elif came.anything and table.the("event_time").name not in table.key:
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
    before = _total(run.stood(name)) if run.stood(name) is not None else None
    sample = sampler(run, parts[f"quarantine/{name}"])
    results = rule_checks(name, build.table, built, max_quarantined=config.max_quarantined, sample=sample)
    results += whole_checks(name, build.table, state.total(), before, as_of_ms=as_of_ms(config))
    run.checks += results
    if any(result.verdict == "failed" for result in results):
        print(table_of(tuple(results)))
    refuse_failed(name, results, built)


def as_of_ms(config: IngestConfig) -> int:
    return config.as_of_ms if config.as_of_ms is not None else int(datetime.now(UTC).timestamp() * 1000)


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


def _sum(days: Mapping[str, DayRows]) -> DayRows:
    return TableState(sources=(), days=dict(days)).total()


def _total(state: TableState | None) -> DayRows:
    return state.total() if state is not None else DayRows()


def _named(days: frozenset[str]) -> str:
    named = sorted(days - {NO_DAY})
    if len(named) <= 4:
        return ", ".join(named) or "rows without a day"
    return f"{len(named):,} days from {named[0]} to {named[-1]}"
