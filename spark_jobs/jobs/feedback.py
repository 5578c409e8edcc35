"""Feedback: what was shown and what was done, as landed -> events of the contract, day by day; late clicks in time."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from schemas.contract import Contract, read_contract
from schemas.errors import UserError
from schemas.event_store import StoreState
from schemas.feedback import FeedbackRules, read_rules
from schemas.feedback_state import Delays, FeedbackState, ServedDay
from schemas.ledger import FeedbackLedger, Ledger
from schemas.manifest import MANIFEST, DataFile, Manifest, Parent
from schemas.served_contract import contract_yaml, served_contract
from schemas.settings import digest_of
from schemas.snapshot import Snapshot
from schemas.storage import absolute, join
from schemas.version import VERSION
from spark_jobs.command_line import moment, parser, run
from spark_jobs.datasets import read_part
from spark_jobs.event_store import claim, day_of_path
from spark_jobs.feedback.build import BuiltDays, FeedbackBuild, build_days, count_rest
from spark_jobs.feedback.joining import Moment
from spark_jobs.feedback.labels import check_rules
from spark_jobs.feedback.landed import find_landed
from spark_jobs.feedback.plan import FeedbackPlan, Reach, holding, plan
from spark_jobs.feedback.report import HOUR_MS, named, told
from spark_jobs.feedback.standing import Files, count_files, due, settings_of, settled_as_of, standing_state
from spark_jobs.hadoop_files import HadoopFiles
from spark_jobs.publication import identity, open_published
from spark_jobs.session import size_shuffles
from spark_jobs.sources import naming_broken_files
from spark_jobs.spark_types import spark_schema


@dataclass(frozen=True, kw_only=True)
class FeedbackConfig:
    landed: str
    seed: str
    contract: str
    rules: str
    out: str
    contract_out: str | None = None
    """None: contract.yaml in `out`."""
    as_of_ms: int | None = None
    """None is now."""
    rebuild: bool = False


@dataclass(frozen=True, kw_only=True)
class Built:
    """The next version."""

    files: tuple[DataFile, ...]
    state: FeedbackState


def feedback(spark: SparkSession, config: FeedbackConfig) -> None:
    """Join what was landed since the last run, build the days that it touches, and publish the next version."""
    base, rules = read_contract(config.contract), read_rules(config.rules)
    check_rules(rules, base)
    served = served_contract(base, weighted=rules.young == "weight")
    seed = open_seed(spark, config.seed, base)
    hadoop = HadoopFiles(spark)
    found = (find_landed(hadoop, config.landed, "impressions"), find_landed(hadoop, config.landed, "actions"))
    check_kind(spark, hadoop, config.out)
    store = claim(spark, config.out)
    if store.standing is not None:
        store.let_go(1)  # what a killed job left lies where readers of the folder would find it
    before = standing_state(store.standing, settings_of(base, rules, seed.manifest), found, rebuild=config.rebuild)
    as_of_ms = settled_as_of(config.as_of_ms, before, config.out)
    size_shuffles(spark, sum(file.bytes for files in found for file in files))
    with naming_broken_files():
        files = count_files(spark, found, before)
        by_time = due(before, rules, as_of_ms, came=files.unread)
        days = plan(Reach.of(rules), files.came, (files.impressions, files.actions), before, by_time)
        if before is not None and not days.days and not days.rest and not files.unread:
            print(f"feedback: {config.out} stands already, made by these rules from these files.")
        else:
            build = FeedbackBuild(
                store=store,
                base=base,
                served=served,
                rules=rules,
                at=Moment(
                    as_of_ms=as_of_ms,
                    seen_until_ms=min(as_of_ms, files.landed_until_ms),
                    window_ms=round(rules.window_hours * HOUR_MS),
                ),
                items=items_of(spark, seed, base, rules),
            )
            with store.held():
                publish(build, config, seed, built(build, days, files, before))
    hadoop.replace_text(config.contract_out or join(config.out, "contract.yaml"), contract_yaml(served))
    # Not where the work failed: by the claim the next run knows what this one left for its own.
    store.release()


def open_seed(spark: SparkSession, url: str, base: Contract) -> Snapshot:
    seed = open_published(spark, url, kind="events")
    if seed.manifest.contract != base:
        raise UserError(
            f"{url} was ingested under another contract than {base.name} as it is given: ingest it again, or give the "
            "contract that it was ingested under."
        )
    return seed


def items_of(spark: SparkSession, seed: Snapshot, base: Contract, rules: FeedbackRules) -> DataFrame | None:
    if not rules.from_item or base.items is None:
        return None
    return read_part(spark, seed.url, seed.files("items"), spark_schema(base.items))


def check_kind(spark: SparkSession, hadoop: HadoopFiles, url: str) -> None:
    """Raise UserError where the folder holds something else that is published: nothing of it is touched."""
    if hadoop.exists(join(url, MANIFEST)):
        open_published(spark, url, kind="served")


def built(build: FeedbackBuild, days: FeedbackPlan, files: Files, before: FeedbackState | None) -> Built:
    """Build the days of the plan, and put them beside those that stand."""
    stood = build.store.standing if before is not None else None
    stands = {day: of for day, of in before.days.items() if day not in days.days} if before is not None else {}
    new = BuiltDays(files=(), days={}, delays=total(stands), model=None)
    if days.days:
        print(f"feedback: {named(days.days)} to build.", flush=True)
        new = build_days(
            build,
            days.days,
            holding(files.impressions, days.days),
            holding(files.actions, days.actions),
            new.delays,
        )
    rest = {day: of for day, of in before.rest.items() if day not in days.rest} if before is not None else {}
    if days.rest:
        there = [file for file in files.impressions if file.url not in files.gone]
        rest |= count_rest(
            build,
            days.rest,
            days.searched,
            holding(there, days.searched),
            holding(files.actions, days.rest),
        )
    kept = tuple(file for file in stood.parts["events"] if day_of_path(file.path) not in days.days) if stood else ()
    mean = new.model.mean_ms if new.model is not None else None
    return Built(
        files=kept + new.files,
        state=FeedbackState(
            as_of_ms=build.at.as_of_ms,
            landed_until_ms=files.landed_until_ms,
            impressions=files.impressions,
            actions=files.actions,
            days=dict(sorted((stands | {day: of for day, of in new.days.items() if of.holds_any}).items())),
            rest=dict(sorted(rest.items())),
            delays=new.delays,
            mean_delay_ms=mean if days.days or before is None else before.mean_delay_ms,
        ),
    )


def total(days: dict[str, ServedDay]) -> Delays:
    delays = Delays()
    for of_day in days.values():
        delays = delays.plus(of_day.delays)
    return delays


def publish(build: FeedbackBuild, config: FeedbackConfig, seed: Snapshot, now: Built) -> None:
    """Publish the next version, of which alone the files stay."""
    store, state, ledger = build.store, now.state, now.state.ledger()
    settings = resolved(settings_of(build.base, build.rules, seed.manifest), state, ledger)
    store.commit(
        Manifest(
            **identity(config.out, settings),
            kind="served",
            contract=build.served,
            parents=(Parent(url=seed.url, id=seed.manifest.id, digest=seed.manifest.digest()),),
            ledger=Ledger(tables={}, feedback=ledger),
            parts={"events": now.files},
            store=StoreState(version=store.version, tables={}),
            feedback=state,
        ),
        keep_versions=1,
    )
    for line in told(state, ledger):
        print(f"feedback: {line}")
    print(f"feedback: published {config.out} (version {store.version})")


def resolved(made_by: dict[str, str | None], state: FeedbackState, ledger: FeedbackLedger) -> dict[str, Any]:
    """What names the content: equal for equal events out of equal counts, whatever the runs that led there."""
    content = {"days": {day: of.checksum for day, of in state.days.items()}, "ledger": ledger.model_dump()}
    return {
        "job": "feedback",
        "release": VERSION,
        **made_by,
        "content": digest_of(content),
    }


def main(arguments: list[str] | None = None) -> int:
    command = parser("feedback", __doc__ or "")
    add = command.add_argument
    add("--landed", required=True, help="folder or URL that `headrace land` wrote")
    add("--seed", required=True, help="event store of the log that the wheel began with, by `headrace ingest`")
    add("--contract", required=True, help="contract of that log: built-in name, or a path ending in .yaml")
    add("--rules", required=True, help="feedback rules in YAML, or a wheel.yaml that has them under `feedback:`")
    add("--out", required=True, help="folder or URL to publish, or to bring up to date")
    add("--contract-out", help="file for the contract of both logs together; contract.yaml in --out unless given")
    add("--as-of", type=moment, help="the moment by which windows are open or closed, ISO 8601; now unless given")
    add("--rebuild", action="store_true", help="read every landed file again and replace everything")
    given = command.parse_args(arguments)
    if given.contract_out and absolute(given.contract_out) == absolute(given.contract):
        command.error("--contract-out would overwrite --contract: give it another name")
    config = FeedbackConfig(
        landed=absolute(given.landed),
        seed=absolute(given.seed),
        contract=given.contract,
        rules=given.rules,
        out=absolute(given.out),
        contract_out=absolute(given.contract_out) if given.contract_out else None,
        as_of_ms=given.as_of,
        rebuild=given.rebuild,
    )
    return run("feedback", lambda spark: feedback(spark, config))


if __name__ == "__main__":
    sys.exit(main())
