"""Which days to build and from which files: pure bookkeeping over what the manifest remembers and what lies there now.

The rule it keeps: a day is built from all files that hold rows of it, or not at all. So whatever the order in which
files came, were repeated or changed, the store is what one run over all of them would make.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from schemas.errors import UserError
from schemas.event_store import NO_DAY, SourceFile
from spark_jobs.hadoop_files import FileStatus


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """The files found, beside those that the store was made of."""

    new: tuple[FileStatus, ...]
    changed: tuple[FileStatus, ...]
    same: tuple[FileStatus, ...]
    gone: tuple[SourceFile, ...]
    """Consumed earlier and not there any more: their rows stay, but a day that holds some cannot be built again."""
    dropped: tuple[SourceFile, ...] = ()
    """The same, of a source whose files replace one another: their rows go with them."""

    @property
    def anything(self) -> bool:
        """Whether there is something to build."""
        return bool(self.unread or self.dropped)

    @property
    def unread(self) -> tuple[FileStatus, ...]:
        return self.new + self.changed


@dataclass(frozen=True, kw_only=True)
class DayPlan:
    """What one run builds."""

    days: frozenset[str] | None
    """None stands for all days, and everything of the last version is replaced."""
    read: tuple[FileStatus, ...]
    sources: tuple[SourceFile, ...]
    """All files of the store once the run is done, with the days they hold."""
    added_to: frozenset[str] = frozenset()
    """Among `days`, those whose standing rows stay: rows without a day never meet those of another file."""


def arrivals(standing: Sequence[SourceFile], found: Sequence[FileStatus], *, drops_gone: bool = False) -> Arrivals:
    known = {file.url: file for file in standing}
    there = {file.url for file in found}
    new: list[FileStatus] = []
    changed: list[FileStatus] = []
    same: list[FileStatus] = []
    for file in found:
        was = known.get(file.url)
        if was is None:
            new.append(file)
        else:
            (same if (was.bytes, was.modified_ms) == (file.bytes, file.modified_ms) else changed).append(file)
    gone = tuple(file for file in standing if file.url not in there)
    return Arrivals(
        new=tuple(new),
        changed=tuple(changed),
        same=tuple(same),
        gone=() if drops_gone else gone,
        dropped=gone if drops_gone else (),
    )


def plan_all(counted: Sequence[SourceFile], files: Sequence[FileStatus]) -> DayPlan:
    """Build everything from the files that are there."""
    return DayPlan(days=None, read=tuple(files), sources=tuple(counted))


def plan_days(standing: Sequence[SourceFile], came: Arrivals, counted: Sequence[SourceFile]) -> DayPlan:
    """Build the days that new, changed and dropped files hold or held. `counted`: the first two as they are now."""
    now, before = ({file.url: file for file in files} for files in (counted, standing))
    changed = {file.url for file in came.changed}
    held = {url: {*now[url].days, *(before[url].days if url in changed else ())} for url in now}
    dropped = {file.url: {*file.days} for file in came.dropped}
    days = {day for of_file in (*held.values(), *dropped.values()) for day in of_file}
    rebuilds_no_day = any(NO_DAY in held[url] for url in changed) or any(NO_DAY in of for of in dropped.values())
    added_to = {NO_DAY} & days if not rebuilds_no_day else set()
    sources = tuple(now.get(file.url, file) for file in standing if file.url not in dropped)
    sources += tuple(file for file in counted if file.url not in before)
    met = days - added_to
    for file in came.gone:
        _refuse_gone(file, met)
    older = tuple(file for file in came.same if met & before[file.url].days.keys())
    return DayPlan(days=frozenset(days), read=(*older, *came.unread), sources=sources, added_to=frozenset(added_to))


def plan_one_day(standing: Sequence[SourceFile], found: Sequence[FileStatus], day: str) -> tuple[FileStatus, ...]:
    """The consumed files that hold rows of a day; UserError where there is none, or one is gone."""
    there = {file.url: file for file in found}
    holding = [file for file in standing if day in file.days]
    if not holding:
        raise UserError(f"no file that was ingested holds rows of {day}: run without --day to take new files in.")
    for file in holding:
        if file.url not in there:
            _refuse_gone(file, {day})
    return tuple(there[file.url] for file in holding)


def with_day_counted(standing: Sequence[SourceFile], day: str, rows: Mapping[str, int]) -> tuple[SourceFile, ...]:
    """The sources with this day's rows as they are now; a file that has none any more is not known to hold the day."""

    def recounted(file: SourceFile) -> SourceFile:
        days = {name: count for name, count in file.days.items() if name != day}
        return file.model_copy(update={"days": days | ({day: rows[file.url]} if rows.get(file.url) else {})})

    return tuple(recounted(file) if day in file.days else file for file in standing)


def _refuse_gone(file: SourceFile, days: Collection[str]) -> None:
    held = sorted(set(days) & file.days.keys())
    if held:
        raise UserError(
            f"{file.url} is gone, and it holds rows of {held[0]}, which must be built again: bring it back, or give "
            "--rebuild to make the store of the files that are there."
        )
