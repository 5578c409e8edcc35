"""Ingest: raw delimited or JSON-lines tables -> checked events, items and users, with every line accounted for."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from typing import Any

from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F

from schemas.contract import Contract, Table, TableName, read_contract
from schemas.errors import UserError
from schemas.ledger import Ledger, TableLedger
from schemas.manifest import DataFile, Manifest
from schemas.storage import absolute, join
from schemas.version import VERSION, code_version, now_utc
from spark_jobs.command_line import parser, run
from spark_jobs.datasets import read_lines, write_table
from spark_jobs.hadoop_files import FileStatus, HadoopFiles
from spark_jobs.publication import Publication, begin
from spark_jobs.session import size_shuffles
from spark_jobs.transforms.duplicates import with_repetition
from spark_jobs.transforms.parsing import check_header, header_of, with_raw_fields
from spark_jobs.transforms.rules import NAMED_TIME_FORMATS, with_checked_columns

Parts = dict[str, tuple[DataFile, ...]]
ACCEPTED, DUPLICATE, QUARANTINED, HEADER, BLANK = "accepted", "duplicate", "quarantined", "header", "blank"


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    contract: str
    raw: str
    out: str
    max_quarantined: float


def ingest(spark: SparkSession, config: IngestConfig) -> None:
    """Check every table of the contract and publish the folder `config.out`."""
    contract = read_contract(config.contract)
    check_time_formats(spark, contract)
    hadoop = HadoopFiles(spark)
    sources = {name: find_source(hadoop, config.raw, table, name) for name, table in contract.tables().items()}
    settings = _settings(config, contract, sources)
    publication = begin(spark, config.out, settings)
    if publication is None:
        print(f"ingest: {config.out} stands already, made with these settings from these files.")
        return
    size_shuffles(spark, sum(file.bytes for files in sources.values() for file in files))
    ledgers: dict[str, TableLedger] = {}
    parts: Parts = {}
    for name, table in contract.tables().items():
        ledgers[name], written = ingest_table(publication, name, table, sources[name], config.max_quarantined)
        parts |= written
    publication.commit(
        Manifest(
            kind="events",
            id=config.out.rstrip("/").rsplit("/", 1)[-1],
            created_at=now_utc(),
            code_version=code_version(),
            contract=contract,
            config=settings,
            config_digest=publication.config_digest,
            ledger=Ledger(tables=ledgers),
            parts=parts,
        )
    )
    for table_name, ledger in ledgers.items():
        print(
            f"ingest: {table_name}: {ledger.rows:,} rows = {ledger.accepted:,} accepted + "
            f"{ledger.duplicates:,} duplicates + {ledger.quarantined:,} quarantined"
        )
    print(f"ingest: published {config.out}")


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


def find_source(hadoop: HadoopFiles, raw: str, table: Table, name: TableName) -> list[FileStatus]:
    """The files of a raw table; UserError where there are none, or only empty ones."""
    url = join(raw, table.source.path)
    files = hadoop.glob(url)
    if not files:
        raise UserError(f"{name}: no file at {url}. Give the folder that holds {table.source.path!r} with --raw.")
    if not any(file.bytes for file in files):
        raise UserError(f"{name}: {files[0].url} is empty.")
    return files


def ingest_table(
    publication: Publication, name: TableName, table: Table, files: list[FileStatus], max_quarantined: float
) -> tuple[TableLedger, Parts]:
    """Write a table's accepted and refused rows; give its ledger and the files written."""
    # Counted at the source as the rows stream by, so that the ledger compares two independent counts in one scan.
    read = Observation()
    lines = read_lines(publication.spark, [file.url for file in files]).observe(read, F.count("*").alias("lines"))
    header_line = common_header(publication.files, table, files, name)
    header = header_of(header_line, table.source) if header_line is not None else None
    checked = with_status(with_repetition(with_checked_columns(with_raw_fields(lines, table, header), table), table))
    if header_line is not None:
        is_header = F.col("line").cast("binary") == F.lit(bytearray(header_line))
        checked = checked.withColumn("status", F.when(is_header, HEADER).otherwise(F.col("status")))
    checked.persist(StorageLevel.MEMORY_AND_DISK)
    try:
        counts = count_by_status(checked)
        write_table(accepted_rows(checked, table), publication.part(name))
        write_table(refused_rows(checked), publication.part(f"quarantine/{name}"), num_files=1)
    finally:
        checked.unpersist()
    files_written = publication.data_files(name)
    ledger = TableLedger(
        lines=read.get["lines"],
        headers=sum(counts.get(HEADER, {}).values()),
        blanks=sum(counts.get(BLANK, {}).values()),
        accepted=sum(file.rows for file in files_written),
        duplicates=sum(counts.get(DUPLICATE, {}).values()),
        quarantined=sum(counts.get(QUARANTINED, {}).values()),
        quarantined_by_rule=counts.get(QUARANTINED, {}),
    )
    ledger.check(name)
    refuse_if_unfit(name, ledger, files, max_quarantined)
    return ledger, {name: files_written, f"quarantine/{name}": publication.data_files(f"quarantine/{name}")}


