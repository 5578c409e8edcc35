"""The users of a release, memory-mapped: what is known of one as of the snapshot's end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.features import Feature
from serving.user_sorting import user_key

HISTORY, SEEN, TIMES = "history", "seen", "history_times_ms"
_NONE = np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class User:
    """What a release knows of a user; `history` without padding, oldest first."""

    features: Mapping[str, Any]
    history: NDArray[np.int32] = field(default_factory=lambda: _NONE)
    seen: NDArray[np.int32] = field(default_factory=lambda: _NONE)
    times_ms: NDArray[np.int64] | None = None
    """Of the history's items, where the snapshot keeps them."""
    raw: Mapping[str, Any] = field(default_factory=dict)
    """Columns of the users' table that features of events borrow, as `users__age`."""


class Users:
    """Looks users up in users.arrow; safe to call from several threads."""

    def __init__(self, path: Path, features: tuple[Feature, ...]) -> None:
        self._source = pa.memory_map(str(path))
        reader = pa.ipc.open_file(self._source)
        self._batches = [batch for i in range(reader.num_record_batches) if (batch := reader.get_batch(i)).num_rows]
        self._keys = [batch.column("key").to_numpy() for batch in self._batches]
        self._first_keys = np.array([keys[0] for keys in self._keys], dtype=np.uint64)
        names = reader.schema.names
        self._features = [feature.name for feature in features if feature.name in names]
        self._raw = [name for name in names if name.startswith("users__")]
        self._lists = {
            name: [b.column(name) for b in self._batches] for name in (HISTORY, SEEN, TIMES) if name in names
        }
        self.num_users = sum(batch.num_rows for batch in self._batches)

    def id_columns(self) -> list[pa.Array]:
        """`user_id` of all users, by ascending key, a batch at a time."""
        return [batch.column("user_id") for batch in self._batches]

    def find(self, user_id: str) -> User | None:
        """None for a user that the snapshot does not know."""
        place = self._place(user_id)
        if place is None:
            return None
        number, row = place
        batch = self._batches[number]
        history = self._list(HISTORY, number, row)
        held = history != 0
        times = self._list(TIMES, number, row)[held] if TIMES in self._lists else None
        return User(
            features={name: batch.column(name)[row].as_py() for name in self._features},
            history=history[held],
            seen=self._list(SEEN, number, row),
            times_ms=times,
            raw={name: batch.column(name)[row].as_py() for name in self._raw},
        )

    def some(self, count: int) -> list[str]:
        """Ids of some users, the same ones at each call."""
        found: list[str] = []
        for batch in self._batches:
            found += batch.column("user_id").slice(0, count - len(found)).to_pylist()
        return found

    def _place(self, user_id: str) -> tuple[int, int] | None:
        """Batch and row of the user."""
        if not self._batches:
            return None
        key = np.uint64(user_key(user_id))
        number = max(int(np.searchsorted(self._first_keys, key, side="left")) - 1, 0)
        # Equal keys of different users may lie in two batches.
        while number < len(self._batches) and self._first_keys[number] <= key:
            keys = self._keys[number]
            row = int(np.searchsorted(keys, key))
            while row < len(keys) and keys[row] == key:
                if self._batches[number].column("user_id")[row].as_py() == user_id:
                    return number, row
                row += 1
            number += 1
        return None

    def _list(self, name: str, number: int, row: int) -> NDArray[Any]:
        if name not in self._lists:
            return _NONE
        values: NDArray[Any] = self._lists[name][number][row].values.to_numpy(zero_copy_only=False)
        return values
