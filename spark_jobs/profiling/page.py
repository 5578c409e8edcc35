"""The profile as one page of HTML that needs nothing else: no network, no files beside it."""

from __future__ import annotations

import base64
import hashlib
import json

from schemas.html import Html, document, joined, tag
from schemas.profile import Profile, QuarantineRule, TableProfile
from spark_jobs.profiling.charts import bars_and_lines, line, stacked
from spark_jobs.profiling.column_card import column_card, column_id, legend
from spark_jobs.profiling.style import SCRIPT, STYLE
from spark_jobs.profiling.wording import day, integer, moment, number, size, span

_SECTIONS = {
    "overview": "Overview",
    "ledger": "Where the rows went",
    "time": "Over time",
    "columns": "Columns",
    "quarantine": "Refused rows",
    "lineage": "Lineage",
    "reading": "How to read this",
}

_HOW_TO_READ = (
    "Counts, shares, means, minima and maxima are exact. Quantiles come from a KLL sketch (rank within about half "
    "a percent), numbers of distinct values from HyperLogLog++ (within about 5 %).",
    "The first split is drawn as bars, the later ones as lines over them, in the same bins. The first and the last "
    "bar of a number hold its tails. A category shows null and unseen, where there are any, and its most frequent "
    "values; the table below it has the rest.",
    "Drift is the population stability index over ten ranges of equal share in the first split, or over the values "
    "and ranges of a category: below 0.1 little, above 0.25 a shift. It is a hint: beside it stands what two samples "
    "of one distribution would show at these sizes.",
    "How much of the label a column explains is the correlation ratio over the bars, less what chance would explain. "
    "It is approximate, for all values in one bar count as one. r is Pearson's correlation.",
    "Unseen are values that train does not hold, or too rarely: they share one row of the embedding table.",
)