def common_header(hadoop: HadoopFiles, table: Table, files: list[FileStatus], name: TableName) -> bytes | None:
    """The header line that all files of the table share, checked against the contract; None where there is none."""
    if table.source.format != "delimited" or not table.source.header:
        return None
    shared: bytes | None = None
    for file in files:
        line = hadoop.first_line(file.url)
        if not line:
            continue
        check_header(header_of(line, table.source), table, where=f"{name}: {file.url}")
        if shared is not None and line != shared:
            raise UserError(f"{name}: {file.url} has another header than {files[0].url}: ingest them one by one.")
        shared = line
    if shared is None:
        raise UserError(f"{name}: {files[0].url} begins with no header line.")
    return shared


def with_status(checked: DataFrame) -> DataFrame:
    """Say where each line goes: accepted, duplicate, quarantined or blank."""
    blank = F.length(F.trim("line")) == 0
    status = (
        F.when(blank, BLANK)
        .when(F.size("broken") > 0, QUARANTINED)
        .when(F.col("repetition") > 1, DUPLICATE)
        .otherwise(ACCEPTED)
    )
    return checked.withColumn("status", status)


def count_by_status(checked: DataFrame) -> dict[str, dict[str, int]]:
    """Lines by status, and by the first rule broken: a small table whatever the log."""
    first_rule = F.when(F.col("status") == QUARANTINED, F.element_at("broken", 1)["rule"]).otherwise("")
    counts: dict[str, dict[str, int]] = {}
    for row in checked.groupBy("status", first_rule.alias("rule")).count().collect():
        counts.setdefault(row["status"], {})[row["rule"]] = row["count"]
    return counts


def accepted_rows(checked: DataFrame, table: Table) -> DataFrame:
    return checked.where(F.col("status") == ACCEPTED).select(*(column.name for column in table.columns))


def refused_rows(checked: DataFrame) -> DataFrame:
    """Quarantined and duplicate rows: the line byte for byte, its file, the first rule broken, why, and all rules."""
    refused = F.col("status").isin(QUARANTINED, DUPLICATE)
    duplicate = F.col("status") == DUPLICATE
    return checked.where(refused).select(
        F.col("line").cast("binary").alias("line"),
        "file",
        F.when(duplicate, "duplicate_key").otherwise(F.element_at("broken", 1)["rule"]).alias("rule"),
        F.when(duplicate, "an earlier row has the same key")
        .otherwise(F.element_at("broken", 1)["reason"])
        .alias("reason"),
        F.transform("broken", lambda entry: entry["rule"]).alias("rules"),
    )


def refuse_if_unfit(name: TableName, ledger: TableLedger, files: list[FileStatus], max_quarantined: float) -> None:
    """Raise UserError for an empty table, or one so bad that the contract is more likely wrong than the rows."""
    if ledger.rows == 0:
        raise UserError(f"{name}: {files[0].url} holds no rows.")
    if ledger.quarantined > max_quarantined * ledger.rows:
        worst = max(ledger.quarantined_by_rule, key=lambda rule: ledger.quarantined_by_rule[rule])
        raise UserError(
            f"{name}: {ledger.quarantined:,} of {ledger.rows:,} rows break the contract, more than the "
            f"{max_quarantined:.0%} that --max-quarantined allows; most break {worst!r} "
            f"({ledger.quarantined_by_rule[worst]:,} rows). Nothing was published."
        )


def _settings(config: IngestConfig, contract: Contract, sources: dict[TableName, list[FileStatus]]) -> dict[str, Any]:
    return {
        "job": "ingest",
        "release": VERSION,
        "contract": contract.digest(),
        "max_quarantined": config.max_quarantined,
        "sources": {name: [asdict(file) for file in files] for name, files in sources.items()},
    }


def main(arguments: list[str] | None = None) -> int:
    command = parser("ingest", __doc__ or "")
    command.add_argument("--contract", required=True, help="built-in contract's name, or a path ending in .yaml")
    command.add_argument("--raw", required=True, help="folder or URL that holds the raw files")
    command.add_argument("--out", required=True, help="folder or URL to publish; must not exist")
    command.add_argument(
        "--max-quarantined", type=_share, default=0.1, help="stop where a larger share of a table's rows is bad"
    )
    given = command.parse_args(arguments)
    config = IngestConfig(
        contract=given.contract,
        raw=absolute(given.raw),
        out=absolute(given.out),
        max_quarantined=given.max_quarantined,
    )
    return run("ingest", lambda spark: ingest(spark, config))


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share between 0 and 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
