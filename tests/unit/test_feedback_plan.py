"""Which days a run of the feedback job builds, by hand; and what its ledger must add up to."""

from __future__ import annotations

import pytest

from schemas.errors import LedgerError, UserError
from schemas.event_store import SourceFile
from schemas.feedback import FeedbackRules, LabelRule
from schemas.feedback_state import FeedbackState, RestOfDay, ServedDay, ShownFile
from schemas.ledger import ActionLedger, FeedbackLedger, ShownLedger
from spark_jobs.day_plan import Arrivals, arrivals
from spark_jobs.feedback.plan import FeedbackPlan, Reach, plan
from spark_jobs.hadoop_files import FileStatus


def _day(number: int) -> str:
    return f"2024-05-{number:02d}"


def shown_in(url: str, *days: int) -> ShownFile:
    rows = {_day(day): 1 for day in days}
    return ShownFile(url=url, bytes=1, modified_ms=1, days=rows, items=rows)


def done_in(url: str, *days: int) -> SourceFile:
    return SourceFile(url=url, bytes=1, modified_ms=1, days={_day(day): 1 for day in days})


def state(impressions: list[ShownFile], actions: list[SourceFile]) -> FeedbackState:
    nothing = ServedDay(shown=ShownLedger(items=0), actions=ActionLedger(actions=0))
    return FeedbackState(
        as_of_ms=0,
        impressions=tuple(impressions),
        actions=tuple(actions),
        days={day: nothing for file in impressions for day in file.days},
        rest={day: RestOfDay() for file in actions for day in file.days},
    )


STOOD = state([shown_in(f"i{day}", day) for day in range(1, 21)], [done_in(f"a{day}", day) for day in range(1, 21)])


def planned(
    *, impressions: list[ShownFile] | None = None, actions: list[SourceFile] | None = None, hours: float = 24
) -> FeedbackPlan:
    """What is built when these files come."""
    rules = FeedbackRules(event="impression", labels={"clicked": LabelRule(action="click")}, window_hours=hours)
    new = (impressions or [], actions or [])
    came = tuple(_came(stood, files) for stood, files in zip((STOOD.impressions, STOOD.actions), new, strict=True))
    now = ((*STOOD.impressions, *new[0]), (*STOOD.actions, *new[1]))
    return plan(Reach.of(rules), (came[0], came[1]), now, STOOD, ())


def _came(stood: tuple[SourceFile, ...], new: list[SourceFile] | list[ShownFile]) -> Arrivals:
    return arrivals(stood, [FileStatus(file.url, 1, 1) for file in (*stood, *new)])


def days(*numbers: int) -> set[str]:
    return {_day(number) for number in numbers}


def test_new_actions_build_the_days_whose_window_they_can_be_in():
    assert planned(actions=[done_in("new", 10)]).days == days(9, 10, 11)
    assert planned(actions=[done_in("new", 10)], hours=1).days == days(9, 10, 11)
    assert planned(actions=[done_in("new", 10)], hours=49).days == days(7, 8, 9, 10, 11)
    assert planned(actions=[done_in("new", 10)]).rest == days(10)


def test_new_responses_build_their_day_and_look_for_themselves_among_actions_that_had_none():
    found = planned(impressions=[shown_in("new", 3)])
    assert found.days == days(3)
    assert found.actions >= days(2, 3, 4)
    assert found.rest == days(*range(2, 12))  # the window's day and seven more


def test_late_actions_are_looked_for_seven_days_behind_the_window():
    assert planned(actions=[done_in("new", 15)]).searched == days(*range(7, 17))


def test_actions_on_days_without_responses_build_nothing_but_are_looked_through():
    found = planned(actions=[done_in("new", 28)])
    assert found.days == set()
    assert found.rest == days(28)


def gone_and_new(gone: list[str], *, shown: ShownFile | None = None, done: SourceFile | None = None) -> FeedbackPlan:
    """What is built where files are gone and one came; the window is a day."""
    rules = FeedbackRules(event="impression", labels={"clicked": LabelRule(action="click")})
    now = ((*STOOD.impressions, *filter(None, [shown])), (*STOOD.actions, *filter(None, [done])))
    came = tuple(
        arrivals(stood, [FileStatus(file.url, 1, 1) for file in files if file.url not in gone])
        for stood, files in zip((STOOD.impressions, STOOD.actions), now, strict=True)
    )
    return plan(Reach.of(rules), (came[0], came[1]), now, STOOD, ())


def test_a_file_that_is_gone_is_missed_only_where_what_is_built_needs_its_rows():
    with pytest.raises(UserError, match=r"^i14 is gone, and its rows of 2024-05-14 are needed .* two days longer"):
        gone_and_new(["i14"], done=done_in("new", 15))
    with pytest.raises(UserError, match=r"^a13 is gone"):
        gone_and_new(["a13"], done=done_in("new", 15))
    # Without these responses the actions within their window would count as orphans, and as theirs too.
    with pytest.raises(UserError, match=r"^i13 is gone"):
        gone_and_new(["i13"], shown=shown_in("new", 15))
    # The window's day, a day for the servers' clocks, and today: what is older may go.
    older = [f"{kind}{day}" for kind in "ia" for day in range(1, 13)]
    assert gone_and_new(older, done=done_in("new", 15)).days == days(14, 15, 16)
    assert gone_and_new(older, shown=shown_in("new", 15)).days == days(15)


def test_late_actions_of_a_day_are_looked_for_again_only_where_all_of_it_is_there():
    assert gone_and_new([], shown=shown_in("new", 10)).rest == days(*range(9, 19))
    assert gone_and_new(["a14"], shown=shown_in("new", 10)).rest == days(*range(9, 19)) - days(14)
    assert gone_and_new(["i5"], shown=shown_in("new", 10)).rest == days(9, 10, 11, *range(14, 19))


def test_the_ledger_holds_files_against_what_the_days_came_to():
    built = ServedDay(
        shown=ShownLedger(items=5, events=3, waiting=1, bots_by_rule={"users": 1}),
        actions=ActionLedger(actions=2, joined=1, repeated=1),
    )
    file = ShownFile(url="i", bytes=1, modified_ms=1, days={_day(1): 2}, items={_day(1): 5})
    kept = FeedbackState(
        as_of_ms=0,
        impressions=(file,),
        actions=(SourceFile(url="a", bytes=1, modified_ms=1, days={_day(1): 2, _day(9): 1}),),
        days={_day(1): built},
        rest={_day(1): RestOfDay(), _day(9): RestOfDay(late=1)},
    )
    kept.ledger().check()
    assert kept.ledger().actions.parts()["late"] == 1
    with pytest.raises(LedgerError, match=r"5 items shown, but 2 events \+ 1 waiting \+ .* \+ 1 of bots = 4"):
        FeedbackLedger(
            shown=kept.ledger().shown.model_copy(update={"events": 2}), actions=kept.ledger().actions
        ).check()
    with pytest.raises(LedgerError, match=r"4 actions, but 1 joined \+ 1 repeated \+ 1 late = 3"):
        kept.ledger().actions.model_copy(update={"actions": 4}).check()
