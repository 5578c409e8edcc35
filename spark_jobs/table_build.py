"""Building one table of the store: count its lines, write what is sound, look again only where rows are missing.

A clean row costs one narrow reading (its key and time) and one whole one. Which days hold bad or repeated rows shows
by the rows missing there; only files of those days are read once more, for reasons and for the first row of each key.
All counts come from results of whole jobs and from the files written, so that a stage that Spark runs again, after an
executor is lost, counts once.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.contract import Table, TableName
from schemas.errors import LedgerError
from schemas.event_store import CHECKSUM_MODULUS, NO_DAY, DayRows, SourceFile
from schemas.manifest import DataFile
from schemas.storage import join
from spark_jobs.datasets import read_part
from spark_jobs.event_store import EventStore, day_of_path
from spark_jobs.hadoop_files import FileStatus
from spark_jobs.sources import BLANK, HEADER, KIND, ROW, RawTable, open_source, plain_url, with_line
from spark_jobs.spark_types import spark_schema
from spark_jobs.transforms.duplicates import KEY_HASH, repeated_keys, with_key_hash, with_repetition
from spark_jobs.transforms.event_days import DAY, in_days, name_of, with_day
from spark_jobs.transforms.foreign_keys import foreign_key_rules, only_with_known_keys, with_known_marks
from spark_jobs.transforms.rules import any_broken, rules_of, with_broken, with_typed_columns

ACCEPTED, DUPLICATE, QUARANTINED = "accepted", "duplicate", "quarantined"
_BROADCAST_KEYS = 2_000_000
_TASK_BYTES = 128 << 20


@dataclass(frozen=True, kw_only=True)
class TableBuild:
    """One table, the files of it to read, and where its rows go."""

    store: EventStore
    name: TableName
    table: Table
    known: Mapping[str, DataFrame] = field(default_factory=dict)
    """By column, the values that a reference may have."""

    @property
    def spark(self) -> SparkSession:
        return self.store.spark

    def open(self, files: Sequence[FileStatus]) -> RawTable:
        return open_source(self.spark, self.store.files, self.table, self.name, files)


@dataclass(frozen=True, kw_only=True)
class Built:
    """What was written, by part, and where the rows of each day went."""

    parts: dict[str, tuple[DataFile, ...]]
    days: dict[str, DayRows]


def count_lines(build: TableBuild, files: Sequence[FileStatus]) -> tuple[SourceFile, ...]:
    """The files with their headers, blank lines, and rows by day."""
    names = [column.name for column in build.table.with_role("event_time")]
    lines = build.open(files).read(lambda fields: _dated(fields, build.table).select("file", KIND, DAY), names)
    counts: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for row in lines.groupBy("file", KIND, DAY).count().collect():  # as many as the manifest lists: files by days
        counts[plain_url(row["file"])][row[KIND]][name_of(row[DAY])] = row["count"]
    return tuple(
        SourceFile(
            url=file.url,
            bytes=file.bytes,
            modified_ms=file.modified_ms,
            headers=sum(counts[file.url][HEADER].values()),
            blanks=sum(counts[file.url][BLANK].values()),
            days=dict(sorted(counts[file.url][ROW].items())),
        )
        for file in files
    )


def build_days(
    build: TableBuild, files: Sequence[FileStatus], days: Collection[str] | None, counted: Sequence[SourceFile]
) -> Built:
    """Write these days' rows (None: all) from these files. `counted`: the files' rows by day, as `count_lines` found.

    Raises LedgerError where a row was lost or came twice.
    """
    expected = _rows_expected(counted, days)
    if not expected:
        return Built(parts={}, days={})
    raw = build.open(files)
    repeated, num_repeated = _repeated(build, raw, days)
    try:
        sound = raw.read(lambda fields: _sound_rows(build, fields, days))
        alone = sound.join(repeated, on=KEY_HASH, how="left_anti") if num_repeated else sound
        accepted = write_rows(build, alone, "sound", build.name, gathered=_would_be_scattered(counted, days))
        missing = {day for day, rows in expected.items() if rows != _rows_by_day(accepted).get(day, 0)}
        refused: tuple[DataFile, ...] = ()
        if missing:
            more, refused = _look_again(build, raw, missing, repeated if num_repeated else None)
            accepted += more
    finally:
        repeated.unpersist()
    written = stock_by_day(build, accepted)
    for day, rows in _refusals(build, refused).items():
        written[day] = written.get(day, DayRows()).plus(rows)
    _check_days(build.name, expected, written)
    return Built(parts={build.name: accepted, f"quarantine/{build.name}": refused}, days=written)


def _dated(fields: DataFrame, table: Table) -> DataFrame:
    return with_day(with_typed_columns(fields, table), table)


def _repeated(build: TableBuild, raw: RawTable, days: Collection[str] | None) -> tuple[DataFrame, int]:
    """Key hashes that come more than once in these days, kept at hand, and their number."""
    table = build.table
    names = [*table.key, *(column.name for column in table.with_role("event_time"))]

    def narrow(fields: DataFrame) -> DataFrame:
        rows = with_key_hash(_dated(fields, table), table)
        return rows.where((F.col(KIND) == ROW) & in_days(days)).select(KEY_HASH)

    repeated = repeated_keys(raw.read(narrow, names)).persist(StorageLevel.MEMORY_AND_DISK)
    count = repeated.count()
    return (F.broadcast(repeated) if count <= _BROADCAST_KEYS else repeated), count


def _sound_rows(build: TableBuild, fields: DataFrame, days: Collection[str] | None) -> DataFrame:
    """Rows that break no rule, with the contract's columns, `day` and `key_hash`."""
    rows = _dated(fields, build.table)
    sound = rows.where((F.col(KIND) == ROW) & in_days(days) & ~any_broken(rules_of(fields, build.table)))
    sound = only_with_known_keys(sound, build.table, build.known)
    columns = [column.name for column in build.table.columns]
    return with_key_hash(sound, build.table).select(*columns, DAY, KEY_HASH)


