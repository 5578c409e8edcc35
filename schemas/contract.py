"""The contract: what each column of a log, its items and its users is, may hold, and is for.

Everything else is derived from it: Spark and Arrow types, quarantine rules, the features of a snapshot,
the inputs of a model. A user brings a log of their own by writing one contract and no Python.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
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
    references: Annotated[str | None, Field(pattern=r"^(items|users)\.[a-z][a-z0-9_]*$")] = None
    """For a column of events: the key of another table, as in `items.item_id`, that must hold the value."""

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


class Jdbc(Strict):
    """Where a raw table lies in a database. The password comes from the environment or ~/.pgpass, never from here."""

    url: Annotated[str, Field(pattern=r"^jdbc:[a-z0-9]+:")]
    user: str | None = None
    password_env: str = "HEADRACE_JDBC_PASSWORD"
    """Environment variable that holds the password; ~/.pgpass is asked where it is not set."""
    driver: str | None = None
    """Class of the driver, where the jar does not name it itself."""
    partition_column: str | None = None
    """A whole number, date or time by which the table is read in `partitions` ranges from `lower` to `upper`."""
    lower: str | int | None = None
    upper: str | int | None = None
    partitions: Annotated[int, Field(ge=1)] = 1
    fetch_rows: Annotated[int, Field(ge=1)] = 10_000

    @model_validator(mode="after")
    def _ranges_are_whole(self) -> Jdbc:
        if re.search(r"password|://[^/]*:[^/]*@", self.url, re.IGNORECASE):
            raise ValueError(f"the url holds a password: take it out, and set {self.password_env} or ~/.pgpass")
        ranges = (self.partition_column, self.lower, self.upper)
        if any(value is not None for value in ranges) != all(value is not None for value in ranges):
            raise ValueError("partition_column, lower and upper go together")
        if self.partitions > 1 and self.partition_column is None:
            raise ValueError("to read in several partitions, say partition_column, lower and upper")
        return self


class Source(Strict):
    """How a raw table is written down: one record a line, or columns with types of their own."""

    format: Literal["delimited", "jsonl", "parquet", "jdbc", "table"] = "delimited"
    path: str
    """File, folder or glob below the raw folder; the table's name for `jdbc` and `table`."""
    jdbc: Jdbc | None = None
    delimiter: Annotated[str, Field(min_length=1, max_length=4)] = "\t"
    quote: Annotated[str, Field(max_length=1)] = ""
    """Quote character; empty where quotes are plain text."""
    header: bool = True
    null: str = ""
    """The text that stands for null in delimited files."""
    gone: Literal["keep", "drop"] = "keep"
    """What becomes of the rows of a file that was read and is not there any more: `keep` for logs that are cleared
    away, `drop` where files replace one another, as those of a store's days do."""

    @property
    def is_text(self) -> bool:
        """One record a line; else columns with types of their own."""
        return self.format in ("delimited", "jsonl")

    @property
    def is_files(self) -> bool:
        """Files below the raw folder; else something with a name."""
        return self.format not in ("jdbc", "table")

    @model_validator(mode="after")
    def _jdbc_is_given_where_it_is_read(self) -> Source:
        if (self.format == "jdbc") != (self.jdbc is not None):
            raise ValueError("`jdbc:` and `format: jdbc` go together")
        return self


class Freshness(Strict):
    """How old the newest row may be, against --as-of."""

    max_age_hours: Annotated[float, Field(gt=0)]


class Volume(Strict):
    """How many rows there must be, and how far from the last version their number may be."""

    min_rows: Annotated[int, Field(ge=0)] = 0
    max_change: Annotated[float | None, Field(gt=0)] = None
    """Of the last version's rows: 0.5 allows half of them more or fewer."""


class Table(Strict):
    """A raw table: its source, its columns and the columns that name a row."""

    source: Source
    key: Annotated[tuple[str, ...], Field(min_length=1)]
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """By rule (`null:age`, `range:*`), the share of rows that may break it before the job stops."""
    freshness: Freshness | None = None
    volume: Volume | None = None

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
        rules = self.rule_names()
        for pattern in self.thresholds:
            if not any(fnmatchcase(rule, pattern) for rule in rules):
                raise ValueError(f"threshold {pattern!r} is for no rule of this table{nearest(pattern, rules)}")
        if self.freshness is not None and not self.with_role("event_time", "valid_from"):
            raise ValueError("freshness needs a column with the role 'event_time' or 'valid_from'")
        return self

    def rule_names(self) -> tuple[str, ...]:
        """Every rule that a row of this table can break, as quarantine and thresholds name it."""
        names = ["encoding", "json" if self.source.format == "jsonl" else "width"] if self.source.is_text else []
        for column in self.columns:
            kinds = {
                "null": not column.nullable,
                "type": True,
                "pattern": column.pattern is not None,
                "range": column.range is not None,
                "one_of": column.one_of is not None,
                "foreign_key": column.references is not None,
            }
            names += [f"{kind}:{column.name}" for kind, there in kinds.items() if there]
        return (*names, "duplicate_key")

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
                if any(column.references for column in table.columns):
                    raise ValueError(f"{role}s: only columns of events can have `references`")
        for column in self.events.columns:
            if column.references is not None:
                self._check_reference(column, column.references)
        return self

    def _check_reference(self, column: Column, references: str) -> None:
        name, _, referred = references.partition(".")
        table: Table | None = getattr(self, name)
        if table is None or table.key[0] != referred:
            key = f"its key begins with {table.key[0]!r}" if table else "there is no such table"
            raise ValueError(f"events: {column.name} references {references}, but {key}")
        if table.column(referred).type != column.type:
            raise ValueError(f"events: {column.name} must have the type of {references} that it references")

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

    @property
    def labels(self) -> dict[str, Column]:
        """What came of an event, by its column's name in a snapshot: the first is `label`, others `label_<name>`.

        Null, where a column allows it, is not known: NaN in a snapshot, and of no weight in training and metrics.
        A propensity that is null is NaN there too; a weight that is null is 1.
        """
        columns = self.events.with_role("label")
        return {"label" if place == 0 else f"label_{column.name}": column for place, column in enumerate(columns)}

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
