"""The feature set: which features a snapshot is to have, before anything is fitted.

A contract says what a log holds, a feature set what is made of it. Without one, the contract's roles decide:
categorical columns get a vocabulary, numeric ones are standardised, texts become hashed tokens.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Literal, cast

from pydantic import Field, model_validator

from schemas.contract import Column, Contract, Table, TableName
from schemas.errors import UserError, nearest
from schemas.features import Owner
from schemas.settings import Strict, parse_model, read_yaml

CATALOG = files("schemas") / "feature_sets"

OF_TABLE: dict[TableName, str] = {"events": "event", "items": "item", "users": "user"}
_UNIT_MS = {"h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
PERIOD_MS = {"day": 86_400_000, "week": 604_800_000, "year": 31_556_952_000}

SourceName = Annotated[str, Field(pattern=r"^(events|items|users)\.[a-z][a-z0-9_]*$")]
"""Table and column, as the contract names them: `events.price`."""
Duration = Annotated[str, Field(pattern=r"^[1-9][0-9]*[hdw]$")]
"""Hours, days or weeks: `12h`, `7d`."""
Positive = Annotated[int, Field(gt=0)]


class _Wanted(Strict):
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] | None = None
    """Name of the training column; made from the source where left out."""


class WantedVocabulary(_Wanted):
    """An index into a vocabulary of the values of train; a list column becomes a list of them."""

    kind: Literal["vocabulary"]
    source: SourceName
    min_count: Positive | None = None
    """Values seen less often are unseen; where left out, what the job is told for all."""
    max_values: Positive | None = None
    length: Positive | None = None
    """Of a list; where left out, that of the longest list of train, 32 at most."""


class WantedNumber(_Wanted):
    """A number, after the steps in their order."""

    kind: Literal["number"]
    source: SourceName
    steps: tuple[Literal["clip", "log1p", "standardise"], ...] = ("standardise",)
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _steps_hold(self) -> WantedNumber:
        order = [step for step in ("clip", "log1p", "standardise") if step in self.steps]
        if list(self.steps) != order:
            raise ValueError("the steps of a number are clip, log1p, standardise, each once at most, in this order")
        if ("clip" in self.steps) != (self.low is not None or self.high is not None):
            raise ValueError("clip needs low or high, and these need clip")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        return self


class WantedBucket(_Wanted):
    """The interval a number lies in: between given edges, or between quantiles of train."""

    kind: Literal["bucket"]
    source: SourceName
    edges: tuple[float, ...] | None = None
    buckets: Annotated[int, Field(ge=2, le=256)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> WantedBucket:
        if (self.edges is None) == (self.buckets is None):
            raise ValueError("a bucket needs either edges, or the number of buckets to cut at quantiles")
        if self.edges is not None and (not self.edges or list(self.edges) != sorted(set(self.edges))):
            raise ValueError("edges must rise")
        return self


class WantedHash(_Wanted):
    """A value, or a cross of several, hashed."""

    kind: Literal["hash"]
    sources: Annotated[tuple[SourceName, ...], Field(min_length=1, max_length=4)]
    buckets: Annotated[int, Field(gt=1, le=2**31 - 8)]


class WantedTokens(_Wanted):
    """The words of a text, or the values of a list, hashed."""

    kind: Literal["tokens"]
    source: SourceName
    buckets: Annotated[int, Field(gt=1, le=2**31 - 8)] = 1 << 14
    length: Positive = 16


class WantedCyclic(_Wanted):
    """Where in the day, the week or the year a time lies: two columns, sine and cosine."""

    kind: Literal["cyclic"]
    source: SourceName
    period: Literal["day", "week", "year"]


class WantedPast(_Wanted):
    """Earlier events with the same values: how many, or the mean of their labels (target encoding)."""

    kind: Literal["count", "rate"]
    by: Annotated[tuple[SourceName, ...], Field(min_length=1, max_length=4)]
    window: Duration | None = None
    """How far back; all the past where left out."""
    every: Duration = "1d"
    """The tiles that time is cut into: an event sees the tiles before its own."""
    folds: Annotated[int, Field(ge=2, le=64)] | None = None
    """Out-of-fold instead of past-only."""
    prior_rows: Annotated[float, Field(ge=0)] = 20.0
    """Of a rate: so many rows of the mean of train are added, so that a rare value is no extreme."""

    @model_validator(mode="after")
    def _window_holds(self) -> WantedPast:
        if self.folds is not None and self.window is not None:
            raise ValueError("folds count over all of train: leave the window out, or the folds")
        if self.window is not None and duration_ms(self.window) % duration_ms(self.every):
            raise ValueError(f"window {self.window} is no multiple of every {self.every}")
        return self


Wanted = Annotated[
    WantedVocabulary | WantedNumber | WantedBucket | WantedHash | WantedTokens | WantedCyclic | WantedPast,
    Field(discriminator="kind"),
]


class FeatureSet(Strict):
    """The features wanted beside the ids of users and items and the history, which every snapshot has."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    meaning: str
    features: tuple[Wanted, ...]
    history_gaps: bool = False
    """Beside each item of the history, how long ago it was."""
    item_features_in_rows: bool = False
    """Items' features stand in every event's row, as rankers want them; else only in the items' table."""

    @model_validator(mode="after")
    def _names_differ(self) -> FeatureSet:
        names = [column_name(wanted) for wanted in self.features]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two features are named {twice[0]!r}: give one of them another `name`")
        return self


