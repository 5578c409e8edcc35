"""items.arrow: a snapshot's items with all that models and features of events take from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import UserError, nearest
from schemas.features import EncodedFeature
from schemas.snapshot import Snapshot
from serving.items import OWN_COLUMNS
from serving.snapshot_tables import raw_columns, vocabularies
from serving.sources import decides, item_columns, made_of_events, sources_of


def write_items(snapshot: Snapshot, target: Path, from_item: dict[str, str]) -> int:
    """Write the items by item_idx, uncompressed; give their number."""
    table = snapshot.read("items").sort_by("item_idx")
    features = [feature.name for feature in snapshot.transform.of("items") if feature.name != "item_idx"]
    table = table.select([*OWN_COLUMNS, *features])
    raw = raw_of_items(snapshot, table["item_id"].combine_chunks(), from_item)
    for name, values in encoded_by_item(snapshot, table, raw, from_item).items():
        table = table.append_column(name, values)
    for name, column in raw.items():
        table = table.append_column(f"raw:{name}", column)
    with pa.ipc.new_file(str(target), table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return int(table.num_rows)


def raw_of_items(snapshot: Snapshot, item_ids: pa.Array, from_item: dict[str, str]) -> dict[str, pa.ChunkedArray]:
    """By column of the events, the item's value in the order of `item_ids`; null for unknown items."""
    items = snapshot.manifest.contract.items
    wanted = {
        ours: from_item.get(ours, ours.removeprefix("items__")) for ours in item_columns(snapshot.transform, from_item)
    }
    if not wanted:
        return {}
    known = [column.name for column in items.columns] if items is not None else []
    for ours, theirs in wanted.items():
        if items is None or theirs not in known:
            raise UserError(
                f"from_item: {ours} is to come from items.{theirs}, which is no column{nearest(theirs, known)}."
            )
    assert items is not None
    rows = raw_columns(snapshot, items, "items", {theirs: theirs for theirs in dict.fromkeys(wanted.values())})
    place = pc.index_in(item_ids.cast(pa.string()), value_set=rows["item_id"].combine_chunks())
    return {ours: rows[theirs].take(place) for ours, theirs in wanted.items()}


def encoded_by_item(
    snapshot: Snapshot, table: pa.Table, raw: dict[str, pa.ChunkedArray], from_item: dict[str, str]
) -> dict[str, pa.Array]:
    """Features of events that the item alone decides, but for those of the past, which change with time."""
    found = {}
    columns: dict[str, list[Any]] = {"item_id": table["item_id"].to_pylist()}
    columns |= {name: column.to_pylist() for name, column in raw.items()}
    lookups = _lookups(snapshot)
    for feature in made_of_events(snapshot.transform):
        if not isinstance(feature, EncodedFeature) or decides(feature, from_item) != "item":
            continue
        names = sources_of(feature)
        rows = zip(*(columns[name] for name in names), strict=True)
        values = [feature.encode(dict(zip(names, row, strict=True)), lookups) for row in rows]
        kind = pa.int32() if feature.dtype == "int32" else pa.float32()
        found[feature.name] = pa.array(values, pa.list_(kind) if isinstance(values[0], list) else kind)
    return found


def _lookups(snapshot: Snapshot) -> dict[str, dict[str, int]]:
    found = {}
    for name in vocabularies(snapshot.transform):
        table = snapshot.read(f"vocab/{name}", columns=["value", "idx"])
        found[name] = dict(zip(table["value"].to_pylist(), table["idx"].to_pylist(), strict=True))
    return found
