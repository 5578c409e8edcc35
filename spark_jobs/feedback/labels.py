"""Labels out of the actions on one item of one response."""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import Column as SparkColumn
from pyspark.sql import functions as F
from pyspark.sql import types as T

from schemas.contract import Column, Contract
from schemas.errors import UserError, nearest
from schemas.feedback import FeedbackRules, LabelRule
from spark_jobs.spark_types import SPARK_TYPES

_EXACT = "decimal(30,6)"  # sums of floating point numbers depend on their order


def check_rules(rules: FeedbackRules, base: Contract) -> None:
    """Raise UserError for what the rules ask of the contract that it does not have, and labels that nothing gives."""
    names = [column.name for column in base.events.columns]
    for name in (*rules.labels, *rules.from_item):
        if name not in names:
            raise UserError(f"feedback rules: contract {base.name} has no column events.{name}{nearest(name, names)}")
    if rules.from_item and base.items is None:
        raise UserError(f"feedback rules: from_item, but contract {base.name} has no table of items.")
    for wanted in rules.from_item.values():
        known = [column.name for column in base.items.columns] if base.items is not None else []
        if wanted not in known:
            raise UserError(
                f"feedback rules: contract {base.name} has no column items.{wanted}{nearest(wanted, known)}"
            )
    for column in base.labels.values():
        if column.name not in rules.labels and not column.nullable:
            raise UserError(
                f"feedback rules: nothing says what becomes label {column.name}: give it a rule, or make it "
                f"`nullable: true` in contract {base.name}."
            )
    first = first_label(rules, base)
    if rules.young == "weight" and rules.labels[first].at_least is not None and rules.labels[first].take != "happened":
        raise UserError(
            f"feedback rules: `young: weight` asks how long a click takes, and {first}, the first label, is 1 by what "
            f"several {rules.labels[first].action!r} come to (`at_least`): let the contract's first label take "
            "`happened`, or give `young: wait`."
        )
    for name, rule in rules.labels.items():
        if _may_be_unknown(rule, rules) and not base.events.column(name).nullable:
            raise UserError(
                f"feedback rules: {name} takes the value of {rule.action!r}, and events without one have none: make it "
                f"`nullable: true` in contract {base.name}, give `at_least`, or let an action make the event."
            )


def _may_be_unknown(rule: LabelRule, rules: FeedbackRules) -> bool:
    if rule.take != "value" or rule.at_least is not None:
        return False
    kinds = {other.action for other in rules.labels.values()}
    valued = all(other.take != "happened" for other in rules.labels.values())
    return rules.event == "impression" or len(kinds) > 1 or not valued


def first_label(rules: FeedbackRules, base: Contract) -> str:
    """The label by which something counts as clicked: the contract's first that has a rule."""
    return next(
        (column.name for column in base.labels.values() if column.name in rules.labels), next(iter(rules.labels))
    )


def has_rule(rules: FeedbackRules) -> SparkColumn:
    """Whether an action is of a kind that a label asks for."""
    return F.col("action").isin(*sorted({rule.action for rule in rules.labels.values()}))


def has_value(rules: FeedbackRules) -> SparkColumn:
    """Whether an action has what the labels of its kind take."""
    plain = sorted({rule.action for rule in rules.labels.values() if rule.take == "happened"})
    return F.col("value").isNotNull() | (F.col("action").isin(*plain) if plain else F.lit(False))


def measures(rules: FeedbackRules, base: Contract) -> Mapping[str, SparkColumn]:
    """By name, what is taken together of the usable actions on one item: labels and moments."""
    found = {f"taken_{name}": _taken(rule) for name, rule in rules.labels.items()}
    first = rules.labels[first_label(rules, base)]
    return found | {
        "first_ms": F.min("action_ms"),
        "clicked_ms": F.min(F.when(_usable(first), F.col("action_ms"))),
    }


def _usable(rule: LabelRule) -> SparkColumn:
    of_kind = F.col("action") == rule.action
    return of_kind if rule.take == "happened" else of_kind & F.col("value").isNotNull()


def _taken(rule: LabelRule) -> SparkColumn:
    usable = _usable(rule)
    if rule.take == "happened":
        return F.max(F.when(usable, 1.0))
    if rule.take == "sum":
        return F.sum(F.when(usable, F.col("value").try_cast(_EXACT))).cast("double")
    last = F.struct("action_ms", "action_id", "value")
    return F.max_by("value", F.when(usable, last))


def number(name: str, rule: LabelRule) -> SparkColumn:
    """A label out of what was taken; that is null where nobody acted."""
    taken = F.col(f"taken_{name}")
    if rule.at_least is not None:
        return F.when(taken >= rule.at_least, 1.0).otherwise(0.0)
    return taken if rule.take == "value" else F.coalesce(taken, F.lit(0.0))


def typed_label(column: Column, rule: LabelRule) -> SparkColumn:
    """A label in the contract's type; null where a whole number is wanted and the value is none."""
    value, wanted = number(column.name, rule), SPARK_TYPES[column.type]
    if isinstance(wanted, T.IntegralType):
        return F.when(value == F.floor(value), value.try_cast(wanted))
    return value.try_cast(wanted)


def clicked(rules: FeedbackRules, base: Contract) -> SparkColumn:
    """Whether an item counts as clicked: its first label is 1, or somebody acted where that is no yes or no."""
    name = first_label(rules, base)
    acted = F.col("clicked_ms").isNotNull()
    if rules.labels[name].at_least is None:
        return acted
    return acted & (number(name, rules.labels[name]) > 0)
