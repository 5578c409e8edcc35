"""Whose day looks like no person's: by requests, actions a minute, clicks, or because it is known."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.contract import Contract
from schemas.feedback import FeedbackRules
from spark_jobs.feedback.joining import OUTCOME, RULE
from spark_jobs.feedback.labels import clicked
from spark_jobs.transforms.event_days import DAY

_MINUTE_MS = 60_000


def bots_of(shown: DataFrame, acted: DataFrame, of: FeedbackRules, base: Contract) -> DataFrame:
    """One row a user and day that break a rule: day, user_id, rule (the first broken).

    In: items shown with what was done to them; actions on responses. Repetitions of either count for nothing, nor do
    actions that others can send under the user's request: on what it did not show, too late, of no label's kind.
    """
    rules = of.bots
    of_day = (
        shown.where("NOT is_repeated")
        .groupBy(DAY, "user_id")
        .agg(
            F.count_distinct("request_id").alias("requests"),
            (F.count_if(clicked(of, base)) / F.count("*")).alias("click_rate"),
        )
    )
    minute = F.floor(F.col("action_ms") / F.lit(_MINUTE_MS))
    busiest = (
        acted.where(F.col(OUTCOME).isNull() | (F.col(OUTCOME) == "waiting"))
        .groupBy(DAY, F.col("shown_to").alias("user_id"), minute.alias("minute"))
        .agg(F.count_distinct("request_id", "item_id", "action").alias("done"))
        .groupBy(DAY, "user_id")
        .agg(F.max("done").alias("actions_per_minute"))
    )
    often_asked = F.col("requests") >= rules.min_requests_for_click_rate
    rule = (
        F.when(F.col("user_id").isin(*rules.users) if rules.users else F.lit(False), "users")
        .when(F.col("requests") > rules.max_requests_per_day, "max_requests_per_day")
        .when(F.col("actions_per_minute") > rules.max_actions_per_minute, "max_actions_per_minute")
        .when(often_asked & (F.col("click_rate") > rules.max_click_rate), "max_click_rate")
    )
    judged = of_day.join(busiest, on=[DAY, "user_id"], how="left").select(DAY, "user_id", rule.alias(RULE))
    return judged.where(F.col(RULE).isNotNull())


def with_bots(rows: DataFrame, bots: DataFrame, *, user: str) -> DataFrame:
    """Add `rule`, which the row's user broke on its day; null for people. In and out: the same rows."""
    return rows.join(bots.withColumnRenamed("user_id", user), on=[DAY, user], how="left")
