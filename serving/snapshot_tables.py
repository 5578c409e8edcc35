"""What a release takes of its snapshot beside users and items, and of the events that the snapshot was made from."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.contract import Table
from schemas.errors import UserError
from schemas.features import FeatureTransform, IndexFeature, IndicesFeature, PastFeature
from schemas.snapshot import Snapshot, open_snapshot
from serving.features import STATE, VOCABULARIES
from serving.past_state import write_state
from serving.sources import made_of_events, user_columns
from serving.user_sorting import latest_rows


def past_features(transform: FeatureTransform) -> list[PastFeature]:
    return [feature for feature in made_of_events(transform) if isinstance(feature, PastFeature)]


def write_past(snapshot: Snapshot, feature: PastFeature, draft: Path) -> None:
    (draft / STATE).mkdir(exist_ok=True)
    write_state(snapshot.read(f"state/{feature.name}"), draft / STATE / f"{feature.name}.arrow")


def vocabularies(transform: FeatureTransform) -> list[str]:
    """Those that features of events look up: of users and items the release has what was looked up."""
    found = [f.vocabulary for f in made_of_events(transform) if isinstance(f, IndexFeature | IndicesFeature)]
    return sorted(set(found))


def write_vocabulary(snapshot: Snapshot, name: str, draft: Path) -> None:
    (draft / VOCABULARIES).mkdir(exist_ok=True)
    table = snapshot.read(f"vocab/{name}", columns=["value", "idx"])
    pq.write_table(table, draft / VOCABULARIES / f"{name}.parquet", compression="zstd")


def raw_columns(snapshot: Snapshot, table: Table, part: str, names: dict[str, str]) -> pa.Table:
    """Raw columns of the newest version of every user or item: `<part>_id` as text, and `names` (theirs to ours).

    They lie in the event store that the snapshot was made from; UserError where it is gone.
    """
    parents = snapshot.manifest.parents
    wanted = ", ".join(names.values())
    if not parents:
        raise UserError(f"{snapshot.url} names no events that it was made from, which have {part}.{wanted}.")
    try:
        events = open_snapshot(parents[0].url, kind="events")
        key, versions = table.key[0], [column.name for column in table.with_role("valid_from")]
        rows = events.read(part, columns=[key, *versions, *(name for name in names if name not in (key, *versions))])
    except (UserError, OSError) as error:
        raise UserError(
            f"features of events take {wanted} from the table of {part}, and {parents[0].url} does not give it: "
            f"{str(error).rstrip('.')}. Bring these events back, or prepare anew."
        ) from None
    rows = latest_rows(rows, key, versions[0] if versions else None)
    columns = {f"{part.removesuffix('s')}_id": pc.cast(rows[key], pa.string())}
    return pa.table(columns | {ours: rows[theirs] for theirs, ours in names.items()})


def borrowed_of_users(snapshot: Snapshot) -> pa.Table | None:
    """user_id and what features of events borrow from the user, as `users__age`; None where they borrow nothing."""
    names = {name.removeprefix("users__"): name for name in sorted(user_columns(snapshot.transform))}
    table = snapshot.manifest.contract.users
    if not names or table is None:
        return None
    return raw_columns(snapshot, table, "users", names)
