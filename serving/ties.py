"""In which order Spark puts events of one time, so that histories of a server are in it too: a hash of item and row."""

from __future__ import annotations

import struct
from collections.abc import Callable

import xxhash

from schemas.contract import ColumnType, Contract
from schemas.features import SPARK_SEED

Tie = Callable[[str, str, int], int]
"""Of (user_id, item_id, time_ms); events of one time go by it."""
_PACKED = {"int32": "<i", "int64": "<q", "timestamp_ms": "<q"}


def hash_of(values: list[tuple[str | int, ColumnType]]) -> int:
    """Spark's xxhash64 of several columns: the hash of each seeds that of the next."""
    found = SPARK_SEED
    for value, kind in values:
        packed = str(value).encode() if kind == "string" else struct.pack(_PACKED[kind], int(value))
        found = xxhash.xxh64_intdigest(packed, found)
    return _signed(found)


def tie_of(contract: Contract) -> Tie:
    """The order of events of one time; of one response by position where other columns name an event's row too."""
    events = contract.events
    of_role = {role: events.the(role) for role in ("user", "item", "event_time")}
    role_of = {column.name: role for role, column in of_role.items()}
    # Events that were served have their time in the key, whatever the log that the wheel began with had.
    key = [*events.key, *([] if of_role["event_time"].name in events.key else [of_role["event_time"].name])]
    if any(name not in role_of for name in key):
        return by_position
    named = [(role_of[name], of_role[role_of[name]].type) for name in key]

    def tie(user_id: str, item_id: str, time_ms: int) -> int:
        value: dict[str, str | int] = {"user": user_id, "item": item_id, "event_time": time_ms}
        row_id = hash_of([(value[role], kind) for role, kind in named])
        return hash_of([(item_id, "string"), (row_id, "int64")])

    return tie


def by_position(user_id: str, item_id: str, time_ms: int) -> int:
    """No order beside that in which they were shown."""
    return 0


def _signed(unsigned: int) -> int:
    return unsigned - (1 << 64) * (unsigned >> 63)
