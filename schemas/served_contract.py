"""The contract of a log and of what was served since: both lie as Parquet by day under the contract's own names."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import yaml

from schemas.contract import Column, Contract, Range, Source, Table, TableName
from schemas.errors import UserError

SEED, SERVED = "seed", "served"
_ALWAYS_THERE = ("user", "item", "event_time", "label")
EVENTS_GLOB = f"{{{SEED},{SERVED}}}/events/day=*/*.parquet"
"""Below the folder of a wheel, the events of both, whatever of the two there is."""

PROPENSITY = Column(
    name="propensity",
    type="float32",
    role="propensity",
    nullable=True,
    meaning="probability with which the item was put there; null where the log did not say",
)
POSITION = Column(name="position", type="int32", nullable=True, meaning="place in the response, 0 first; null before")
REQUEST_ID = Column(name="request_id", type="string", nullable=True, meaning="the response it was in; null before")
WEIGHT = Column(
    name="weight",
    type="float32",
    role="weight",
    nullable=True,
    range=Range(min=0),
    meaning="how much the event counts while it may still be acted on; null is 1",
)


def served_contract(base: Contract, *, weighted: bool = False) -> Contract:
    """The contract that the events of the seed and of serving keep together; `weighted`: young events have a weight.

    The event time joins the key, where it is not in it: somebody may be shown a thing again, and that is another
    event. Of two rows of one user, item and millisecond the first stays, as under the base. What is neither an id, the
    time nor a label may be null. The event time's upper bound, which a log that has ended may give, does not hold for
    what is served.
    """
    events = base.events
    time = events.the("event_time").name
    added = added_columns(base, weighted=weighted)
    names = {column.name for column in events.columns}
    for column in added:
        if column.name in names:
            raise UserError(
                f"contract {base.name}: events.{column.name}: events made of what was served have a column of this "
                f"name. Name it otherwise, with `source: {events.column(column.name).raw_name}`, and ingest again."
            )
    columns = [*(_served(column, in_key=column.name in events.key) for column in events.columns), *added]
    tables: dict[str, Any] = {name: _entities(table, name) for name, table in base.tables().items() if name != "events"}
    return Contract(
        name=base.name,
        meaning=base.meaning,
        events=_table(
            events, EVENTS_GLOB, columns, key=events.key if time in events.key else (*events.key, time), gone="drop"
        ),
        **tables,
    )


def added_columns(base: Contract, *, weighted: bool) -> list[Column]:
    """What an event has for having been served, beside the columns of the base."""
    added = [POSITION, REQUEST_ID]
    if not base.events.with_role("propensity"):
        added.insert(0, PROPENSITY)
    if weighted and not base.events.with_role("weight"):
        added.append(WEIGHT)
    return added


def _served(column: Column, *, in_key: bool) -> Column:
    """A column of events as served ones hold it.

    What a caller says of a request, or an item's row, may be missing, and what only the log of before could know is:
    with a column that may not be null every such event would go into quarantine.
    """
    changes: dict[str, Any] = {"source": None}
    if column.role not in _ALWAYS_THERE and not in_key:
        changes["nullable"] = True
    if column.type == "timestamp_ms":
        changes["time_format"] = "epoch_ms"
    if column.role == "event_time" and column.range is not None:
        changes["range"] = Range(min=column.range.min) if column.range.min is not None else None
    return column.model_copy(update=changes)


def _entities(table: Table, name: TableName) -> Table:
    columns = [
        column.model_copy(
            update={"source": None} | ({"time_format": "epoch_ms"} if column.type == "timestamp_ms" else {})
        )
        for column in table.columns
    ]
    return _table(table, f"{SEED}/{name}/*.parquet", columns, key=table.key)


def _table(base: Table, path: str, columns: list[Column], *, key: tuple[str, ...], **source: Any) -> Table:
    """The base's table from Parquet; thresholds for rules that only text can break are left out."""
    read = Source(format="parquet", path=path, **source)
    table = Table(
        source=read,
        key=key,
        columns=tuple(Column.model_validate(column.model_dump()) for column in columns),
        freshness=base.freshness,
        volume=base.volume,
    )
    rules = table.rule_names()
    kept = {
        pattern: share
        for pattern, share in base.thresholds.items()
        if any(fnmatchcase(rule, pattern) for rule in rules)
    }
    return table.model_copy(update={"thresholds": kept})


def contract_yaml(contract: Contract) -> str:
    """The contract as a file that `read_contract` takes."""
    return yaml.safe_dump(contract.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)
