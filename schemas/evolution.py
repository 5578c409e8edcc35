"""What changed from one contract to the next, and what follows for the days that stand published already."""

from __future__ import annotations

from typing import Literal

from schemas.contract import Column, ColumnType, Contract, Table, TableName
from schemas.errors import UserError
from schemas.settings import Strict, digest_of

Effect = Literal["compatible", "rebuild", "incompatible"]
# Values of the first type are values of the second, and Parquet files of the first are read as the second.
WIDENINGS: set[tuple[ColumnType, ColumnType]] = {
    ("int32", "int64"),
    ("float32", "float64"),
    ("int32", "float64"),
}
# What says how a row is judged: another value can send a row that stands accepted to quarantine, or back.
_RULES = ("nullable", "range", "one_of", "pattern", "time_format", "separator", "references", "source")


class Change(Strict):
    """One difference between two contracts."""

    table: str
    what: str
    effect: Effect
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.table}: {self.what}"


def changes(was: Contract, now: Contract) -> tuple[Change, ...]:
    """Every difference that matters to rows: `compatible` lets published days stand, `rebuild` reads them again.

    A table that came or went concerns no published event.
    """
    found: list[Change] = []
    before, after = was.tables(), now.tables()
    for name in after:
        if name in before:
            found += changes_of(name, before[name], after[name])
        else:
            found.append(Change(table=name, what="the table was added", effect="compatible"))
    gone = [name for name in before if name not in after]
    found += [Change(table=name, what="the table was removed", effect="compatible") for name in gone]
    return tuple(found)


def changes_of(name: TableName, was: Table, now: Table) -> list[Change]:
    """Differences of one table, in the order of its columns."""
    found = []
    if was.key != now.key:
        found.append(_incompatible(name, f"the key was {', '.join(was.key)} and is {', '.join(now.key)}"))
    old, new = ({column.name: column for column in table.columns} for table in (was, now))
    for column in now.columns:
        found += _added(name, column) if column.name not in old else _altered(name, old[column.name], column)
    for column in was.columns:
        if column.name not in new:
            found += _removed(name, column)
    if _reading(was) != _reading(now):
        found.append(Change(table=name, what="the source is read otherwise", effect="rebuild"))
    return found


def _reading(table: Table) -> str:
    """Names how raw text becomes fields; the path is left out, for files may move."""
    return digest_of(table.source.model_dump(mode="json", exclude={"path", "jdbc"}))


def _added(table: TableName, column: Column) -> list[Change]:
    if column.nullable:
        what = f"column {column.name} ({column.type}) was added; it is null in rows that stand already"
        return [Change(table=table, what=what, effect="compatible")]
    return [
        _incompatible(
            table, f"column {column.name} was not there and is {column.type}, not nullable", "make it `nullable: true`"
        )
    ]


def _removed(table: TableName, column: Column) -> list[Change]:
    if column.nullable:
        return [Change(table=table, what=f"column {column.name} ({column.type}) was removed", effect="compatible")]
    return [
        _incompatible(
            table,
            f"column {column.name} was {column.type}, not nullable, and is not there",
            "make it `nullable: true` for a version, or leave it in",
        )
    ]


def _altered(table: TableName, was: Column, now: Column) -> list[Change]:
    found = []
    if was.type != now.type:
        what = f"column {now.name} was {was.type} and is {now.type}"
        if (was.type, now.type) in WIDENINGS:
            found.append(Change(table=table, what=what, effect="compatible"))
        else:
            found.append(_incompatible(table, what, f"leave it {was.type}, or add a column with another name"))
    ruled = [rule for rule in _RULES if getattr(was, rule) != getattr(now, rule)]
    if ruled:
        what = f"column {now.name} has another {', '.join(ruled)}"
        found.append(Change(table=table, what=what, effect="rebuild"))
    return found


def _incompatible(table: TableName, what: str, todo: str = "") -> Change:
    return Change(table=table, what=what, effect="incompatible", todo=todo)


def refuse_incompatible(found: tuple[Change, ...], *, where: str) -> None:
    """Raise UserError for the first change that no published day can follow."""
    for change in found:
        if change.effect == "incompatible":
            advice = f"{change.todo}; or " if change.todo else ""
            raise UserError(
                f"{change}: rows published in {where} cannot follow. To go on, {advice}give --rebuild, which reads "
                "every file again, or another --out."
            )