def _look_again(
    build: TableBuild, raw: RawTable, days: Collection[str], repeated: DataFrame | None
) -> tuple[tuple[DataFile, ...], tuple[DataFile, ...]]:
    """Of these days, write the first rows of repeated keys, and all that is refused with its reasons."""
    judged = raw.read(lambda fields: _judged(build, fields, days, repeated)).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        bad = judged.where(F.size("broken") > 0).withColumn("repetition", F.lit(0))
        keyed = with_repetition(judged.where(F.size("broken") == 0), build.table)
        columns = [column.name for column in build.table.columns]
        first = keyed.where(F.col("repetition") == 1).select(*columns, DAY)
        accepted = write_rows(build, first, "first", build.name) if repeated is not None else ()
        refused = _refused(bad.unionByName(keyed.where(F.col("repetition") > 1)))
        return accepted, write_rows(build, refused, "refused", f"quarantine/{build.name}")
    finally:
        judged.unpersist()


def _judged(build: TableBuild, fields: DataFrame, days: Collection[str], repeated: DataFrame | None) -> DataFrame:
    """Rows of these days that break a rule, with `broken`, and those that share their key with another."""
    table = build.table
    rules = [*rules_of(fields, table), *foreign_key_rules(table, build.known)]
    rows = _dated(fields, table).where((F.col(KIND) == ROW) & in_days(days))
    rows = with_key_hash(with_known_marks(rows, build.known), table)
    suspect = F.lit(False)
    if repeated is not None:
        marked = repeated.select(F.col(KEY_HASH).alias("_repeated"))
        rows = rows.join(marked, on=rows[KEY_HASH] == marked["_repeated"], how="left_outer")
        suspect = F.col("_repeated").isNotNull()
    rows = with_line(with_broken(rows.where(any_broken(rules) | suspect), rules))
    return rows.select("line", "file", "broken", DAY, *(column.name for column in table.columns))


def _refused(rows: DataFrame) -> DataFrame:
    """Quarantined and duplicate rows: the line byte for byte, its file, the first rule broken, why, and all rules."""
    duplicate = F.col("repetition") > 1
    first = F.get("broken", F.lit(0))
    return rows.select(
        F.col("line").cast("binary").alias("line"),
        "file",
        F.when(duplicate, "duplicate_key").otherwise(first["rule"]).alias("rule"),
        F.when(duplicate, "an earlier row has the same key").otherwise(first["reason"]).alias("reason"),
        F.transform("broken", lambda entry: entry["rule"]).alias("rules"),
        DAY,
    )


def write_rows(
    build: TableBuild,
    rows: DataFrame,
    staged: str,
    part: str,
    *,
    gathered: bool = True,
) -> tuple[DataFile, ...]:
    """Write rows under names of their own, by day where the table has event times; no manifest names them yet.

    `gathered`: the rows of a day are brought together first, so that a day is one file unless it is large.
    """
    by_day = bool(build.table.with_role("event_time"))
    rows = rows.drop(KEY_HASH)
    rows = rows.withColumn(DAY, F.date_from_unix_date(DAY)) if by_day else rows.drop(DAY)
    if gathered:
        rows = rows.hint("rebalance", DAY) if by_day else rows.hint("rebalance")
    # Rows of a log come about in order of time: a task that keeps a few files open need not sort its rows by day.
    build.spark.conf.set("spark.sql.maxConcurrentOutputFileWriters", "8" if by_day else "0")
    # Level 1 is quicker to write than the default 3, for a tenth more bytes.
    writer = rows.write.mode("error").option("compression", "zstd").option("parquet.compression.codec.zstd.level", "1")
    writer = writer.option("parquet.size.statistics.enabled", "false")  # nothing here asks for them
    for column in build.table.columns:
        if column.type not in ("string", "list<string>"):
            # Building dictionaries of numbers took half of the writing's time, and spared little.
            writer = writer.option(f"parquet.enable.dictionary#{column.name}", "false")
    name = f"{build.name}-{staged}-{uuid.uuid4().hex}"  # a run may build twice: days, and rows added to no day
    with build.store.held():
        (writer.partitionBy(DAY) if by_day else writer).parquet(build.store.staging(name))
        return build.store.data_files(build.store.place(name, part))


