"""The runs of the benchmark of the Spark jobs in one table and a few figures."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.spark_tools import HEADRACE, INGEST, TOOLS

Run = dict[str, Any]
Distinct = Mapping[str, float]
"""Different values by categorical column."""
_TITLES = {INGEST: "Headrace ingest", **{name: tool.title for name, tool in TOOLS.items()}}


def _of(runs: Sequence[Run], data: str, tool: str) -> list[Run]:
    return [run for run in runs if run["data"] == data and run["tool"] == tool]


def _done(runs: Sequence[Run], data: str, tool: str) -> list[Run]:
    return [run for run in _of(runs, data, tool) if run["outcome"] == "done"]


def median(runs: Sequence[Run], data: str, tool: str, what: str = "seconds") -> float | None:
    """Of the runs that came to their end; None where none did."""
    found = [run[what] for run in _done(runs, data, tool)]
    return statistics.median(found) if found else None


def _data(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run["data"] for run in runs))


def _rows(runs: Sequence[Run], data: str) -> int:
    return next(int(run["rows"]) for run in runs if run["data"] == data)


def _spread(run: Run) -> float | None:
    """Of the files of train: how much larger the largest is than the smallest, as a share of the mean."""
    sizes = run.get("file_bytes") or []
    return (max(sizes) - min(sizes)) / statistics.mean(sizes) if sizes else None


def show(runs: Sequence[Run], distinct: Mapping[str, Distinct]) -> None:
    """The table, and below it how many different values the categorical columns hold."""
    table = Table(title="logs to training rows", title_justify="left")
    for name in ("rows", "tool", "s", "1000 rows/s", "CPU s", "memory MB", "Headrace's time is", "files", "sums"):
        table.add_column(name, justify="left" if name in ("tool", "sums") else "right")
    for data in _data(runs):
        own = median(runs, data, HEADRACE)
        for name in sorted(_TITLES, key=lambda name: (name != INGEST, median(runs, data, name) or 1e9)):
            of_tool = _of(runs, data, name)
            if of_tool:
                table.add_row(*_cells(runs, data, name, of_tool[-1], own))
        table.add_section()
    console = Console(width=120, highlight=False)
    console.print(table)
    for data, values in distinct.items():
        widest, total = max(values.values()), sum(values.values())
        console.print(f"{data}: {widest:,.0f} different values in the widest column, {total:,.0f} in all {len(values)}")


def _cells(runs: Sequence[Run], data: str, name: str, last: Run, own: float | None) -> Iterator[str]:
    seconds = median(runs, data, name)
    yield f"{_rows(runs, data):,}{' hot' if data.endswith('hot') else ''}"
    yield _TITLES[name]
    if seconds is None:
        yield from (last["outcome"], "", f"{last['cpu_s']:,.0f}", f"{last['peak_mb']:,.0f}", "", "", "")
        return
    cpu_s, peak_mb = (median(runs, data, name, what) or 0.0 for what in ("cpu_s", "peak_mb"))
    yield f"{seconds:,.1f}"
    yield f"{_rows(runs, data) / seconds / 1000:,.0f}"
    yield f"{cpu_s:,.0f}"
    yield f"{peak_mb:,.0f}"
    yield f"{own / seconds:.2f} x" if own is not None and name not in (INGEST, HEADRACE) else ""
    yield str(len(last.get("file_bytes", []))) if name != INGEST else ""
    yield "" if name == INGEST else "; ".join(last["differences"][:1]) or "agree"


def _by_data_and_tool(runs: Sequence[Run], value: Any) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for data in _data(runs):
        for tool in _TITLES:
            if _of(runs, data, tool):
                found.setdefault(data, {})[tool] = value(data, tool)
    return found


def _ratio(over: float | None, under: float | None) -> float | None:
    return round(over / under, 3) if over is not None and under else None


def summary(runs: Sequence[Run], distinct: Mapping[str, Distinct]) -> dict[str, Any]:
    """The figures: rates and memory by data and tool, ratios of times by data, growth as a share."""
    names = _data(runs)
    own = {data: median(runs, data, HEADRACE) for data in names}
    ingested = {data: median(runs, data, INGEST) for data in names}

    def rate(data: str, tool: str) -> int | None:
        seconds = median(runs, data, tool)
        return round(_rows(runs, data) / seconds) if seconds else None

    def peak(data: str, tool: str) -> int | None:
        found = median(runs, data, tool, "peak_mb")
        return round(found) if found else None

    def fastest(data: str) -> float | None:
        found = [median(runs, data, name) for name in ("duckdb", "polars")]
        return min((one for one in found if one is not None), default=None)

    def per_row(data: str) -> float | None:
        seconds = own.get(data)
        return seconds / _rows(runs, data) if seconds is not None else None

    plain = sorted((data for data in names if data.isdigit()), key=int)
    hot = [data for data in names if data.endswith("-hot")]
    with_ingest = {
        data: round(_rows(runs, data) / (own_s + ingest_s))
        for data in names
        if (own_s := own[data]) is not None and (ingest_s := ingested[data]) is not None
    }
    growth = _ratio(per_row(plain[-1]), per_row(plain[0])) if len(plain) > 1 else None
    hot_growth = {data: _ratio(own[data], own.get(data.removesuffix("-hot"))) for data in hot}
    spreads = {data: _spread(done[-1]) for data in names if (done := _done(runs, data, HEADRACE))}
    compared = [run for run in runs if "differences" in run]
    return {
        "distinct_values": {data: round(sum(values.values())) for data, values in distinct.items()},
        "rows_per_s": _by_data_and_tool(runs, rate),
        "peak_mb": _by_data_and_tool(runs, peak),
        "rows_per_s_of_ingest_and_prepare": with_ingest,
        "ratio_to_mllib": {data: _ratio(median(runs, data, "mllib"), own[data]) for data in names},
        "time_ratio_to_fastest_of_duckdb_polars": {data: _ratio(own[data], fastest(data)) for data in names},
        "cost_per_row_growth": None if growth is None else round(growth - 1, 3),
        "cost_per_row_growth_over": [plain[0], plain[-1]] if growth is not None else [],
        "hot_key_growth": {data: None if one is None else round(one - 1, 3) for data, one in hot_growth.items()},
        "file_size_spread": {data: one if one is None else round(one, 4) for data, one in spreads.items()},
        "not_done": {f"{run['data']} {run['tool']}": run["outcome"] for run in runs if run["outcome"] != "done"},
        "sums_agree": bool(compared) and not any(run["differences"] for run in compared),
    }
