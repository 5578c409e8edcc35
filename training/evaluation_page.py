"""An evaluation of a ranker as one page of HTML that needs nothing else: no network, no script, no files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from schemas.bundle import CalibrationPoint, RunEvaluation, SliceMetrics
from schemas.html import Html, document, joined, tag
from training.evaluation_tables import SLICE_METRICS, interval, number
from training.slices import signs

_SIDE, _MARGIN = 320, 56
_ENDS = (0.004, 0.01, 0.02, 0.04, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the axes; a quarter of each is a round number
_STYLE = """
:root { color-scheme: light dark; --paper:#fcfcfb; --ink:#1c2024; --soft:#5f6b76; --line:#e3e6e8; --points:#1d5fa8;
  --warn:#9a4a00; --warn-paper:#fff4e5; }
@media (prefers-color-scheme: dark) { :root { --paper:#14171a; --ink:#e6e9ec; --soft:#9aa6b1; --line:#2d343a;
  --points:#7db4f5; --warn:#ffc37a; --warn-paper:#2d2416; } }
body { margin:0 auto; max-width:62rem; padding:1.5rem 1.25rem 4rem; background:var(--paper); color:var(--ink);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size:1.5rem; margin:0; overflow-wrap:anywhere; } h2 { font-size:1.15rem; margin:2.2rem 0 .6rem; }
h3 { font-size:.95rem; margin:1.2rem 0 .4rem; } .soft { color:var(--soft); } .small { font-size:.85rem; }
.pair { display:flex; flex-wrap:wrap; gap:2rem; align-items:flex-start; } .scroll { overflow-x:auto; }
table { border-collapse:collapse; font-variant-numeric:tabular-nums; font-size:.9rem; }
th, td { padding:.22rem .7rem; text-align:right; border-bottom:1px solid var(--line); }
th { color:var(--soft); font-weight:500; } th:first-child, td:first-child { text-align:left; overflow-wrap:anywhere; }
tr.bad td { background:var(--warn-paper); } tr.bad td:last-child { color:var(--warn); font-weight:600; }
svg { max-width:100%; height:auto; } svg text { fill:var(--soft); font-size:11px; }
.grid { stroke:var(--line); } .diagonal { stroke:var(--soft); stroke-dasharray:4 4; }
.spread { stroke:var(--points); stroke-opacity:.45; stroke-width:2; } .point { fill:var(--points); }
"""
_READING = (
    "Rows are sorted by predicted probability and parted into bins of as many rows. A point is a bin: how often it was "
    "predicted, and how often it came true; its bar is where 95 of 100 such samples of users would put that. On the "
    "diagonal predictions come true as often as they say. Calibration is predicted over real clicks: above 1 the model "
    "promises too much. ECE is the mean distance from the diagonal, over rows.",
    "Slices are the most frequent values of a column, the rest of them as others, or the quartiles of a number. First "
    "stand those to look at: whose calibration is off by more than chance, or whose AUC is below the interval of all "
    "rows; then those whose calibration is furthest from 1. Many slices are looked at: some are off by chance alone.",
)


def page(evaluation: RunEvaluation) -> str:
    """The whole page; what comes from the log is escaped."""
    title = f"Evaluation on {evaluation.split}"
    about = f"{evaluation.model.num_rows:,} rows of the snapshot {evaluation.snapshot.id} ({evaluation.snapshot.url})"
    return document(
        title,
        _STYLE,
        tag("h1", title),
        tag("p", about, cls="soft small"),
        *(_head(evaluation, head) for head in evaluation.model.heads),
        tag("h2", "How to read this"),
        *(tag("p", text, cls="small") for text in _READING),
    )


def _head(evaluation: RunEvaluation, head: str) -> Html:
    found = evaluation.model
    intervals = found.intervals.get(head, {})
    metrics = [(name, number(name, value), interval(intervals.get(name))) for name, value in found.heads[head].items()]
    points, slices = found.curves.get(head, []), found.slices.get(head, [])
    diagram = tag("div", tag("h3", "Calibration"), reliability_diagram(points)) if points else None
    table = _table(("metric", "value", "95 % of samples of users"), metrics)
    return tag(
        "section",
        tag("h2", head),
        tag("div", tag("div", tag("h3", "Metrics"), table), diagram, cls="pair"),
        joined([tag("h3", "Slices, the worst first"), _slices(slices, intervals)]) if slices else None,
    )


def reliability_diagram(points: Sequence[CalibrationPoint]) -> Html:
    """Predicted against came true, both from 0 to the round number that holds the highest of them."""
    highest = max(max(point.probability, point.interval[1] if point.interval else point.label) for point in points)
    most = next(end for end in _ENDS if highest <= end or end == 1)
    size = _SIDE + _MARGIN

    def across(value: float) -> str:
        return f"{_MARGIN + value / most * _SIDE:.1f}"

    def up(value: float) -> str:
        return f"{_SIDE + 8 - min(value, most) / most * _SIDE:.1f}"

    parts: list[Html] = []
    for place in range(5):
        value = most * place / 4
        x, y, text = across(value), up(value), f"{value:.2g}"
        parts += [
            tag("line", x1=x, x2=x, y1=up(0), y2=up(most), cls="grid"),
            tag("line", x1=across(0), x2=across(most), y1=y, y2=y, cls="grid"),
            tag("text", text, x=x, y=_SIDE + 24, text_anchor="middle"),
            tag("text", text, x=_MARGIN - 6, y=y, dy=4, text_anchor="end"),
        ]
    parts.append(tag("line", x1=across(0), y1=up(0), x2=across(most), y2=up(most), cls="diagonal"))
    for point in points:
        x = across(point.probability)
        said = f"predicted {point.probability:.4f}, came true {point.label:.4f}, {point.rows:,} rows"
        if point.interval is not None:
            parts.append(tag("line", x1=x, x2=x, y1=up(point.interval[0]), y2=up(point.interval[1]), cls="spread"))
        parts.append(tag("g", tag("title", said), tag("circle", cx=x, cy=up(point.label), r=3.5, cls="point")))
    parts.append(tag("text", "predicted", x=across(most / 2), y=_SIDE + 40, text_anchor="middle"))
    middle = f"translate(12 {up(most / 2)}) rotate(-90)"
    parts.append(tag("text", "came true", transform=middle, text_anchor="middle"))
    label = f"reliability diagram of {len(points)} bins"
    box = f"0 0 {size + 12} {size + 8}"
    return tag("svg", *parts, view_box=box, width=size + 12, height=size + 8, role="img", aria_label=label)


def _slices(slices: Sequence[SliceMetrics], intervals: Mapping[str, tuple[float, float]]) -> Html:
    rows, bad = [], []
    for one in slices:
        shown = [number(name, one.metrics[name]) if name in one.metrics else "" for name in SLICE_METRICS]
        look = signs(one, intervals)
        bad.append(bool(look))
        rows.append(
            (
                f"{one.column} = {one.value}",
                number("rows", one.metrics.get("rows", 0)),
                *shown,
                interval(one.intervals.get("calibration")),
                ", ".join(look),
            )
        )
    return _table(("slice", "rows", *SLICE_METRICS, "calibration, 95 %", "look at"), rows, bad)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], bad: Sequence[bool] = ()) -> Html:
    """`bad` marks rows."""
    listed = [
        tag("tr", *(tag("td", cell) for cell in row), cls="bad" if place < len(bad) and bad[place] else None)
        for place, row in enumerate(rows)
    ]
    top = tag("thead", tag("tr", *(tag("th", head, scope="col") for head in heads)))
    return tag("div", tag("table", top, tag("tbody", *listed)), cls="scroll")