def _rows_expected(counted: Sequence[SourceFile], days: Collection[str] | None) -> dict[str, int]:
    rows: dict[str, int] = defaultdict(int)
    for file in counted:
        for day, count in file.days.items():
            if days is None or day in days:
                rows[day] += count
    return rows


def _would_be_scattered(counted: Sequence[SourceFile], days: Collection[str] | None) -> bool:
    """Whether the tasks would write many small files, each meeting many days: then days are gathered first.

    A log in order of time needs no shuffle: its tasks meet few days, and each writes them as they come.
    """
    met = sum(max(1, file.bytes // _TASK_BYTES) * len(_rows_expected([file], days)) for file in counted)
    return met > 4 * len(_rows_expected(counted, days)) + 64


def _rows_by_day(files: Sequence[DataFile]) -> dict[str, int]:
    rows: dict[str, int] = defaultdict(int)
    for file in files:
        if file.rows:
            rows[day_of_path(file.path)] += file.rows
    return rows


def stock_by_day(build: TableBuild, files: Sequence[DataFile]) -> dict[str, DayRows]:
    """By day, what the files written hold: rows, the sum of their hashes, the latest event time. Reads them back."""
    if not files:
        return {}
    table = build.table
    rows = read_part(build.spark, build.store.url, files, spark_schema(table))
    digest = F.xxhash64(*(column.name for column in table.columns))
    times = table.with_role("event_time") or table.with_role("valid_from")
    found = rows.groupBy(F.col("_metadata.file_name").alias("name")).agg(
        F.count("*").alias("rows"),
        # In two halves, for a sum of 64-bit numbers would not fit into one.
        F.sum(F.shiftrightunsigned(digest, 32)).alias("high"),
        F.sum(digest.bitwiseAND(F.lit(0xFFFFFFFF))).alias("low"),
        F.max(times[0].name if times else F.lit(None).cast("bigint")).alias("last"),
    )
    day_of_name = {file.path.rsplit("/", 1)[-1]: day_of_path(file.path) for file in files}
    days: dict[str, DayRows] = {}
    for row in found.collect():  # one short row a file
        day = day_of_name[row["name"]]
        checksum = ((row["high"] << 32) + row["low"]) % CHECKSUM_MODULUS
        of_file = DayRows(accepted=row["rows"], checksum=checksum, last_event_time_ms=row["last"])
        days[day] = days.get(day, DayRows()).plus(of_file)
    return days


def _refusals(build: TableBuild, files: Sequence[DataFile]) -> dict[str, DayRows]:
    """By day, the refused rows that were written, by first rule and by every rule."""
    if not files:
        return {}
    rows = build.spark.read.parquet(*(join(build.store.url, file.path) for file in files))
    rows = rows.select(F.col("_metadata.file_name").alias("name"), "rule", "rules")
    first = rows.groupBy("name", "rule").count()
    every = F.when(F.col("rule") == "duplicate_key", F.array("rule")).otherwise(F.array_distinct("rules"))
    each = rows.select("name", F.explode(every).alias("rule")).groupBy("name", "rule").count()
    day_of_name = {file.path.rsplit("/", 1)[-1]: day_of_path(file.path) for file in files}
    days: dict[str, DayRows] = {}

    def add(name: str, **counts: object) -> None:
        day = day_of_name[name]
        days[day] = days.get(day, DayRows()).plus(DayRows.model_validate(counts))

    for row in first.collect():  # files by rules
        if row["rule"] == "duplicate_key":
            add(row["name"], duplicates=row["count"])
        else:
            add(row["name"], quarantined_by_rule={row["rule"]: row["count"]})
    for row in each.collect():
        add(row["name"], broken_by_rule={row["rule"]: row["count"]})
    return days


def _check_days(name: str, expected: Mapping[str, int], written: Mapping[str, DayRows]) -> None:
    """Raise LedgerError naming the first day whose rows read and rows written differ."""
    for day in sorted({*expected, *written}):
        rows = written.get(day, DayRows())
        if rows.rows != expected.get(day, 0):
            of_day = f" of {day}" if day != NO_DAY else ""
            raise LedgerError(
                f"{name}: the ledger does not add up: {expected.get(day, 0):,} rows{of_day} read, but "
                f"{rows.accepted:,} accepted + {rows.duplicates:,} duplicates + {rows.quarantined:,} quarantined."
            )
