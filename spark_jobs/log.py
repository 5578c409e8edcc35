"""The tables that ingest published, under the names that preparation uses: ids, time, measures, sources of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.contract import Column, Contract, Role, Table, TableName
from schemas.errors import UserError
from schemas.event_store import NO_DAY
from schemas.feature_set import FeatureSet, column_name, owner, parts, sources
from schemas.manifest import DataFile, QueryGrain
from schemas.snapshot import Snapshot
from spark_jobs.datasets import read_part
from spark_jobs.event_store import day_of_path
from spark_jobs.spark_types import spark_schema
from spark_jobs.transforms.event_days import DAY_MS, number_of
from spark_jobs.transforms.splits import SplitPolicy, settled, with_split
from spark_jobs.transforms.versions import VALID_FROM, with_entity_columns

_OWN_NAMES: dict[Role, str] = {"user": "user_id", "item": "item_id", "event_time": "event_time_ms"}
# Names that preparation gives to columns of its own beside those of each table.
_TAKEN: dict[TableName, set[str]] = {
    "events": {"row_id", "user_id", "item_id", "event_time_ms", "label", "weight", "propensity", "split"}
    | {"user_idx", "item_idx", "query_id", "seen", "history", "history_gaps", "negatives"},
    "items": {"item_id", "item_idx", "title", "count", VALID_FROM},
    "users": {"user_id", "user_idx", "seen", "history", "history_times_ms", VALID_FROM},
}


@dataclass(frozen=True)
class Log:
    """What is known of events, users and items; users and items have valid_from_ms where their rows are versions."""

    contract: Contract
    events: DataFrame
    """One row per event: row_id, event_time_ms, user_id and item_id if any, measures, sources of features, split."""
    train: DataFrame
    """The events of train, out of the files that can hold any: later days are not read."""
    users: DataFrame | None
    items: DataFrame | None
    columns: Mapping[TableName, Mapping[str, str]]
    """By the table that owns a feature: the column that each source (`users.age`) has in that table's rows."""

    @property
    def ids(self) -> list[str]:
        """`user` and `item`, or what there is of these."""
        return [name for name in ("user", "item") if f"{name}_id" in self.events.columns]

    @property
    def has_histories(self) -> bool:
        return len(self.ids) == 2

    @property
    def labels(self) -> list[str]:
        return [*self.contract.labels]

    @property
    def measures(self) -> list[str]:
        return [*_measures(self.contract)]

    def with_borrowed(self, rows: DataFrame) -> DataFrame:
        """Rows of events with what features of events take from their user and item, as it was at their time."""
        for name, entities, key in (("users", self.users, "user_id"), ("items", self.items, "item_id")):
            if entities is not None:
                rows = _with_borrowed(rows, name, entities, key, self.columns["events"])
        return rows


def check(contract: Contract, wanted: FeatureSet, policy: SplitPolicy, learned: QueryGrain) -> None:
    """Raise UserError for a source with the name of a column of ours, and for what the log cannot give.

    `learned` is the grain of train's rows.
    """
    for source in {source for feature in wanted.features for source in sources(feature)}:
        name, column = parts(source)
        table = contract.tables()[name]
        role = table.column(column).role
        if column in _TAKEN[name] | {*contract.labels} and role not in (*_OWN_NAMES, "title"):
            raise UserError(
                f"contract {contract.name}: {name}.{column}: a snapshot has a column of this name already. "
                f"Name it otherwise, with `source: {table.column(column).raw_name}`, and ingest again."
            )
    names = {column_name(feature) for feature in wanted.features}
    if clash := sorted(names & (_TAKEN["events"] | _TAKEN["items"] | _TAKEN["users"] | {*contract.labels})):
        raise UserError(f"feature set {wanted.name}: a snapshot has a column {clash[0]!r} already: give another name.")
    has = {role: bool(contract.events.with_role(role)) for role in ("user", "item", "label")}
    if any(feature.kind == "rate" for feature in wanted.features) and not has["label"]:
        raise UserError(f"feature set {wanted.name}: a rate is a mean of labels, and {contract.name} has no label.")
    if any(feature.kind == "rate" for feature in wanted.features) and contract.labels["label"].nullable:
        raise UserError(f"feature set {wanted.name}: a rate is a mean of labels, and {contract.name}'s can be null.")
    if policy.kind != "time" and not has["user"]:
        raise UserError(f"{contract.name} has no users: split it by time, for example --split time:0.8,0.1,0.1.")
    if wanted.history_gaps and not (has["user"] and has["item"] and learned == "event"):
        raise UserError(
            "history_gaps needs users, items and a history with times: a split by time or leave_last_out, and no "
            "--train-histories others."
        )


