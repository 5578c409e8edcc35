"""Building days of served events: rows joined and judged, events written, everything counted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.contract import Contract
from schemas.event_store import DayRows
from schemas.feedback import FeedbackRules
from schemas.feedback_state import Delays, RestOfDay, ServedDay
from schemas.manifest import DataFile
from spark_jobs.event_store import EventStore
from spark_jobs.feedback.bots import bots_of, with_bots
from spark_jobs.feedback.counts import EVENT, count_actions, count_items, delays_by_day, served_day
from spark_jobs.feedback.delays import DelayModel, fit
from spark_jobs.feedback.events import event_rows, with_item_columns, with_raw_columns
from spark_jobs.feedback.joining import (
    OUTCOME,
    RULE,
    Moment,
    actions_on,
    items_per_response,
    late_and_orphan,
    with_actions,
    with_repetition,
)
from spark_jobs.feedback.labels import clicked
from spark_jobs.feedback.landed import read_landed
from spark_jobs.feedback.plan import Reach
from spark_jobs.session import step
from spark_jobs.table_build import TableBuild, stock_by_day, write_rows
from spark_jobs.transforms.event_days import DAY, name_of


@dataclass(frozen=True, kw_only=True)
class FeedbackBuild:
    """What all days are built by."""

    store: EventStore
    base: Contract
    served: Contract
    rules: FeedbackRules
    at: Moment
    items: DataFrame | None
    """Of the seed, where events copy columns from them."""

    @property
    def spark(self) -> SparkSession:
        return self.store.spark

    @property
    def reach(self) -> Reach:
        return Reach.of(self.rules)


@dataclass(frozen=True, kw_only=True)
class BuiltDays:
    files: tuple[DataFile, ...]
    days: dict[str, ServedDay]
    delays: Delays
    """Of these days and of those that stand."""
    model: DelayModel | None


def build_days(
    build: FeedbackBuild, days: Collection[str], impressions: Sequence[str], actions: Sequence[str], standing: Delays
) -> BuiltDays:
    """Write the events of these days of responses. `impressions`, `actions`: files that hold them and what was done.

    `standing`: what other days know of delays.
    """
    spark, rules = build.spark, build.rules
    kept: list[DataFrame] = []

    def keep(rows: DataFrame) -> DataFrame:
        kept.append(rows.persist(StorageLevel.MEMORY_AND_DISK))
        return kept[-1]

    try:
        responses = with_repetition(read_landed(spark, "impressions", impressions, days))
        done = read_landed(spark, "actions", actions, None)
        acted = keep(actions_on(done, responses, rules, build.reach, build.at))
        shown = keep(with_actions(items_per_response(responses), acted, rules, build.base))
        bots = keep(bots_of(shown, acted, rules, build.base))
        shown = with_bots(shown, bots, user="user_id")
        with step(spark, "feedback: delays"):
            delays = delays_by_day(shown, build.base, rules, build.at) if rules.young == "weight" else {}
        total = standing
        for of_day in delays.values():
            total = total.plus(of_day)
        model = fit(total, window_ms=build.at.window_ms) if rules.young == "weight" else None
        judged = with_raw_columns(_judged(build, shown, model), build.base, rules)
        with step(spark, "feedback: actions counted"):
            of_actions = count_actions(with_bots(acted, bots, user="shown_to"))
        with step(spark, "feedback: items counted"):
            of_items = count_items(judged, build.base, rules)
        with step(spark, "feedback: events written"):
            files, rows = _write(build, judged.where(F.col(OUTCOME) == EVENT), model)
    finally:
        for rows_kept in kept:
            rows_kept.unpersist()
    named = {
        day: served_day(
            of_items.get(day, {}), of_actions.get(day, {}), rows.get(day, DayRows()), delays.get(day, Delays())
        )
        for day in days
    }
    return BuiltDays(files=files, days=named, delays=total, model=model)


def count_rest(
    build: FeedbackBuild,
    days: Collection[str],
    searched: Collection[str],
    impressions: Sequence[str],
    actions: Sequence[str],
) -> dict[str, RestOfDay]:
    """Late and orphan actions of these days, among responses of the days `searched`."""
    done = read_landed(build.spark, "actions", actions, days)
    known = read_landed(build.spark, "impressions", impressions, searched)
    with step(build.spark, "feedback: late actions and orphans"):
        found = late_and_orphan(done, known, build.reach).collect()  # a row a day
    counted = {name_of(row[DAY]): RestOfDay(late=row["late"], orphan=row["orphan"]) for row in found}
    return {day: counted.get(day, RestOfDay()) for day in days}


def _judged(build: FeedbackBuild, shown: DataFrame, model: DelayModel | None) -> DataFrame:
    """Add `outcome` (an event, or why not yet or never), `is_young` and `is_clicked`."""
    rules, at = build.rules, build.at
    weighs = F.lit(rules.young == "weight")
    acted = F.col("first_ms").isNotNull()
    waits = at.is_young if rules.young == "wait" or model is None else F.lit(False)
    outcome = (
        F.when(F.col("is_repeated"), "duplicates")
        .when(F.col(RULE).isNotNull(), "bots")
        .when(at.is_to_come | waits, "waiting")
        .when(acted if rules.event == "action" else F.lit(True), EVENT)
        .otherwise("not_acted_on")
    )
    return shown.withColumns(
        {OUTCOME: outcome, "is_young": weighs & at.is_half_seen, "is_clicked": clicked(rules, build.base)}
    )


def _write(
    build: FeedbackBuild, events: DataFrame, model: DelayModel | None
) -> tuple[tuple[DataFile, ...], dict[str, DayRows]]:
    weight: Column = F.lit(1.0)
    if model is not None:
        age = F.lit(build.at.seen_until_ms) - F.col("shown_ms")
        weight = F.when(F.col("is_young") & ~F.col("is_clicked"), model.weight_of_unclicked(age)).otherwise(1.0)
    table = TableBuild(store=build.store, name="events", table=build.served.events)
    rows = with_item_columns(events, build.items, build.base, build.rules)
    rows = event_rows(rows, build.base, build.served, build.rules, weight)
    files = write_rows(table, rows, "served", "events")
    return files, stock_by_day(table, files)
