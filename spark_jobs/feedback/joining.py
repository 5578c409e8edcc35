"""Responses and actions as landed -> items shown with what was done to them; each row of either with its outcome.

What `outcome` is null for is an event, or an action that counts. Rows meet by request_id, of which none has many.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from schemas.contract import Contract
from schemas.feedback import FeedbackRules
from spark_jobs.feedback.labels import has_rule, has_value, measures
from spark_jobs.feedback.plan import Reach
from spark_jobs.transforms.event_days import DAY

OUTCOME, RULE = "outcome", "rule"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When it is judged what counts, and for how long an item waits for clicks."""

    as_of_ms: int
    """Windows are closed by the clock, also where traffic has ended; what lands later corrects its day."""
    seen_until_ms: int
    """Weights and delays go by what has landed: nobody has seen what was done since."""
    window_ms: int

    @property
    def is_young(self) -> Column:
        """Whether the window of what was shown at shown_ms is open."""
        return F.col("shown_ms") + F.lit(self.window_ms) > F.lit(self.as_of_ms)

    @property
    def is_half_seen(self) -> Column:
        """Whether the end of that window has not landed yet."""
        return F.col("shown_ms") + F.lit(self.window_ms) > F.lit(self.seen_until_ms)

    @property
    def is_to_come(self) -> Column:
        return F.col("shown_ms") > F.lit(self.as_of_ms)


def with_repetition(impressions: DataFrame) -> DataFrame:
    """One row a response as landed, with `repetition`: 1 for the first of a request_id, by time and then content.

    Out: request_id, day, shown_ms, user_id, context, items, item_ids, is_fallback, repetition.
    """
    content = F.xxhash64("user_id", "context", "items", "fallback")
    first = Window.partitionBy(DAY, "request_id").orderBy("time_ms", content)
    return impressions.select(
        "request_id",
        DAY,
        F.col("time_ms").alias("shown_ms"),
        "user_id",
        "context",
        "items",
        F.col("items.item_id").alias("item_ids"),
        F.col("fallback").isNotNull().alias("is_fallback"),
        F.row_number().over(first).alias("repetition"),
    )


def items_per_response(responses: DataFrame) -> DataFrame:
    """One row an item shown. An item of a repeated response, or shown twice in one, is a duplicate."""
    shown = responses.select(
        *(name for name in responses.columns if name != "items"), F.posexplode("items").alias("place", "item")
    )
    again = (F.col("repetition") > 1) | (F.array_position("item_ids", F.col("item.item_id")) != F.col("place") + 1)
    return shown.select(
        "request_id",
        DAY,
        "shown_ms",
        "user_id",
        "context",
        "is_fallback",
        "item.item_id",
        "item.position",
        "item.propensity",
        again.alias("is_repeated"),
    )


def actions_on(actions: DataFrame, responses: DataFrame, rules: FeedbackRules, reach: Reach, at: Moment) -> DataFrame:
    """Actions on these responses, in the days in which they can be within the window, with their outcome.

    In: actions as landed; responses of `with_repetition`. Out: one row an action whose response is known: request_id,
    item_id, day (the response's), shown_to, action, value, action_id, action_ms, outcome. Repeated is an action whose
    action_id another of its request has; the first by time stays.
    """
    known = responses.where("repetition = 1").select(
        "request_id", DAY, "shown_ms", F.col("user_id").alias("shown_to"), "item_ids"
    )
    first, last = reach.days
    done = actions.withColumnRenamed(DAY, "action_day").withColumnRenamed("time_ms", "action_ms")
    met = done.join(known, on="request_id", how="inner")
    met = met.where((F.col("action_day") - F.col(DAY)).between(first, last))
    content = F.xxhash64("item_id", "user_id", "action", "value")
    once = Window.partitionBy(DAY, "request_id", "action_id").orderBy("action_ms", content)
    met = met.withColumn("repetition", F.row_number().over(once))
    was_shown = F.array_contains("item_ids", F.col("item_id")) & (F.col("user_id") == F.col("shown_to"))
    still_waits = at.is_young if rules.young == "wait" else at.is_to_come
    outcome = (
        F.when(F.col("repetition") > 1, "duplicates")
        .when(~has_rule(rules), "without_rule")
        .when(~has_value(rules), "without_value")
        .when(~was_shown, "not_shown")
        .when(F.col("action_ms") > F.col("shown_ms") + at.window_ms, "late")
        .when(still_waits | (F.col("action_ms") > at.as_of_ms), "waiting")
    )
    return met.select(
        "request_id",
        "item_id",
        DAY,
        "shown_to",
        "action",
        "value",
        "action_id",
        "action_ms",
        outcome.alias(OUTCOME),
    )


def with_actions(shown: DataFrame, acted: DataFrame, rules: FeedbackRules, base: Contract) -> DataFrame:
    """Add to each item shown what is taken together of the actions on it that count; null where there are none.

    In and out: one row an item shown.
    """
    counted = acted.where(F.col(OUTCOME).isNull()).groupBy("request_id", "item_id")
    taken = counted.agg(*(column.alias(name) for name, column in measures(rules, base).items()))
    return shown.join(taken, on=["request_id", "item_id"], how="left")


def late_and_orphan(actions: DataFrame, responses: DataFrame, reach: Reach) -> DataFrame:
    """By day of actions, those that belong to no response of the days whose window they can be in: day, late, orphan.

    In: actions and responses as landed, the latter of the days in which a late action's response is looked for.
    """
    known = responses.groupBy("request_id").agg(F.max(DAY).alias("shown_day"))
    first, last = reach.days
    apart = F.col(DAY) - F.col("shown_day")
    rest = actions.select("request_id", DAY).join(known, on="request_id", how="left")
    rest = rest.where(~F.coalesce(apart.between(first, last), F.lit(False)))
    late = F.coalesce(apart > last, F.lit(False))
    return rest.groupBy(DAY).agg(F.count_if(late).alias("late"), F.count_if(~late).alias("orphan"))
