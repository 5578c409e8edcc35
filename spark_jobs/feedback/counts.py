"""Where items and actions went, counted by day of the response."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.contract import Contract
from schemas.event_store import DayRows
from schemas.feedback import FeedbackRules
from schemas.feedback_state import Delays, ServedDay
from schemas.ledger import ActionLedger, ShownLedger
from spark_jobs.feedback.events import misfits
from spark_jobs.feedback.joining import OUTCOME, RULE, Moment
from spark_jobs.feedback.labels import clicked
from spark_jobs.transforms.event_days import DAY, name_of

EVENT, JOINED = "events", "joined"


def delays_by_day(shown: DataFrame, base: Contract, rules: FeedbackRules, at: Moment) -> dict[str, Delays]:
    """By day, what windows that have landed to their end say of delays."""
    is_clicked = clicked(rules, base)
    closed = shown.where(F.col(RULE).isNull() & ~F.col("is_repeated") & ~at.is_half_seen)
    delay = F.when(is_clicked, F.greatest(F.col("clicked_ms") - F.col("shown_ms"), F.lit(0)))
    found = closed.groupBy(DAY).agg(
        F.count("*").alias("shown"),
        F.count_if(is_clicked).alias("acted_on"),
        F.coalesce(F.sum(delay), F.lit(0)).alias("delay_sum_ms"),
    )
    return {  # a row a day
        name_of(row[DAY]): Delays(shown=row["shown"], acted_on=row["acted_on"], delay_sum_ms=row["delay_sum_ms"])
        for row in found.collect()
    }


def count_items(judged: DataFrame, base: Contract, rules: FeedbackRules) -> dict[str, dict[str, Any]]:
    """By day, items by outcome, those of bots by rule, and what else the manifest says of a day."""
    event = F.col(OUTCOME) == EVENT
    wrong = misfits(base, rules)
    found = judged.groupBy(DAY, OUTCOME, RULE).agg(
        F.count("*").alias("rows"),
        F.min("shown_ms").alias("first_ms"),
        F.count_if(event & F.col("is_young")).alias("young"),
        F.count_if(event & F.col("is_fallback")).alias("fallback"),
        *(F.count_if(event & broken).alias(f"misfit_{name}") for name, broken in wrong.items()),
    )
    days: dict[str, dict[str, Any]] = defaultdict(lambda: {"shown": defaultdict(int), "bots": {}, "day": {}})
    for row in found.collect():  # days by outcomes by rules
        of_day = days[name_of(row[DAY])]
        of_day["shown"][row[OUTCOME]] += row["rows"]
        if row[OUTCOME] == "bots":
            of_day["bots"][row[RULE]] = row["rows"]
        elif row[OUTCOME] == "waiting":
            of_day["day"]["first_waiting_ms"] = row["first_ms"]
        elif row[OUTCOME] == EVENT:
            misfitting = {name: row[f"misfit_{name}"] for name in wrong if row[f"misfit_{name}"]}
            of_day["day"] |= {"young": row["young"], "fallback": row["fallback"], "misfits": misfitting}
    return days


def count_actions(acted: DataFrame) -> dict[str, dict[str, Any]]:
    """By day of the response, actions by outcome; of those that count, how many are the first of their kind."""
    by_bot = F.col(RULE).isNotNull() & ~F.col(OUTCOME).eqNullSafe("duplicates")
    outcome = F.when(by_bot, "bots").otherwise(F.coalesce(OUTCOME, F.lit(JOINED)))
    found = acted.select(DAY, "request_id", "item_id", "action", outcome.alias(OUTCOME), RULE)
    counts = found.groupBy(DAY, OUTCOME, RULE).count()
    counted = found.where(F.col(OUTCOME) == JOINED).groupBy(DAY, "request_id", "item_id", "action").count()
    repeated = counted.groupBy(DAY).agg(F.sum(F.col("count") - 1).alias("count"))
    every = counts.unionByName(repeated.select(DAY, F.lit("repeated").alias(OUTCOME), F.lit(None).alias(RULE), "count"))
    days: dict[str, dict[str, Any]] = defaultdict(lambda: {"actions": defaultdict(int), "bots": {}})
    for row in every.collect():  # days by outcomes by rules
        of_day = days[name_of(row[DAY])]
        of_day["actions"][row[OUTCOME]] += row["count"]
        if row[OUTCOME] == "bots":
            of_day["bots"][row[RULE]] = row["count"]
    for of_day in days.values():
        of_day["actions"][JOINED] -= of_day["actions"]["repeated"]
    return days


def served_day(items: Mapping[str, Any], actions: Mapping[str, Any], rows: DayRows, delays: Delays) -> ServedDay:
    """Events as many as were written: another count than that of the rows that were to be."""
    shown = {name: count for name, count in items.get("shown", {}).items() if name not in (EVENT, "bots")}
    done = {name: count for name, count in actions.get("actions", {}).items() if name != "bots"}
    return ServedDay(
        shown=ShownLedger(
            items=sum(items.get("shown", {}).values()),
            events=rows.accepted,
            bots_by_rule=items.get("bots", {}),
            **shown,
        ),
        actions=ActionLedger(
            actions=sum(done.values()) + sum(actions.get("bots", {}).values()),
            bots_by_rule=actions.get("bots", {}),
            **done,
        ),
        checksum=rows.checksum,
        delays=delays,
        **items.get("day", {}),
    )
