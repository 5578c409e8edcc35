"""The contract: what each column of a log, its items and its users is, may hold, and is for.

Everything else is derived from it: Spark and Arrow types, quarantine rules, the features of a snapshot,
the inputs of a model. A user brings a log of their own by writing one contract and no Python.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.errors import nearest
from schemas.settings import Strict, digest_of, parse_model, read_yaml

CATALOG = files("schemas") / "catalog"  # no Path: on a Spark cluster this code is read from a zip

ColumnType = Literal["string", "int32", "int64", "float32", "float64", "boolean", "timestamp_ms", "list<string>"]
Role = Literal[
    "user",
    "item",
    "event_time",
    "valid_from",
    "label",
    "weight",
    "propensity",
    "categorical",
    "numeric",
    "text",
    "title",
    "none",
]
TableName = Literal["events", "items", "users"]
TABLES: tuple[TableName, ...] = ("events", "items", "users")

# A role that a column cannot play with another type; roles not named here take any type.
_TYPES_OF_ROLE: dict[str, set[str]] = {
    "event_time": {"timestamp_ms"},
    "valid_from": {"timestamp_ms"},
    "label": {"int32", "int64", "float32", "float64", "boolean"},
    "weight": {"float32", "float64"},
    "propensity": {"float32", "float64"},
    "numeric": {"int32", "int64", "float32", "float64", "boolean", "timestamp_ms"},
    "categorical": {"string", "int32", "int64", "boolean", "list<string>"},
    "text": {"string"},
    "title": {"string"},
    "user": {"string", "int32", "int64"},
    "item": {"string", "int32", "int64"},
}


class Range(Strict):
    """Closed interval; an open end is left out."""

    min: float | None = None
    max: float | None = None


class Column(Strict):
    """One column: its name in Headrace, where it comes from, what it may hold, what it is for."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    type: ColumnType
    meaning: str
    role: Role = "none"
    source: str | None = None
    """Name in the raw header or JSON object; the column's own name where left out."""
    nullable: bool = False
    range: Range | None = None
    one_of: tuple[str, ...] | None = None
    pattern: str | None = None
    """Regular expression that the whole raw text must match."""
    time_format: str = "epoch_s"
    """For timestamp_ms: `epoch_s`, `epoch_ms`, `iso8601`, or a Spark datetime pattern; read as UTC."""
    separator: str = " "
    """For list<string>: what stands between the values."""

    @property
    def raw_name(self) -> str:
        return self.source or self.name

    @model_validator(mode="after")
    def _role_fits_type(self) -> Column:
        allowed = _TYPES_OF_ROLE.get(self.role)
        if allowed is not None and self.type not in allowed:
            raise ValueError(f"role {self.role!r} needs one of the types {sorted(allowed)}, not {self.type!r}")
        if self.role in ("user", "item", "event_time", "valid_from") and self.nullable:
            raise ValueError(f"a column with role {self.role!r} cannot be nullable")
        if self.range is not None and self.type in ("string", "list<string>", "boolean"):
            raise ValueError(f"a range needs a number, and the type is {self.type!r}")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None
        return self


class Source(Strict):
    """How a raw table is written down: one record a line."""

    format: Literal["delimited", "jsonl"] = "delimited"
    path: str
    """File, folder or glob below the raw folder."""
    delimiter: Annotated[str, Field(min_length=1, max_length=4)] = "\t"
    quote: Annotated[str, Field(max_length=1)] = ""
    """Quote character; empty where quotes are plain text."""
    header: bool = True
    null: str = ""
    """The text that stands for null in delimited files."""


class Table(Strict):
    """A raw table: its source, its columns and the columns that name a row."""

    source: Source
    key: Annotated[tuple[str, ...], Field(min_length=1)]
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_hold(self) -> Table:
        names = [column.name for column in self.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"column {twice[0]!r} is there twice")
        for name in self.key:
            if name not in names:
                raise ValueError(f"key column {name!r} is not among the columns{nearest(name, names)}")
            if self.column(name).nullable:
                raise ValueError(f"key column {name!r} cannot be nullable")
        return self

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    def with_role(self, *roles: Role) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.role in roles)

    def the(self, role: Role) -> Column:
        """The one column with this role."""
        return self.with_role(role)[0]


class Contract(Strict):
    """A data set: the log of events, and the tables of items and of users where there are any.

    A log without users or items is a table of examples with labels, for rankers; it has no histories.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    meaning: str
    events: Table
    items: Table | None = None
    users: Table | None = None

    @model_validator(mode="after")
    def _roles_hold(self) -> Contract:
        if len(self.events.with_role("event_time")) != 1:
            count = len(self.events.with_role("event_time"))
            raise ValueError(f"events: exactly one column must have the role 'event_time', {count} have")
        once: tuple[Role, ...] = ("user", "item")
        for role in once:
            count = len(self.events.with_role(role))
            if count > 1:
                raise ValueError(f"events: one column at most may have the role {role!r}, {count} have")
        if self.events.with_role("valid_from"):
            raise ValueError("events: an event has an event_time; valid_from is for versions of items and users")
        entities: tuple[tuple[Table | None, Role], ...] = ((self.items, "item"), (self.users, "user"))
        for table, role in entities:
            if table is not None:
                self._check_entities(table, role)
        return self

    def _check_entities(self, table: Table, role: Role) -> None:
        if not self.events.with_role(role):
            raise ValueError(f"{role}s: there is such a table, but no column of events has the role {role!r}")
        named = [column.name for column in table.with_role(role)]
        versions = [column.name for column in table.with_role("valid_from")]
        if len(named) != 1 or len(versions) > 1 or table.key != (*named, *versions):
            raise ValueError(
                f"{role}s: the key must be the one column with the role {role!r}, "
                "followed by the one with the role 'valid_from' where rows are versions"
            )
        if table.the(role).type != self.events.the(role).type:
            raise ValueError(f"{role}s: the {role} column must have the type it has in events")

    def tables(self) -> dict[TableName, Table]:
        return {name: table for name in TABLES if (table := getattr(self, name)) is not None}

    def digest(self) -> str:
        """SHA-256 of the contract's canonical JSON."""
        return digest_of(self.model_dump(mode="json"))


def read_contract(name_or_path: str) -> Contract:
    """Read a built-in contract by name, or a contract file by path.

    Raises UserError naming the file, the place in it and, for an unknown key, the nearest known one.
    """
    raw, where = read_yaml(name_or_path, catalogue=CATALOG, what="contract")
    return parse_model(Contract, raw, where=where)