def read_feature_set(name_or_path: str | None, contract: Contract) -> FeatureSet:
    """A feature set, built-in by name or from a file; the one that the contract's roles ask for where None.

    Raises UserError naming the place, and for a source that the contract does not know the nearest one that it does.
    """
    if name_or_path is None:
        return features_of_roles(contract)
    raw, where = read_yaml(name_or_path, catalogue=CATALOG, what="feature set")
    wanted = parse_model(FeatureSet, raw, where=where)
    for number, feature in enumerate(wanted.features):
        for source in sources(feature):
            _check_source(feature, source, contract, where=f"{where}: features.{number}")
    return wanted


def features_of_roles(contract: Contract) -> FeatureSet:
    """What the roles of the contract's columns ask for."""
    found: list[Wanted] = []
    for name, table in contract.tables().items():
        for column in table.with_role("categorical"):
            found.append(WantedVocabulary(kind="vocabulary", source=f"{name}.{column.name}"))
        for column in table.with_role("text"):
            found.append(WantedTokens(kind="tokens", source=f"{name}.{column.name}"))
        for column in table.with_role("numeric"):
            found.append(WantedNumber(kind="number", source=f"{name}.{column.name}"))
    return FeatureSet(name="roles", meaning="what the contract's roles ask for", features=tuple(found))


def sources(wanted: Wanted) -> tuple[str, ...]:
    if isinstance(wanted, WantedHash):
        return wanted.sources
    return wanted.by if isinstance(wanted, WantedPast) else (wanted.source,)


def owner(wanted: Wanted) -> Owner:
    """The table whose rows a feature is a column of: events, where it needs more than one table or the past."""
    tables = {source.split(".")[0] for source in sources(wanted)}
    if isinstance(wanted, WantedPast) or len(tables) > 1:
        return "events"
    return next(table for table in OF_TABLE if table in tables)


def column_name(wanted: Wanted) -> str:
    """The name given, or one made of the table, the column and the kind; of a cyclic feature, without _sin and _cos."""
    if wanted.name is not None:
        return wanted.name
    named = "_x_".join(f"{OF_TABLE[table]}_{column}" for table, column in map(parts, sources(wanted)))
    if isinstance(wanted, WantedPast):
        over = "out_of_fold" if wanted.folds else wanted.window or "past"
        return f"{wanted.kind}_by_{named}_{over}"
    endings = {"vocabulary": "_idx", "number": "", "cyclic": f"_of_{getattr(wanted, 'period', '')}"}
    return named + endings.get(wanted.kind, f"_{wanted.kind}")


def parts(source: str) -> tuple[TableName, str]:
    """Table and column of a source."""
    table, _, column = source.partition(".")
    return cast(TableName, table), column


def duration_ms(text: str) -> int:
    return int(text[:-1]) * _UNIT_MS[text[-1]]


def _check_source(wanted: Wanted, source: str, contract: Contract, *, where: str) -> None:
    table_name, column_name = parts(source)
    tables: dict[str, Table] = {str(name): table for name, table in contract.tables().items()}
    if table_name not in tables:
        raise UserError(f"{where}: {source}: the contract {contract.name!r} has no table {table_name!r}.")
    names = [column.name for column in tables[table_name].columns]
    if column_name not in names:
        raise UserError(
            f"{where}: {source}: the contract {contract.name!r} has no such column{nearest(column_name, names) or '.'}"
        )
    _check_type(wanted, tables[table_name].column(column_name), where=f"{where}: {source}")


def _check_type(wanted: Wanted, column: Column, *, where: str) -> None:
    numbers = {"int32", "int64", "float32", "float64", "boolean", "timestamp_ms"}
    values = {"string", "int32", "int64", "boolean"}
    fitting: dict[str, set[str]] = {
        "vocabulary": values | {"list<string>"},
        "number": numbers,
        "bucket": numbers,
        "hash": values,
        "tokens": {"string", "list<string>"},
        "cyclic": {"timestamp_ms"},
        "count": values,
        "rate": values,
    }
    if column.type not in fitting[wanted.kind]:
        allowed = ", ".join(sorted(fitting[wanted.kind]))
        raise UserError(f"{where}: a {wanted.kind} is made of {allowed}, not {column.type}.")
    if column.role in ("label", "weight"):
        raise UserError(f"{where}: the {column.role} cannot be a feature: a model would be told the answer.")
