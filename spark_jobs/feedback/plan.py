"""Which days of responses to build, and which days of actions to look through: pure bookkeeping.

The rule it keeps: a day's events come of all its responses and of all actions that can be in their window, or they
stay as they are. So whatever the order in which files were landed, the events are what one run over all would make.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from schemas.errors import UserError
from schemas.event_store import SourceFile
from schemas.feedback import FeedbackRules
from schemas.feedback_state import FeedbackState
from spark_jobs.day_plan import Arrivals
from spark_jobs.transforms.event_days import name_of, number_of

LATE_DAYS = 7
"""Days behind the window in which an action's response is looked for; one that is older is not told from none."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How far, in days, actions and the responses that they are on lie apart."""

    window: int
    """Days after a response's in which its window can close."""

    @staticmethod
    def of(rules: FeedbackRules) -> Reach:
        return Reach(window=math.ceil(rules.window_hours / 24))

    @property
    def days(self) -> tuple[int, int]:
        """First and last day of actions, counted from the response's day: servers' clocks differ around midnight."""
        return -1, self.window

    def actions_on(self, day: int) -> range:
        first, last = self.days
        return range(day + first, day + last + 1)

    def responses_to(self, day: int) -> range:
        first, last = self.days
        return range(day - last, day - first + 1)

    def searched_for(self, day: int) -> range:
        """Days of responses among which those of late actions are looked for."""
        within = self.responses_to(day)
        return range(within.start - LATE_DAYS, within.stop)


@dataclass(frozen=True, kw_only=True)
class FeedbackPlan:
    """What one run builds, by days of responses and, for actions on none of them, by days of actions."""

    days: frozenset[str]
    rest: frozenset[str]
    actions: frozenset[str]
    """Days of actions to read for both; responses are read of `days`, and of `searched` for the rest."""
    searched: frozenset[str]


def plan(
    reach: Reach,
    came: tuple[Arrivals, Arrivals],
    now: tuple[Sequence[SourceFile], Sequence[SourceFile]],
    before: FeedbackState | None,
    due: Collection[str],
) -> FeedbackPlan:
    """Days that files which came touch, and those that are `due`.

    Pairs are of impressions and actions: what came, and all files as they are now. Without `before` everything is
    built. Raises UserError where a file is gone whose rows are needed. Late actions are looked for among what is there:
    a day of which more would only be told with files that are gone stays as it stands.
    """
    gone = tuple({number_of(day) for file in arrivals.gone for day in file.days} for arrivals in came)
    days_now = tuple({number_of(day) for file in files for day in file.days} for files in now)
    if before is None:
        days, rest = days_now
        within = rest
    else:
        stood = (_by_url(before.impressions), _by_url(before.actions))
        shown, acted = (
            {
                number_of(day)
                for file in arrivals.unread
                for known in (_by_url(files), old)
                if file.url in known
                for day in known[file.url].days
            }
            for arrivals, files, old in zip(came, now, stood, strict=True)
        )
        there = days_now[0] | {number_of(day) for day in before.days}
        days = (shown | {day for action in acted for day in reach.responses_to(action)}) & there
        days |= {number_of(day) for day in due}
        counted = days_now[1] | {number_of(day) for day in before.rest}
        within = (acted | {action for day in shown for action in reach.actions_on(day)}) & counted
        late = {day + reach.window + apart for day in shown for apart in range(1, LATE_DAYS + 1)} & counted
        told = {day for day in late if day not in gone[1] and gone[0].isdisjoint(reach.searched_for(day))}
        rest = within | told
    actions = {action for day in days for action in reach.actions_on(day)}
    searched = {day for action in rest for day in reach.searched_for(action)}
    found = FeedbackPlan(
        days=_names(days),
        rest=_names(rest),
        actions=_names(actions | rest),
        searched=_names(searched),
    )
    met = {day for action in within for day in reach.responses_to(action)}
    refuse_gone(came[0].gone, found.days | _names(met))
    refuse_gone(came[1].gone, found.actions)
    return found


def holding(files: Iterable[SourceFile], days: Collection[str]) -> list[str]:
    """URLs of the files that hold rows of these days."""
    return [file.url for file in files if not file.days.keys().isdisjoint(days)]


def refuse_gone(gone: Iterable[SourceFile], days: Collection[str]) -> None:
    for file in gone:
        held = sorted(file.days.keys() & set(days))
        if held:
            raise UserError(
                f"{file.url} is gone, and its rows of {held[0]} are needed for what came: bring it back, and keep "
                "landed files for two days longer than the window; or give --rebuild to make the events of the files "
                "that are there."
            )


def _by_url(files: Iterable[SourceFile]) -> Mapping[str, SourceFile]:
    return {file.url: file for file in files}


def _names(days: Iterable[int]) -> frozenset[str]:
    return frozenset(name_of(day) for day in days)
