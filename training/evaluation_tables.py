"""An evaluation on the terminal: a ranker's metrics, calibration and slices, a retriever's slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from schemas.bundle import CalibrationPoint, SliceMetrics, SplitMetrics
from training.slices import signs

SLICE_METRICS = ("auc", "log_loss", "calibration")
_CURVE_ROWS = 10
_SLICE_METRICS = 4  # of a retriever: those of the smallest k


def show(split: str, head: str, found: SplitMetrics) -> None:
    """All that was found for a head."""
    console = Console(width=120, highlight=False, markup=False, emoji=False)  # values are the log's, whatever they hold
    intervals = found.intervals.get(head, {})
    console.print(_metrics(f"{split}: {head}", found.heads[head], intervals))
    if found.curves.get(head):
        console.print(_curve(found.curves[head]))
    if found.slices.get(head):
        console.print(_slices(found.slices[head], intervals))


def show_slices(slices: Sequence[SliceMetrics]) -> None:
    """A retriever's, the worst first."""
    shown = [name for name in slices[0].metrics if name not in ("rows", "queries")]
    table = _table("slices, the worst first", "slice", "rows", "queries", *shown[:_SLICE_METRICS])
    for one in slices:
        counts = [number("rows", one.metrics[name]) for name in ("rows", "queries")]
        found = [number(name, one.metrics[name]) for name in shown[:_SLICE_METRICS]]
        table.add_row(f"{one.column} = {one.value}", *counts, *found)
    Console(width=120, highlight=False, markup=False, emoji=False).print(table)


def interval(found: tuple[float, float] | None) -> str:
    return "" if found is None else f"{found[0]:.4f} to {found[1]:.4f}"


def number(name: str, value: float) -> str:
    return f"{value:,.0f}" if name in ("rows", "users") else f"{value:.4f}"


def _metrics(title: str, found: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> Table:
    table = _table(title, "metric", "value", *(["95 % of samples of users"] if intervals else []))
    for name, value in found.items():
        table.add_row(name, number(name, value), *([interval(intervals.get(name))] if intervals else []))
    return table


def _curve(points: Sequence[CalibrationPoint]) -> Table:
    """Every other bin or so, the first and the last: the page shows all."""
    table = _table(
        "calibration, by predicted probability", "predicted", "came true", "95 % of samples of users", "rows"
    )
    step = max(1, -(-len(points) // _CURVE_ROWS))
    for place in sorted({*range(0, len(points), step), len(points) - 1}):
        point = points[place]
        table.add_row(f"{point.probability:.4f}", f"{point.label:.4f}", interval(point.interval), f"{point.rows:,}")
    return table


def _slices(slices: Sequence[SliceMetrics], intervals: Mapping[str, tuple[float, float]]) -> Table:
    table = _table("slices, the worst first", "slice", "rows", *SLICE_METRICS, "its 95 %", "look at")
    for one in slices:
        shown = [number(name, one.metrics[name]) if name in one.metrics else "" for name in SLICE_METRICS]
        table.add_row(
            f"{one.column} = {one.value}",
            number("rows", one.metrics.get("rows", 0)),
            *shown,
            interval(one.intervals.get("calibration")),
            ", ".join(signs(one, intervals)),
        )
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    return table
