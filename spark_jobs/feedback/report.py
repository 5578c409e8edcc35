"""What the feedback job says of what it did."""

from __future__ import annotations

from collections.abc import Collection

from schemas.feedback_state import FeedbackState
from schemas.ledger import FeedbackLedger

HOUR_MS = 3_600_000


def told(state: FeedbackState, ledger: FeedbackLedger) -> list[str]:
    """The ledger in words, and what a reader should look at."""
    shown, actions = ledger.shown, ledger.actions
    lines = [
        f"shown: {shown.items:,} items = {shown.events:,} events + {shown.waiting:,} waiting + "
        f"{shown.not_acted_on:,} not acted on + {shown.duplicates:,} duplicates + {shown.bots:,} of bots",
        f"done: {actions.actions:,} actions = "
        + " + ".join(f"{count:,} {name}" for name, count in actions.parts().items()),
    ]
    for rule in sorted({*shown.bots_by_rule, *actions.bots_by_rule}):
        of_items, of_actions = shown.bots_by_rule.get(rule, 0), actions.bots_by_rule.get(rule, 0)
        lines.append(f"bots by {rule}: {of_items:,} items, {of_actions:,} actions")
    fallback = sum(day.fallback for day in state.days.values())
    if fallback:
        lines.append(f"{fallback:,} events are of responses that the models did not answer")
    wrong: dict[str, int] = {}
    for day in state.days.values():
        for name, count in day.misfits.items():
            wrong[name] = wrong.get(name, 0) + count
    lines += [f"{count:,} events have a {name} that is no value of its type: null" for name, count in wrong.items()]
    if state.mean_delay_ms is not None:
        lines.append(
            f"delays: mean {state.mean_delay_ms / HOUR_MS:.2f} h, from {state.delays.acted_on:,} closed clicks"
        )
    return lines


def named(days: Collection[str]) -> str:
    ordered = sorted(days)
    return ", ".join(ordered) if len(ordered) <= 4 else f"{len(ordered):,} days from {ordered[0]} to {ordered[-1]}"
