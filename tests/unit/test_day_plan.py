"""Which days a run builds and from which files: files that are new, changed, late or gone, by hand."""

from __future__ import annotations

import pytest

from schemas.errors import UserError
from schemas.event_store import SourceFile
from spark_jobs.day_plan import arrivals, plan_days, plan_one_day, with_day_counted
from spark_jobs.hadoop_files import FileStatus


def source(url: str, **days: int) -> SourceFile:
    return SourceFile(url=url, bytes=1, modified_ms=1, days={name.lstrip("d"): rows for name, rows in days.items()})


def found(url: str, *, modified_ms: int = 1) -> FileStatus:
    return FileStatus(url, 1, modified_ms)


STANDING = [source("a", d1=5, d2=5), source("b", d2=3, none=1), source("c", d3=4)]


def test_a_new_file_of_a_new_day_is_read_alone():
    came = arrivals(STANDING, [found("a"), found("b"), found("c"), found("e")])
    plan = plan_days(STANDING, came, [source("e", d4=2)])
    assert plan.days == {"4"}
    assert [file.url for file in plan.read] == ["e"]
    assert [file.url for file in plan.sources] == ["a", "b", "c", "e"]


def test_late_rows_bring_back_every_file_that_holds_rows_of_their_day():
    came = arrivals(STANDING, [found("a"), found("b"), found("c"), found("e")])
    plan = plan_days(STANDING, came, [source("e", d2=1)])
    assert plan.days == {"2"}
    assert {file.url for file in plan.read} == {"a", "b", "e"}


def test_a_changed_file_rebuilds_the_days_it_held_and_those_it_holds():
    came = arrivals(STANDING, [found("a", modified_ms=2), found("b"), found("c")])
    plan = plan_days(STANDING, came, [source("a", d1=5, d3=1)])
    assert plan.days == {"1", "2", "3"}
    assert {file.url for file in plan.read} == {"a", "b", "c"}
    assert plan.sources[0].days == {"1": 5, "3": 1}


def test_rows_without_a_day_are_added_unless_a_changed_file_held_some():
    came = arrivals(STANDING, [found("a"), found("b"), found("c"), found("e")])
    assert plan_days(STANDING, came, [source("e", none=1)]).added_to == {"none"}
    came = arrivals(STANDING, [found("a"), found("b", modified_ms=2), found("c")])
    plan = plan_days(STANDING, came, [source("b", d2=3)])
    assert plan.added_to == set()
    assert plan.days == {"2", "none"}


def test_a_file_that_is_gone_is_missed_only_where_its_day_must_be_built():
    came = arrivals(STANDING, [found("b"), found("c"), found("e")])
    assert plan_days(STANDING, came, [source("e", d4=1)]).days == {"4"}
    with pytest.raises(UserError, match=r"^a is gone, and it holds rows of 2, which must be built again"):
        plan_days(STANDING, came, [source("e", d2=1)])


def test_one_day_is_read_from_the_files_that_held_it():
    everything = [found("a"), found("b"), found("c"), found("new")]
    assert [file.url for file in plan_one_day(STANDING, everything, "2")] == ["a", "b"]
    with pytest.raises(UserError, match="no file that was ingested holds rows of 9"):
        plan_one_day(STANDING, everything, "9")
    recounted = with_day_counted(STANDING, "2", {"a": 4, "b": 0})
    assert [file.days for file in recounted] == [{"1": 5, "2": 4}, {"none": 1}, {"3": 4}]


def test_where_files_replace_one_another_the_days_of_one_that_is_gone_are_built_without_it():
    came = arrivals(STANDING, [found("b"), found("c"), found("e")], drops_gone=True)
    plan = plan_days(STANDING, came, [source("e", d2=1)])
    assert plan.days == {"1", "2"}
    assert [file.url for file in plan.read] == ["b", "e"]
    assert [file.url for file in plan.sources] == ["b", "c", "e"]


def test_a_dropped_file_that_held_rows_without_a_day_has_those_built_again():
    plan = plan_days(STANDING, arrivals(STANDING, [found("a"), found("c")], drops_gone=True), [])
    assert plan.days == {"2", "none"}
    assert plan.added_to == set()
