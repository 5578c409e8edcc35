"""What each generation showed while it was in service, from the landed logs: counts, chance, and how popular it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.generations import Popularity

_ROWS_PER_BATCH = 1 << 16
_POPULAR = 0.1
"""Share of the catalogue that counts as popular."""
_ITEM, _EXPLORED = "items.list.element.item_id", "items.list.element.explored"


@dataclass
class Served:
    """Of one generation."""

    requests: int = 0
    explored: int = 0
    fallbacks: int = 0
    items: Counter[str] = field(default_factory=Counter)
    """How often each was shown."""
    actions: Counter[str] = field(default_factory=Counter)
    """By kind, on responses of that day and of the day before."""

    @property
    def shown(self) -> int:
        return self.items.total()


def served_by_generation(landed: Path) -> dict[str, Served]:
    """Read what has landed, a batch of a file at a time; of actions two days of responses at a time."""
    found: dict[str, Served] = {}
    for day in _days(landed / "impressions"):
        for batch in _batches(landed / "impressions" / day, ["generation", "fallback", _ITEM, _EXPLORED]):
            _count(found, batch)
    for day in _days(landed / "actions"):
        before = f"day={date.fromisoformat(day.removeprefix('day=')) - timedelta(days=1)}"
        responses = _table(landed / "impressions", (before, day), ["request_id", "generation"])
        if responses is None:
            continue
        for batch in _batches(landed / "actions" / day, ["request_id", "action"]):
            _count_actions(found, pa.Table.from_batches([batch]), responses)
    return found


def popularity(shown: Mapping[str, int], items: pa.Table) -> Popularity | None:
    """How shown items are spread over the catalogue `items` (item_id, count in train); None where nothing was shown."""
    in_log = items["count"].to_numpy().astype(np.float64)
    ids = items["item_id"].cast(pa.string()).to_pylist()
    of_shown = np.array([shown.get(item, 0) for item in ids], dtype=np.float64)
    if not of_shown.sum() or not in_log.sum():
        return None
    popular = np.argsort(-in_log, kind="stable")[: max(1, round(_POPULAR * len(in_log)))]
    return Popularity(
        items=len(in_log),
        items_shown=int(np.count_nonzero(of_shown)),
        gini_shown=gini(of_shown),
        gini_log=gini(in_log),
        popular_share_shown=float(of_shown[popular].sum() / of_shown.sum()),
        popular_share_log=float(in_log[popular].sum() / in_log.sum()),
    )


def gini(counts_N: NDArray[np.float64]) -> float:
    """0 where all items have as many, towards 1 where one has all."""
    ascending_N = np.sort(counts_N)
    places_N = np.arange(1, len(counts_N) + 1)
    return float((2 * places_N - len(counts_N) - 1) @ ascending_N / (len(counts_N) * ascending_N.sum()))


def _count(found: dict[str, Served], batch: pa.RecordBatch) -> None:
    lists = batch.column("items")
    generation_of_item = batch.column("generation").take(pc.list_parent_indices(lists))
    flat = pc.list_flatten(lists)
    shown = pa.table(
        {
            "generation": generation_of_item,
            "item_id": pc.struct_field(flat, "item_id"),
            "explored": pc.struct_field(flat, "explored").cast(pa.int64()),
        }
    )
    for row in (
        shown.group_by(["generation", "item_id"]).aggregate([("explored", "count"), ("explored", "sum")]).to_pylist()
    ):
        one = found.setdefault(row["generation"], Served())
        one.items[row["item_id"]] += row["explored_count"]
        one.explored += row["explored_sum"]
    requests = pa.table({"generation": batch.column("generation"), "fallback": batch.column("fallback")})
    counts = requests.group_by("generation").aggregate([([], "count_all"), ("fallback", "count")])
    for row in counts.to_pylist():
        one = found.setdefault(row["generation"], Served())
        one.requests += row["count_all"]
        one.fallbacks += row["fallback_count"]


def _count_actions(found: dict[str, Served], actions: pa.Table, responses: pa.Table) -> None:
    """A response may have landed twice only with the same generation: it is taken once."""
    once = responses.group_by("request_id").aggregate([("generation", "min")])
    joined = actions.join(once, keys="request_id", join_type="inner")
    for row in joined.group_by(["generation_min", "action"]).aggregate([([], "count_all")]).to_pylist():
        found.setdefault(row["generation_min"], Served()).actions[row["action"]] += row["count_all"]


def _days(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.glob("day=*")) if folder.exists() else []


def _batches(folder: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for file in sorted(folder.glob("*.parquet")):
        yield from pq.ParquetFile(file).iter_batches(batch_size=_ROWS_PER_BATCH, columns=columns)


def _table(folder: Path, days: tuple[str, ...], columns: list[str]) -> pa.Table | None:
    batches = [batch for day in days for batch in _batches(folder / day, columns)]
    return pa.Table.from_batches(batches) if batches else None