def read_log(spark: SparkSession, parent: Snapshot, wanted: FeatureSet, policy: SplitPolicy, seed: int) -> Log:
    """The accepted events with their split, and the users and items."""
    if parent.manifest.rows("events") == 0:
        raise UserError(f"{parent.url} holds no accepted events.")
    contract = parent.manifest.contract
    columns = _columns(contract, wanted)
    users = _read_entities(spark, parent, "users", columns)
    items = _read_entities(spark, parent, "items", columns)
    files = parent.files("events")
    policy = settled(policy, _read_events(spark, parent, files, {}), _rows_by_day(parent))

    def split(files: Sequence[DataFile]) -> DataFrame:
        rows = with_split(_read_events(spark, parent, files, columns["events"]), policy, seed=seed)
        for name, entities, key in (("users", users, "user_id"), ("items", items, "item_id")):
            if entities is not None:
                rows = _with_borrowed(rows, name, entities, key, columns["events"])
        return rows

    events = split(files)
    first = [file for file in files if policy.cuts_ms is None or _begins_before(file, policy.cuts_ms[0])]
    train = (events if len(first) == len(files) else split(first)).where("split = 'train'")
    return Log(contract, events, train, users, items, columns)


def _with_borrowed(rows: DataFrame, name: str, entities: DataFrame, key: str, columns: Mapping[str, str]) -> DataFrame:
    """Add what features of events take from a user or an item, as it was at the time of the event."""
    borrowed = {parts(source)[1]: column for source, column in columns.items() if parts(source)[0] == name}
    if not borrowed:
        return rows
    kept = [key, *([VALID_FROM] if VALID_FROM in entities.columns else [])]
    own = entities.select(*kept, *(F.col(column).alias(alias) for column, alias in borrowed.items()))
    return with_entity_columns(rows, own, key=key)


def _rows_by_day(parent: Snapshot) -> dict[int, int]:
    """Accepted events by day since 1970; nothing where the folder keeps no days."""
    store = parent.manifest.store
    days = store.tables["events"].days if store is not None else {}
    return {number_of(day): rows.accepted for day, rows in days.items() if rows.accepted}


def _begins_before(file: DataFile, moment_ms: int) -> bool:
    day = day_of_path(file.path)
    return day == NO_DAY or number_of(day) * DAY_MS < moment_ms


def _columns(contract: Contract, wanted: FeatureSet) -> dict[TableName, dict[str, str]]:
    """The columns that features are made of, by the table that owns them; events name those of others `users__age`."""
    columns: dict[TableName, dict[str, str]] = {"events": {}, "items": {}, "users": {}}
    for feature in wanted.features:
        for source in sources(feature):
            name, column = parts(source)
            table: Table = contract.tables()[name]
            own_name = _OWN_NAMES.get(table.column(column).role, column)
            borrowed = owner(feature) != name
            columns[owner(feature)][source] = f"{name}__{column}" if borrowed else own_name
    return columns


def _read_events(
    spark: SparkSession, parent: Snapshot, files: Sequence[DataFile], columns: Mapping[str, str]
) -> DataFrame:
    """row_id is a hash of the contract's key, so a row keeps its name from one snapshot to the next."""
    table = parent.manifest.contract.events
    events = read_part(spark, parent.url, files, spark_schema(table))
    ids = [
        F.col(column.name).cast("string").alias(_OWN_NAMES[role])
        for role in ("user", "item")
        for column in table.with_role(role)
    ]
    measures = [_measure(column).alias(name) for name, column in _measures(parent.manifest.contract).items()]
    own = {parts(source)[1] for source in columns if parts(source)[0] == "events"}
    plain = [column.name for column in table.columns if column.name in own and column.role not in _OWN_NAMES]
    return events.select(
        F.xxhash64(*table.key).alias("row_id"),
        *ids,
        F.col(table.the("event_time").name).alias("event_time_ms"),
        *measures,
        *plain,
    )


def _measures(contract: Contract) -> dict[str, Column]:
    """What is known of an event afterwards, and how much it counts: labels, weight, propensity, by their names here."""
    roles: tuple[Role, ...] = ("weight", "propensity")
    return contract.labels | {role: column for role in roles for column in contract.events.with_role(role)[:1]}


def _measure(column: Column) -> SparkColumn:
    """NaN for a label or a propensity that is not known; 1 for a weight that is not said."""
    value = F.col(column.name).cast("float")
    unknown = 1.0 if column.role == "weight" else float("nan")
    return F.coalesce(value, F.lit(unknown).cast("float")) if column.nullable else value


def _read_entities(
    spark: SparkSession, parent: Snapshot, name: TableName, columns: Mapping[TableName, Mapping[str, str]]
) -> DataFrame | None:
    """The items or the users of the contract, with their id as text; None where the contract has no such table."""
    table = parent.manifest.contract.tables().get(name)
    if table is None:
        return None
    entities = read_part(spark, parent.url, parent.files(name), spark_schema(table))
    needed = {parts(source)[1] for of in columns.values() for source in of if parts(source)[0] == name}
    needed |= {column.name for column in table.with_role("title")}
    used = [column.name for column in table.columns if column.name in needed and column.role not in _OWN_NAMES]
    key = F.col(table.key[0]).cast("string").alias("user_id" if name == "users" else "item_id")
    versions = [F.col(column.name).alias(VALID_FROM) for column in table.with_role("valid_from")]
    return entities.select(key, *versions, *used)
