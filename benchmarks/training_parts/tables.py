"""One table of growing size on two ranks, whole on each or by rows: time of a step, memory, the planner's choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.results import Results
from benchmarks.training_parts.programs import on_ranks, one_line

_RANKS = 2
# Whole, a table's weights and gradient lie on every rank, Horovod copies the gradient, and its squares are as large.
_COPIES_OF_WHOLE = 4


def measure(
    results: Results, folder: Path, *, sizes_mb: Sequence[float], memory_mb: int, cap_mb: int, console: Console
) -> None:
    """Each size both ways, as far as the ranks' memory goes; the largest, by rows, under a cap for each process."""
    for mb in sizes_mb:
        for policy in ("sharded", "replicated"):
            if policy == "replicated" and _RANKS * _COPIES_OF_WHOLE * mb > memory_mb:
                continue
            _one(results, folder, mb, policy, 0, console)
    _one(results, folder, max(sizes_mb), "sharded", cap_mb, console)


def _one(results: Results, folder: Path, mb: float, policy: str, cap_mb: int, console: Console) -> None:
    key = {"part": "tables", "mb": mb, "policy": policy, "cap_mb": cap_mb}
    if results.find(key) is None:
        console.print(f"tables: {mb:g} MB {policy}{f', cap {cap_mb} MB' if cap_mb else ''}", highlight=False)
        arguments = ["--tables", str(mb), "--policy", policy, "--cap-mb", str(cap_mb)]
        words = on_ranks("benchmarks.training_peers.in_headrace", arguments, _RANKS)
        results.add(key, one_line(words, folder / "tables.log"))


def show(results: Results, console: Console) -> dict[str, Any]:
    """The table; gives the size from which on by rows is faster, and where the planner turns to it."""
    runs = [run for run in results.runs if run["part"] == "tables"]
    table = Table(title=f"One table on {_RANKS} ranks, 8,192 look-ups a rank and step", title_justify="left")
    for name in ("MB", "rows", "whole: ms", "MB a rank", "by rows: ms", "MB a rank", "planner"):
        table.add_column(name, justify="right")
    crossing, turn = None, None
    for mb in sorted({run["mb"] for run in runs}):
        whole = results.find({"part": "tables", "mb": mb, "policy": "replicated", "cap_mb": 0})
        by_rows = results.find({"part": "tables", "mb": mb, "policy": "sharded", "cap_mb": 0})
        assert by_rows is not None
        planner = by_rows["planner"]
        cells = [f"{mb:,.0f}", f"{by_rows['rows']:,}", *_cells(whole), *_cells(by_rows)]
        table.add_row(*cells, "by rows" if planner == "sharded" else "whole")
        if crossing is None and whole is not None and by_rows["step_ms"] < whole["step_ms"]:
            crossing = mb
        if turn is None and planner == "sharded":
            turn = mb
    console.print(table)
    capped = [run for run in runs if run["cap_mb"]]
    for run in capped:
        console.print(
            f"{run['mb']:,.0f} MB by rows with at most {run['cap_mb']:,} MB of data for each process: "
            f"{run['step_ms']:.1f} ms a step",
            highlight=False,
        )
    return {"by_rows_faster_from_mb": crossing, "planner_by_rows_from_mb": turn, "capped": len(capped)}


def _cells(run: dict[str, Any] | None) -> tuple[str, str]:
    return ("not run", "") if run is None else (f"{run['step_ms']:.1f}", f"{run['peak_rss_mb']:,.0f}")
