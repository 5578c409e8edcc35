"""Requests as they were answered, read from landed logs: a sample of them, what came of each item, users' events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from schemas.errors import UserError
from schemas.feedback import FeedbackRules
from schemas.served import COLUMNS, Kind, Scalar
from serving.features import Done

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Take = Literal["happened", "value", "sum"]
_ROWS_AT_ONCE = 16_384
_HOUR_MS = 3_600_000
_READ = ("request_id", "time_ms", "generation", "user_id", "context", "fallback", "items")


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Sampled requests, oldest first, and the items shown: those of request r are rows starts[r] to starts[r + 1]."""

    request_id: list[str]
    time_ms: Ints
    generation: list[str]
    user_id: list[str]
    context: list[dict[str, Scalar]]
    starts: Ints
    item_id: list[str]
    position: Ints
    propensity: Floats
    found: int
    """Requests that there were to sample from."""
    fallbacks: int
    """Requests that no model answered; they are left out, for no policy drew their items."""
    young: int = 0
    """Requests that were left out as later than the last time asked for."""

    def __len__(self) -> int:
        return len(self.request_id)

    def rows_of(self, request: int) -> slice:
        return slice(int(self.starts[request]), int(self.starts[request + 1]))


def read_requests(
    landed: Path,
    *,
    max_requests: int,
    seed: int = 0,
    from_ms: int | None = None,
    until_ms: int | None = None,
    generations: Sequence[str] | None = None,
) -> Requests:
    """A sample by a hash of request and seed: the same one however the files are cut. UserError where there is none.

    `generations` names the releases whose answers are taken (all).
    """
    kept: list[pa.Table] = []
    hashes: list[NDArray[np.uint64]] = []
    found, fallbacks, young, highest = 0, 0, 0, np.uint64(np.iinfo(np.uint64).max)
    for batch in _batches(landed, "impressions", _READ):
        times = batch["time_ms"].to_numpy()
        begun = times >= (from_ms or 0)
        inside = begun & (times <= (until_ms if until_ms is not None else np.iinfo(np.int64).max))
        if generations is not None:
            begun &= pc.is_in(batch["generation"], pa.array(generations)).to_numpy(zero_copy_only=False)
            inside &= begun
        answered = batch["fallback"].is_null().to_numpy(zero_copy_only=False)
        shown = pc.list_value_length(batch["items"]).to_numpy() > 0
        fallbacks += int((inside & ~answered).sum())
        young += int((begun & ~inside & answered & shown).sum())
        wanted = inside & answered & shown
        found += int(wanted.sum())
        hashed = _hash(batch["request_id"], seed)
        wanted &= hashed <= highest
        kept.append(pa.table(batch).filter(pa.array(wanted)))
        hashes.append(hashed[wanted])
        if sum(map(len, hashes)) > 2 * max_requests:
            kept, hashes = _smallest(kept, hashes, max_requests)
            highest = hashes[0].max()
    kept, _ = _smallest(kept, hashes, max_requests)
    if not kept or not kept[0].num_rows:
        too_young = f", {young:,} are younger than --window-hours" if young else ""
        raise UserError(
            f"{landed} holds no request in these times that models have answered ({fallbacks:,} were answered without "
            f"them{too_young}): land the logs first, or begin earlier with --from."
        )
    ordered = kept[0].sort_by([("time_ms", "ascending"), ("request_id", "ascending")])
    return replace(_requests(ordered, found, fallbacks), young=young)


def newest_ms(landed: Path) -> int:
    """Time of the last thing that has landed: what was done after it is not known yet. 0 where nothing has."""
    kinds: tuple[Kind, ...] = ("impressions", "actions")
    newest = (
        int(batch["time_ms"].to_numpy().max()) for kind in kinds for batch in _batches(landed, kind, ("time_ms",))
    )
    return max(newest, default=0)


def rewards(landed: Path, requests: Requests, action: str, *, take: Take, window_ms: int | None) -> Floats:
    """What came of each row: whether there was such an action in time, the last one's value, or the sum of values.

    Of the request's user alone, and each once: of those of one action_id the first, as `headrace feedback` counts.
    """
    actions = _actions_on(landed, pa.array(requests.request_id))
    actions = actions[actions["action"] == action]
    shown_to = np.array(requests.user_id, dtype=object)
    rows = pd.DataFrame(
        {
            "request_id": np.repeat(np.array(requests.request_id, dtype=object), np.diff(requests.starts)),
            "user_id": np.repeat(shown_to, np.diff(requests.starts)),
            "item_id": requests.item_id,
            "shown_ms": np.repeat(requests.time_ms, np.diff(requests.starts)),
            "row": np.arange(len(requests.item_id)),
        }
    )
    reward = np.zeros(len(rows))
    if not len(actions):
        return reward
    done = rows.merge(actions, on=["request_id", "user_id", "item_id"])
    if window_ms is not None:
        done = done[done["time_ms"] - done["shown_ms"] <= window_ms]
    done = done.sort_values(["time_ms", "row"], kind="stable")
    values = np.ones(len(done)) if take == "happened" else done["value"].fillna(0.0).to_numpy(dtype=np.float64)
    if take == "sum":
        np.add.at(reward, done["row"].to_numpy(), values)
    else:
        reward[done["row"].to_numpy()] = values
    return reward


