"""Users of a release by how their ids begin, for a person who looks for one."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

MOST_ROWS = 5_000_000
"""That one search looks at."""


def starting_with(prefix: str, ids: Iterable[pa.Array], *, most: int) -> list[str]:
    """Some of them, sorted: users lie by the hash of their ids, so they are those that are met first."""
    found: list[str] = []
    looked_at = 0
    for some in ids:
        matching = some.filter(pc.starts_with(some, prefix)) if prefix else some
        found += matching.slice(0, most - len(found)).to_pylist()
        looked_at += len(some)
        if len(found) >= most or looked_at >= MOST_ROWS:
            break
    return sorted(found)
