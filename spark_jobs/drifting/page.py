"""The report of drift as one page of HTML that needs nothing else, and the parts that the page of skew shares."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.drift import ColumnDrift, DriftReport, Measure
from schemas.html import Html, document, joined, tag
from spark_jobs.drifting.wording import MEANINGS, counted, headline, named, told
from spark_jobs.profiling.charts import bars_and_lines
from spark_jobs.profiling.style import STYLE
from spark_jobs.profiling.wording import integer, number, percent

_VERDICTS = {"drifted": "drifted", "ok": "no drift", "not_enough_rows": "too few rows"}
_STYLE = """
.plain { display:block; max-width:66rem; }
.verdict { font-weight:600; } .verdict.drifted { color:var(--bad); } .verdict.ok { color:var(--test); }
td svg.chart { width:11rem; } td.wrap { white-space:normal; text-align:left; min-width:11rem; overflow-wrap:anywhere; }
caption { text-align:left; color:var(--soft); font-size:.84rem; padding-bottom:.3rem; }
tbody th { text-align:left; color:var(--ink); font-weight:600; overflow-wrap:anywhere; vertical-align:top; }
"""


def drift_page(report: DriftReport) -> str:
    sections = [
        tag("h1", "Drift"),
        tag("p", headline(report), cls="lead"),
        tag("dl", *_facts(report), cls="facts-list"),
        section("columns", "Columns, the worst first", legend(), columns_table(report.columns)),
    ]
    if report.left_out:
        sections.append(section("left-out", "Not compared", left_out_list(report.left_out)))
    sections.append(section("reading", "How to read this", meanings()))
    footer = "Made by headrace drift. The same figures, for programs, are in drift.json beside this page."
    return report_page("Drift", [*sections, tag("footer", footer, cls="soft small")])


def report_page(title: str, content: Sequence[Html]) -> str:
    return document(title, STYLE + _STYLE, tag("main", *content, cls="frame plain"), allowed=("img-src data:",))


def section(key: str, title: str, *content: object) -> Html:
    return tag("section", tag("h2", title), *content, id=key)


def columns_table(columns: Sequence[ColumnDrift]) -> Html:
    heads = ("column", "verdict", "before and now", "what was found", "new and vanished values")
    head = tag(
        "tr", *(tag("th", name, scope="col", cls=None if place == 0 else "text") for place, name in enumerate(heads))
    )
    caption = tag("caption", "Each column with its verdict, the shares of its bins on both sides, and the measures.")
    table = tag("table", caption, tag("thead", head), tag("tbody", *map(_row, columns)))
    return tag("div", table, cls="scroll", tabindex=0, role="group", aria_label="columns")


def _row(column: ColumnDrift) -> Html:
    about = " · ".join((column.of, column.kind))
    rows = column.figures.get("rows", (0.0, 0.0))
    what = "elements" if column.kind == "list" else "rows"
    size = f"{integer(rows[0])} and {integer(rows[1])} {what}"
    return tag(
        "tr",
        tag("th", column.column, tag("div", about, cls="soft small"), tag("div", size, cls="soft small"), scope="row"),
        tag("td", tag("span", _VERDICTS[column.verdict], cls=f"verdict {column.verdict}"), cls="text"),
        tag("td", *_picture(column), cls="text"),
        tag("td", *_measures(column), cls="wrap"),
        tag("td", *_news(column), cls="wrap"),
    )


def _picture(column: ColumnDrift) -> list[Html]:
    if not column.bins:
        return []
    shares = [("train", [one.reference for one in column.bins]), ("valid", [one.current for one in column.bins])]
    grown = max(column.bins, key=lambda one: abs(one.current - one.reference))
    change = f"{grown.name}: {percent(grown.reference)} before, {percent(grown.current)} now"
    title = f"{column.column}: shares of {len(column.bins)} bins before and now; most changed {change}"
    ends = [column.bins[0].name, column.bins[-1].name] if len(column.bins) > 1 else [column.bins[0].name]
    axis = tag("div", *(tag("span", end, title=end) for end in ends), cls="axis")
    return [bars_and_lines(shares, title=title), axis, tag("div", f"most changed: {change}", cls="soft small")]


def _measures(column: ColumnDrift) -> list[Html]:
    if not column.measures:
        return [tag("span", "–", cls="soft")]
    lines = [tag("div", tag("b", told(column)))] if column.verdict == "drifted" else []
    lines += [tag("div", _measure(measure), cls="small") for measure in column.measures]
    if "mean" in column.figures:
        before, now = column.figures["mean"]
        lines.append(tag("div", f"mean {number(before)} before, {number(now)} now", cls="small"))
    if any(column.figures.get("null_share", ())):
        before, now = column.figures["null_share"]
        lines.append(tag("div", f"null {percent(before)} before, {percent(now)} now", cls="small"))
    lines.append(tag("div", f"design effect {column.design_effect:.1f}", cls="soft small"))
    return lines


def _measure(measure: Measure) -> str:
    shown = percent if measure.name.endswith("share") else number
    text = f"{named(measure.name)} {shown(measure.value)}"
    return text if measure.threshold is None else f"{text} (asked for {shown(measure.threshold)})"


def _news(column: ColumnDrift) -> list[Html]:
    lines = []
    for what, values, count in (
        ("new", column.new_values, column.num_new),
        ("vanished", column.vanished_values, column.num_vanished),
    ):
        if count:
            more = f" and {integer(count - len(values))} more" if count > len(values) else ""
            lines.append(tag("div", tag("b", f"{integer(count)} {what}: "), ", ".join(values), more, cls="small"))
    return lines


def legend() -> Html:
    return tag("div", tag("span", tag("i"), "before"), tag("span", tag("i", cls="thin g-valid"), "now"), cls="legend")


def meanings() -> Html:
    listed = [joined([tag("dt", name), tag("dd", text)]) for name, text in MEANINGS]
    return tag("dl", *listed, cls="facts-list")


def left_out_list(left_out: dict[str, str]) -> Html:
    return tag("ul", *(tag("li", tag("code", name), f": {why}") for name, why in sorted(left_out.items())))


def _facts(report: DriftReport) -> list[Html]:
    facts = (
        ("reference", f"{report.reference}, {integer(report.reference_rows)} rows"),
        ("current", f"{report.current}, {integer(report.current_rows)} rows"),
        ("promise", f"a report on unshifted rows names any column in at most {percent(report.false_alarms)} of cases"),
        ("smallest effect", f"stability index {number(report.min_effect)}"),
        ("columns", f"{counted(len(report.columns), 'column')}, {len(report.drifted)} drifted"),
        ("made", report.created_at.replace("T", " ")),
    )
    return [joined([tag("dt", name), tag("dd", value)]) for name, value in facts]
