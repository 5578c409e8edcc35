"""Profile: a published folder -> profile.json and one page of HTML that says what is in it, column by column."""

from __future__ import annotations

import json
import sys
import uuid
from dataclasses import dataclass
from statistics import median

from pyspark.sql import SparkSession

from schemas.errors import UserError
from schemas.manifest import DataFile
from schemas.profile import PAGE, PROFILE, PartFiles, Profile, QuarantineRule
from schemas.settings import parse_model
from schemas.snapshot import Snapshot
from schemas.storage import absolute, join
from schemas.version import VERSION, code_version, now_utc
from spark_jobs.command_line import parser, run
from spark_jobs.hadoop_files import HadoopFiles
from spark_jobs.profiling.findings import findings
from spark_jobs.profiling.page import page
from spark_jobs.profiling.quarantine import quarantine_rules
from spark_jobs.profiling.reading import open_either, quarantine_parent, tables_of, vocabulary_texts
from spark_jobs.profiling.summary import summary
from spark_jobs.profiling.tables import profile_table
from spark_jobs.session import size_shuffles, step


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    folder: str
    out: str


def profile(spark: SparkSession, config: ProfileConfig) -> None:
    """Profile the folder into `config.out`; the published folder itself never changes."""
    hadoop = HadoopFiles(spark)
    snapshot = open_either(hadoop, config.folder)
    standing = standing_profile(hadoop, config.out, snapshot)
    if standing is None:
        found = describe(spark, hadoop, snapshot)
        write(hadoop, config.out, found)
    else:
        found = standing
        print(f"profile: {config.out} stands already, made of this folder.")
    print(summary(found))
    print(
        f"profile: wrote {join(config.out, PROFILE)}" if standing is None else f"profile: {join(config.out, PROFILE)}"
    )
    print(f"profile: open {join(config.out, PAGE)}")


def describe(spark: SparkSession, hadoop: HadoopFiles, snapshot: Snapshot) -> Profile:
    """Measure every table of the folder; nothing is written."""
    manifest = snapshot.manifest
    size_shuffles(spark, sum(file.bytes for files in manifest.parts.values() for file in files) // 64)
    texts = vocabulary_texts(spark, snapshot)
    measured = []
    for table in tables_of(spark, snapshot):
        with step(spark, f"{table.name}: sketches and counts"):
            measured.append(profile_table(table, manifest.transform, texts))
    tables = tuple(measured)
    with step(spark, "refused rows"):
        refused, remark = refused_rows(spark, hadoop, snapshot)
    return Profile(
        created_at=now_utc(),
        code_version=code_version(),
        url=snapshot.url,
        id=manifest.id,
        kind=manifest.kind,
        digest=manifest.digest(),
        published_at=manifest.created_at,
        published_by=manifest.code_version,
        contract=manifest.contract.name,
        contract_meaning=manifest.contract.meaning,
        config=manifest.config,
        parents=manifest.parents,
        ledger=manifest.ledger,
        statistics=manifest.statistics,
        parts=tuple(files_of(part, files) for part, files in manifest.parts.items()),
        tables=tables,
        quarantine=refused,
        quarantine_remark=remark,
        findings=tuple(findings(tables, manifest.ledger)),
    )


def refused_rows(
    spark: SparkSession, hadoop: HadoopFiles, snapshot: Snapshot
) -> tuple[tuple[QuarantineRule, ...], str]:
    """Refused rows by table and rule; without the events folder the ledger's counts and why there are no samples."""
    tables = snapshot.manifest.ledger.tables
    if not any(table.quarantined + table.duplicates for table in tables.values()):
        return (), ""
    events, remark = quarantine_parent(hadoop, snapshot)
    if events is not None:
        return tuple(quarantine_rules(spark, events.url, events.manifest.parts)), ""
    counted = [
        QuarantineRule(table=name, rule=rule, rows=rows, samples=())
        for name, table in tables.items()
        for rule, rows in {**table.quarantined_by_rule, "duplicate_key": table.duplicates}.items()
        if rows
    ]
    return tuple(sorted(counted, key=lambda rule: (rule.table, -rule.rows))), remark


def files_of(part: str, files: tuple[DataFile, ...]) -> PartFiles:
    groups = [rows for file in files for rows in file.row_groups]
    return PartFiles(
        part=part,
        files=len(files),
        rows=sum(groups),
        row_groups=len(groups),
        bytes=sum(file.bytes for file in files),
        median_row_group_rows=round(median(groups)) if groups else 0,
    )


def standing_profile(hadoop: HadoopFiles, out: str, snapshot: Snapshot) -> Profile | None:
    """The profile at `out` where it is this folder's, by this release; UserError where something else lies there."""
    if hadoop.is_file(out):
        raise UserError(f"{out} is a file, and a folder is to be written: give another --out.")
    names = hadoop.children(out) if hadoop.exists(out) else []
    foreign = [
        name for name in names if name not in (PROFILE, PAGE) and not name.startswith(f".{PROFILE.split('.')[0]}")
    ]
    if foreign:
        raise UserError(f"{out} holds {foreign[0]!r}, which is no part of a profile: give another --out.")
    if PROFILE not in names:
        return None
    try:
        found = json.loads(hadoop.read_text(join(out, PROFILE)))
    except ValueError:
        return None
    if found.get("digest") != snapshot.manifest.digest():
        raise UserError(f"{out} holds the profile of another folder, {found.get('url')}: give another --out.")
    if str(found.get("code_version")).split("+")[0] != VERSION or PAGE not in names:
        return None
    return parse_model(Profile, found, where=join(out, PROFILE))


def write(hadoop: HadoopFiles, out: str, found: Profile) -> None:
    """Write both files beside their names and rename them, the JSON last: where it stands, the page stands too."""
    hadoop.make_folder(out)
    draft = uuid.uuid4().hex
    texts = {PAGE: page(found), PROFILE: found.model_dump_json(indent=1)}
    for name, text in texts.items():
        hadoop.write_text(join(out, f".{name}.{draft}"), text)
    for name in (PROFILE, PAGE):
        hadoop.delete_folder(join(out, name))
    for name in texts:
        hadoop.rename(join(out, f".{name}.{draft}"), join(out, name))


def main(arguments: list[str] | None = None) -> int:
    command = parser("profile_snapshot", __doc__ or "")
    command.add_argument("folder", metavar="FOLDER", help="snapshot or events: folder or URL that a job published")
    command.add_argument("--out", help="folder or URL for the two files (FOLDER-profile, beside it)")
    given = command.parse_args(arguments)
    folder = absolute(given.folder).rstrip("/")
    out = absolute(given.out).rstrip("/") if given.out else f"{folder}-profile"
    return run("profile", lambda spark: profile(spark, ProfileConfig(folder=folder, out=out)))


if __name__ == "__main__":
    sys.exit(main())