def page(profile: Profile) -> str:
    """The whole page. Its policy lets no script run but the one in it, by hash, and nothing be fetched."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    sections = [
        _overview(profile),
        _ledger(profile),
        *filter(None, [_time(profile)]),
        _columns(profile),
        _quarantine(profile),
        _lineage(profile),
        _reading(profile),
    ]
    return document(
        f"Profile of {profile.id}",
        STYLE,
        tag("a", "Skip to the columns", href="#columns", cls="skip"),
        tag("div", _contents(profile), tag("main", *sections), cls="frame"),
        tag("script", Html(SCRIPT)),
        allowed=("img-src data:", f"script-src 'sha256-{digest}'"),
    )


def _contents(profile: Profile) -> Html:
    entries = []
    for key, title in _SECTIONS.items():
        if key == "time" and not any(table.time for table in profile.tables):
            continue
        inside = tag("div", *map(_links, profile.tables), cls="deep") if key == "columns" else None
        entries.append(tag("li", tag("a", title, href=f"#{key}"), inside))
    return tag("nav", tag("ul", *entries), cls="toc", aria_label="Contents")


def _links(table: TableProfile) -> Html:
    return joined(
        [
            tag("b", table.name),
            *(
                tag("a", column.name, href=f"#{column_id(table.name, column.name)}", title=column.meaning or None)
                for column in table.columns
            ),
        ]
    )


def _section(key: str, *content: object) -> Html:
    return tag("section", tag("h2", _SECTIONS[key]), *content, id=key)


def _overview(profile: Profile) -> Html:
    what = "Checked log" if profile.kind == "events" else "Snapshot"
    warnings = [finding for finding in profile.findings if finding.level == "warning"]
    notes = [finding for finding in profile.findings if finding.level == "note"]
    known = {(table.name, column.name) for table in profile.tables for column in table.columns}

    def told(table: str | None, column: str | None, text: str) -> Html:
        if table is None or column is None or (table, column) not in known:
            return joined(text)
        return tag("a", text, href=f"#{column_id(table, column)}")

    listed = [
        tag("li", tag("span", "Look", cls="tag"), told(finding.table, finding.column, finding.text))
        for finding in warnings
    ]
    also = [tag("li", told(finding.table, finding.column, finding.text)) for finding in notes]
    return tag(
        "section",
        tag("h1", f"Profile of {profile.id}"),
        tag("p", profile.contract_meaning, cls="lead"),
        tag(
            "p",
            f"{what} by the contract {profile.contract}, published {_when(profile.published_at)}, "
            f"profiled {_when(profile.created_at)}.",
            cls="soft small",
        ),
        tag("div", *_tiles(profile), cls="tiles"),
        tag("ul", *listed, cls="findings") if listed else tag("p", "Nothing to warn of.", cls="soft"),
        tag("details", tag("summary", f"{len(also)} more to know"), tag("ul", *also), cls="notes") if also else None,
        id="overview",
    )


def _tiles(profile: Profile) -> list[Html]:
    main = profile.tables[0] if profile.tables else None
    shown: list[tuple[str, str]] = []
    if main is not None:
        shown.append((integer(sum(main.groups.values())), "rows"))
        shown += [(integer(rows), f"rows of {group}") for group, rows in main.groups.items() if len(main.groups) > 1]
        shown.append((integer(sum(len(table.columns) for table in profile.tables)), "columns"))
        label = next((column for column in main.columns if column.name == main.label), None)
        if label is not None and (mean := next(iter(label.groups.values())).mean) is not None:
            where = f" in {next(iter(label.groups))}" if len(label.groups) > 1 else ""
            shown.append((number(mean), f"mean {label.name}{where}"))
        times = [
            figures for column in main.columns if column.role == "event_time" for figures in column.groups.values()
        ]
        lows = [figures.min for figures in times if figures.min is not None]
        highs = [figures.max for figures in times if figures.max is not None]
        if lows:
            shown.append((f"{day(min(lows))} to {day(max(highs))}", "first and last event"))
    shown.append(
        (size(sum(part.bytes for part in profile.parts)), f"in {sum(part.files for part in profile.parts):,} files")
    )
    return [tag("div", tag("b", value), tag("span", what), cls="tile") for value, what in shown]


def _ledger(profile: Profile) -> Html:
    flows = []
    for name, table in profile.ledger.tables.items():
        parts = [
            ("", table.accepted, "accepted"),
            ("twice", table.duplicates, "duplicates"),
            ("bad", table.quarantined, "quarantined"),
        ]
        head = f"{integer(table.rows)} rows read"
        skipped = table.headers + table.blanks
        more = f" (beside {integer(skipped)} header or blank {'line' if skipped == 1 else 'lines'})" if skipped else ""
        flows.append(_flow(name, head + more, parts))
    splits = profile.ledger.splits
    if splits is not None:
        parts = [("" if name == "past" else f"g-{name}", count, name) for name, count in splits.parts().items()]
        flows.append(_flow("events", f"{integer(splits.accepted)} accepted are split", parts))
    return _section("ledger", tag("div", *flows, cls="flow"))


def _flow(name: str, head: str, parts: list[tuple[str, int, str]]) -> Html:
    whole = sum(count for _, count, _ in parts) or 1
    bar = [tag("span", cls=cls or None, style=f"flex:{count / whole:.4f}") for cls, count, _ in parts if count]
    told = " + ".join(f"{integer(count)} {what}" for _, count, what in parts)
    line_of = [tag("span", name, cls="name"), f": {head} = {told}"]
    return tag("div", tag("div", *line_of), tag("div", *bar, cls="bar", aria_hidden="true"))


def _time(profile: Profile) -> Html | None:
    found = [_time_of(table) for table in profile.tables if table.time is not None]
    return _section("time", *found) if found else None


def _time_of(table: TableProfile) -> Html:
    time = table.time
    assert time is not None
    groups, width = list(time.counts), span(time.bin_ms)
    bins = len(next(iter(time.counts.values())))
    last = time.start_ms + (bins - 1) * time.bin_ms
    shown = day if time.bin_ms >= 86_400_000 else moment
    axis = tag("div", tag("span", shown(time.start_ms)), tag("span", shown(last)), cls="axis")
    most = max(sum(time.counts[group][place] for group in groups) for place in range(bins))
    rows = stacked(
        [(group, time.counts[group]) for group in groups], title=f"{table.name} by {width}, at most {most:,}"
    )
    over = [tag("div", f"Rows by {width}, at most {integer(most)}", cls="chart-title"), rows, axis]
    hours = [tag("div", "Rows by hour of the day, UTC", cls="chart-title")]
    hours.append(
        bars_and_lines(
            [("all", [float(count) for count in time.hour_counts])],
            title="rows by hour of the day, UTC",
            cls="chart wide",
        )
    )
    hour_axis = tag("div", *(tag("span", text) for text in ("0", "6", "12", "18", "24")), cls="axis")
    hours.append(hour_axis)
    if table.label is not None:
        enough = {
            group: [
                mean if count >= 5 else None
                for mean, count in zip(time.mean_labels[group], time.counts[group], strict=True)
            ]
            for group in groups
        }
        over += _means([(group, enough[group]) for group in groups], f"Mean {table.label} by {width}", axis)
        hours += _means([("all", list(time.hour_mean_labels))], f"Mean {table.label} by hour", hour_axis)
    return tag(
        "div",
        legend(groups) if len(groups) > 1 else None,
        tag("div", tag("div", *over), tag("div", *hours), cls="pair"),
    )


def _means(series: list[tuple[str, list[float | None]]], title: str, axis: Html) -> list[Html]:
    means = [mean for _, values in series for mean in values if mean is not None]
    if not means:
        return []
    low, high = min(means), max(means)
    title = f"{title}, {number(low)} to {number(high)}"
    return [tag("div", title, cls="chart-title"), line(series, low=low, high=high, title=title, cls="chart low"), axis]


def _columns(profile: Profile) -> Html:
    tools = tag(
        "div",
        tag(
            "input",
            id="find",
            type="search",
            placeholder="Filter by name, meaning, type …",
            aria_label="Filter columns",
        ),
        tag("button", "Open all", id="all", type="button"),
        tag("span", "", id="count", cls="soft small", aria_live="polite"),
        cls="tools",
        hidden=True,
    )
    tables = []
    for table in profile.tables:
        rows = " + ".join(f"{integer(count)} {group}" for group, count in table.groups.items() if len(table.groups) > 1)
        head = f"{table.name}: {rows or integer(sum(table.groups.values())) + ' rows'}"
        shown = legend(list(table.groups), lines=True) if len(table.groups) > 1 else None
        tables += [
            tag("h3", head),
            shown,
            tag("div", *(column_card(table, column) for column in table.columns), cls="columns"),
        ]
    return _section("columns", tools, *tables)


def _quarantine(profile: Profile) -> Html:
    if not profile.quarantine:
        return _section("quarantine", tag("p", "None: every row of the log kept to the contract.", cls="soft"))
    remark = profile.quarantine_remark
    return _section(
        "quarantine",
        tag("p", f"Without samples: {remark}", cls="soft small") if remark else None,
        *(_refused(rule) for rule in profile.quarantine),
    )


def _refused(rule: QuarantineRule) -> Html:
    samples = [
        tag("div", tag("div", sample.line, cls="mono"), tag("div", sample.reason, cls="soft small"), cls="sample")
        for sample in rule.samples
    ]
    return tag(
        "div", tag("h3", f"{rule.table}: {rule.rule}, {rule.rows:,} {'row' if rule.rows == 1 else 'rows'}"), *samples
    )


def _lineage(profile: Profile) -> Html:
    facts: list[tuple[str, object]] = [
        ("folder", tag("code", profile.url)),
        ("written by", f"Headrace {profile.published_by}, {_when(profile.published_at)}"),
        ("manifest", tag("code", profile.digest)),
    ]
    facts += [
        ("made from", joined([tag("code", parent.url), f" (manifest {parent.digest[:16]}…)"]))
        for parent in profile.parents
    ]
    facts += [("settings", tag("code", f"{key} = {_setting(value)}")) for key, value in profile.config.items()]
    heads = ("part", "files", "rows", "row groups", "rows a group, median", "bytes")
    rows = [
        tag(
            "tr",
            *(
                tag("td", cell)
                for cell in (
                    part.part,
                    integer(part.files),
                    integer(part.rows),
                    integer(part.row_groups),
                    integer(part.median_row_group_rows),
                    size(part.bytes),
                )
            ),
        )
        for part in profile.parts
    ]
    listed = [joined([tag("dt", name), tag("dd", value)]) for name, value in facts]
    table = tag(
        "table", tag("thead", tag("tr", *(tag("th", head, scope="col") for head in heads))), tag("tbody", *rows)
    )
    return _section(
        "lineage",
        tag("dl", *listed, cls="facts-list"),
        tag("div", table, cls="scroll", tabindex=0, role="group", aria_label="files"),
    )


def _setting(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else text[:299] + "…"


def _reading(profile: Profile) -> Html:
    made = (
        f"Made by headrace profile {profile.code_version}. "
        "The same figures, for programs, are in profile.json beside this page."
    )
    return joined(
        [
            _section("reading", *(tag("p", text, cls="lead small") for text in _HOW_TO_READ)),
            tag("footer", made, cls="soft small"),
        ]
    )


def _when(iso: str) -> str:
    return iso.replace("T", " ")[:16] + (" UTC" if iso.endswith("+00:00") else "")