class UserEvents:
    """Events of some users as the feedback rules make them, by user and time; those of a response by position."""

    def __init__(self, landed: Path, rules: FeedbackRules | None, users: Sequence[str]) -> None:
        self._place = {user: place for place, user in enumerate(dict.fromkeys(users))}
        frame = _events(landed, rules, list(self._place)) if rules is not None else _no_events()
        code = frame["user_id"].map(self._place).to_numpy(dtype=np.int64)
        order = np.lexsort((frame["order"].to_numpy(), frame["time_ms"].to_numpy(), code))
        self._times = frame["time_ms"].to_numpy(dtype=np.int64)[order]
        self._items: NDArray[Any] = frame["item_id"].to_numpy(dtype=object)[order]
        self._starts = np.searchsorted(code[order], np.arange(len(self._place) + 1))

    def between(self, user_id: str, after_ms: int, before_ms: int) -> Done:
        """Those later than one time and earlier than the other, oldest first."""
        place = self._place[user_id]
        start, end = int(self._starts[place]), int(self._starts[place + 1])
        times = self._times[start:end]
        first, last = np.searchsorted(times, after_ms, side="right"), np.searchsorted(times, before_ms, side="left")
        return list(zip(times[first:last].tolist(), self._items[start + first : start + last].tolist(), strict=True))


def _events(landed: Path, rules: FeedbackRules, users: list[str]) -> pd.DataFrame:
    """user_id, time_ms, item_id, order within the response; times as in `serving.recent`."""
    of_users = pa.array(users)
    shown = []
    for batch in _batches(landed, "impressions", ("request_id", "user_id", "time_ms", "items")):
        part = pa.table(batch).filter(pc.is_in(batch["user_id"], of_users))
        flat = part["items"].combine_chunks()
        parents = pc.list_parent_indices(flat)
        entries = flat.flatten()
        shown.append(
            pd.DataFrame(
                {
                    "request_id": part["request_id"].take(parents).to_numpy(),
                    "user_id": part["user_id"].take(parents).to_numpy(),
                    "time_ms": part["time_ms"].take(parents).to_numpy(),
                    "item_id": entries.field("item_id").to_numpy(zero_copy_only=False),
                    "order": entries.field("position").to_numpy(),
                }
            )
        )
    every = pd.concat(shown, ignore_index=True) if shown else _no_events()
    if rules.event == "impression" or not len(every):
        return every
    labels = rules.labels.values()
    done = _actions_on(landed, pa.array(every["request_id"].unique()))
    without_value = [label.action for label in labels if label.take == "happened"]
    done = done[done["action"].isin([label.action for label in labels])]
    done = done[done["value"].notna() | done["action"].isin(without_value)].rename(columns={"time_ms": "acted_ms"})
    met = every.merge(done, on=["request_id", "user_id", "item_id"])
    met = met[met["acted_ms"] - met["time_ms"] <= rules.window_hours * _HOUR_MS]
    if not len(met):
        return _no_events()
    first = met.sort_values("acted_ms", kind="stable").drop_duplicates(["request_id", "item_id"])
    return first.assign(time_ms=first["acted_ms"])[list(_no_events().columns)]


def _actions_on(landed: Path, request_ids: pa.Array) -> pd.DataFrame:
    """All actions on these requests; of those of a request that bear one action_id, the first."""
    columns = ("request_id", "action_id", "user_id", "item_id", "action", "value", "time_ms")
    parts = [
        pa.table(batch).filter(pc.is_in(batch["request_id"], request_ids))
        for batch in _batches(landed, "actions", columns)
    ]
    if not parts:
        return pd.DataFrame({name: [] for name in columns})
    done = pa.concat_tables(parts).to_pandas()
    return done.sort_values("time_ms", kind="stable").drop_duplicates(["request_id", "action_id"])


def _no_events() -> pd.DataFrame:
    return pd.DataFrame({"user_id": [], "time_ms": [], "item_id": [], "order": []})


def _batches(landed: Path, kind: Kind, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The landed files of a kind, a bounded number of rows at a time; nothing where there are none."""
    folder = landed / kind
    if not folder.is_dir():
        if kind == "impressions":
            raise UserError(f"{folder} does not exist: `headrace land` brings logs there.")
        return
    files = sorted(str(path) for path in folder.glob("day=*/*.parquet") if path.name[0] not in "._")
    if files:
        wanted = [COLUMNS[kind].field(name) for name in columns]
        of_files = ds.dataset(files, format="parquet", schema=pa.schema(wanted))
        for batch in of_files.to_batches(batch_size=_ROWS_AT_ONCE, batch_readahead=2, fragment_readahead=1):
            if batch.num_rows:
                yield batch


def _hash(ids: pa.Array, seed: int) -> NDArray[np.uint64]:
    found: NDArray[np.uint64] = pd.util.hash_array(
        ids.to_numpy(zero_copy_only=False), hash_key=f"{seed:016d}"[:16], categorize=False
    )
    return found


def _smallest(
    kept: list[pa.Table], hashes: list[NDArray[np.uint64]], count: int
) -> tuple[list[pa.Table], list[NDArray[np.uint64]]]:
    if not kept:
        return [], []
    hashed = np.concatenate(hashes)
    order = np.argsort(hashed, kind="stable")[:count]
    return [pa.concat_tables(kept).take(pa.array(order))], [hashed[order]]


def _requests(table: pa.Table, found: int, fallbacks: int) -> Requests:
    lists = table["items"].combine_chunks()
    entries = lists.flatten()
    starts = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy())]).astype(np.int64)
    return Requests(
        request_id=table["request_id"].to_pylist(),
        time_ms=table["time_ms"].to_numpy(),
        generation=table["generation"].to_pylist(),
        user_id=table["user_id"].to_pylist(),
        context=[json.loads(text) for text in table["context"].to_pylist()],
        starts=starts,
        item_id=entries.field("item_id").to_pylist(),
        position=entries.field("position").to_numpy().astype(np.int64),
        propensity=entries.field("propensity").to_numpy(),
        found=found,
        fallbacks=fallbacks,
    )
