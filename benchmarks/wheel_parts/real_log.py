"""A real log, cut by time: its first part is what a wheel begins with, the rest says how people react."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.contract import read_contract
from schemas.errors import UserError

_TABLES = {
    "ml-100k": ("ml-100k.item", "ml-100k.user"),
    "kuairand": ("video_features_basic_pure.csv", "user_features_pure.csv"),
}
_LOG = {"ml-100k": "ml-100k.inter", "kuairand": "log_standard_4_25_to_5_08_pure.parquet"}
_ACTIONS = {"is_click": "click", "long_view": "long_view", "is_like": "like"}


@dataclass(frozen=True, kw_only=True)
class RealLog:
    """One row an event, by time; `acted` where the user took the item, which is what a recommender is after."""

    name: str
    user: NDArray[np.str_]
    item: NDArray[np.str_]
    time_ms: NDArray[np.int64]
    acted: NDArray[np.bool_]
    actions: tuple[dict[str, float | None], ...]
    """By row: kind and value of each action."""
    context: tuple[dict[str, Any], ...]
    """By row: what the caller knew."""
    says_what_was_left: bool
    """Whether rows that were not taken are items that the user met and left alone."""
    raw: Path
    table: pa.Table
    """As it was read, by time."""

    def write_seed(self, until_ms: int, to: Path) -> None:
        """The raw files of the part before `until_ms`, as the contract reads them."""
        to.mkdir(parents=True, exist_ok=True)
        for name in _TABLES[self.name]:
            shutil.copyfile(self.raw / name, to / name)
        rows = self.table.filter(pa.array(self.time_ms < until_ms))
        draft = to / f".{_LOG[self.name]}"
        if self.name == "ml-100k":
            with draft.open("wb") as file:
                file.write(("\t".join(rows.column_names) + "\n").encode())  # which Arrow would put in quotes
                csv.write_csv(rows, file, csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none"))
        else:
            pq.write_table(rows, draft)
        os.replace(draft, to / _LOG[self.name])

    def rows_in(self, span: tuple[int, int]) -> NDArray[np.int64]:
        """Rows of a period, its end left out, by time."""
        return np.flatnonzero((self.time_ms >= span[0]) & (self.time_ms < span[1]))

    def cuts(self, seed_share: float, periods: int) -> list[int]:
        """Moments between the parts: the seed's end, then each period's; periods hold as many taken items."""
        taken_ms = self.time_ms[self.acted]
        shares = np.linspace(seed_share, 1.0, periods + 1)[:-1]
        first = [int(taken_ms[round(share * len(taken_ms))]) for share in shares]
        return [*first, int(self.time_ms[-1]) + 1]


def read_log(name: str, raw: Path) -> RealLog:
    """UserError where there is no such log."""
    path = raw / _LOG[name]
    if not path.is_file():
        raise UserError(f"{path} is not there: give the folder of {name} with --raw.")
    if name == "ml-100k":
        # Columns stay text as they were: what the seed is written from is the raw log.
        names = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
        as_text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        table = csv.read_csv(path, parse_options=csv.ParseOptions(delimiter="\t"), convert_options=as_text)
        time_ms = pc.multiply(table["timestamp:float"].cast(pa.float64()).cast(pa.int64()), 1000)
        columns = ("user_id:token", "item_id:token")
    else:
        table = pq.read_table(path)
        table = table.filter(pa.array(_first_of_key(table, read_contract(name).events.key)))
        time_ms, columns = table["time_ms"].cast(pa.int64()), ("user_id", "video_id")
    order = np.argsort(time_ms.to_numpy(), kind="stable")
    table = table.take(pa.array(order))
    rows = table.num_rows
    if name == "ml-100k":
        values = table["rating:float"].cast(pa.float64()).to_pylist()
        actions: list[dict[str, float | None]] = [{"rating": value} for value in values]
        context: list[dict[str, Any]] = [{}] * rows
    else:
        flags = {kind: table[label].to_pylist() for label, kind in _ACTIONS.items()}
        actions = [{kind: None for kind in flags if flags[kind][row]} for row in range(rows)]
        context = [{"tab": tab} for tab in table["tab"].to_pylist()]
    first = "rating" if name == "ml-100k" else "click"
    return RealLog(
        name=name,
        user=np.array(table[columns[0]].cast(pa.string()).to_pylist()),
        item=np.array(table[columns[1]].cast(pa.string()).to_pylist()),
        time_ms=time_ms.to_numpy()[order],
        acted=np.array([first in one for one in actions]),
        actions=tuple(actions),
        context=tuple(context),
        says_what_was_left=name == "kuairand",
        raw=raw,
        table=table,
    )


def _first_of_key(table: pa.Table, key: tuple[str, ...]) -> NDArray[np.bool_]:
    """Rows whose key no earlier row has: the log repeats some."""
    numbered = table.select(list(key)).append_column("row", pa.array(np.arange(table.num_rows)))
    firsts = numbered.group_by(list(key)).aggregate([("row", "min")])["row_min"].to_numpy()
    kept = np.zeros(table.num_rows, dtype=bool)
    kept[firsts] = True
    return kept
