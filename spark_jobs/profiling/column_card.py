"""One column on the page: a line with its shape and its telling facts, and what opens below it."""

from __future__ import annotations

from collections.abc import Callable

from schemas.html import Html, joined, tag
from schemas.profile import ColumnProfile, GroupFigures, TableProfile
from spark_jobs.profiling.charts import bars_and_lines, line
from spark_jobs.profiling.findings import MISSING, PSI_CHANGE, UNSEEN, is_constant, is_ordinary
from spark_jobs.profiling.wording import day, integer, moment, number, percent

Format = Callable[[float | None], str]
_PLAIN_SCALING = {"kind", "name", "source", "owner", "low", "high", "log1p", "mean", "std"}
_SHOWN_DEFINITION = 12


def column_id(table: str, column: str) -> str:
    return f"{table}-{column}"


def column_card(table: TableProfile, column: ColumnProfile) -> Html:
    """A <details> whose summary can be read alone."""
    words = " ".join((table.name, column.name, column.meaning, column.kind, column.type, column.source or "")).lower()
    summary = tag(
        "summary",
        tag("div", tag("div", column.name, cls="name"), tag("div", column.meaning, cls="about")),
        tag("div", _chart(column, "chart"), _axis(column)),
        tag("div", *_facts(table, column), cls="facts"),
    )
    return tag(
        "details",
        summary,
        tag("div", *_body(table, column), cls="body"),
        cls="column",
        id=column_id(table.name, column.name),
        data_words=words,
    )


def _facts(table: TableProfile, column: ColumnProfile) -> list[Html]:
    """What a reader looks for first, the worrying in bold."""
    groups = list(column.groups)
    if not groups:
        return []
    first, last = groups[0], groups[-1]
    figures = column.groups[first]
    facts: list[tuple[str, bool]] = []
    if is_constant(column, first):
        facts.append(("constant", True))
    elif figures.distinct_about is not None:
        facts.append((f"about {integer(figures.distinct_about)} values", False))
    if column.kind == "category" and (frequent := _share_of_values(column, first)) is not None:
        facts.append((f"the {frequent[0]} most frequent hold {percent(frequent[1])}", False))
    missing = max(column.missing_share(group) for group in groups)
    if missing:
        facts.append((f"{percent(missing)} null", missing >= MISSING))
    unseen = column.unseen_share(last)
    if unseen:
        facts.append((f"{percent(unseen)} unseen" + (f" in {last}" if len(groups) > 1 else ""), unseen >= UNSEEN))
    if column.lengths is not None and (length := column.lengths.groups[first].mean) is not None:
        most = f" of {column.padded_length}" if column.padded_length else ""
        facts.append((f"lists of {number(length)}{most} on average", False))
    if column.drift and column.name != table.label:
        worst = max(column.drift, key=lambda drift: drift.psi)
        if worst.psi > worst.by_chance * 3 and worst.psi > 0.02 and column.role != "event_time":
            hot = worst.psi > PSI_CHANGE and is_ordinary(column)
            facts.append((f"drift {worst.psi:.2f} ({worst.before} to {worst.after})", hot))
    is_measured = column.kind in ("number", "category") and column.name != table.label
    if figures.label_correlation_ratio is not None and is_measured:
        explained = figures.label_correlation_ratio
        facts.append((f"explains {percent(explained)} of {table.label}", False))
    return [tag("span", text, cls="hot" if hot else None) for text, hot in facts]


def _share_of_values(column: ColumnProfile, group: str) -> tuple[int, float] | None:
    """How many values are named and the share they hold; None where nothing is left beside them."""
    named = [place for place, slot in enumerate(column.slots) if slot.kind == "value"]
    figures = column.groups[group]
    has_rest = any(slot.kind in ("range", "rest") for slot in column.slots)
    return (len(named), sum(figures.share(place) for place in named)) if has_rest else None


def _body(table: TableProfile, column: ColumnProfile) -> list[Html]:
    parts = [_origin(column)]
    if column.kind in ("number", "category"):
        if column.is_list:
            parts.append(
                tag("p", "Of up to 8 elements of each row's list, evenly drawn; padding left out.", cls="soft small")
            )
        if len(column.groups) > 1:
            parts.append(legend(list(column.groups), lines=True))
        parts += [tag("div", "Share of rows", cls="chart-title"), _chart(column, "chart wide"), _axis(column)]
        if column.kind == "number" and column.name != table.label:
            parts += _label_by_slot(table, column)
    parts.append(_figures_table(column))
    if column.slots and (column.kind == "category" or all(slot.kind == "value" for slot in column.slots)):
        parts.append(_values_table(table, column))
    if column.drift:
        told = "; ".join(
            f"{drift.before} to {drift.after} {drift.psi:.3f} (by chance {drift.by_chance:.3f})"
            for drift in column.drift
        )
        parts.append(tag("p", f"Drift, population stability index: {told}.", cls="soft small"))
    if column.lengths is not None:
        parts += [
            tag("h3", "Lengths of the lists, without padding"),
            _chart(column.lengths, "chart low"),
            _axis(column.lengths),
            _figures_table(column.lengths),
        ]
    return parts


def _origin(column: ColumnProfile) -> Html:
    facts = [tag("code", column.type)]
    if column.source is not None:
        facts += [joined([" from ", tag("code", f"{column.owner or 'log'}.{column.source}")])]
    if column.role is not None:
        facts.append(joined([", role ", column.role]))
    if column.vocabulary_size is not None:
        facts.append(joined([f", vocabulary of {integer(column.vocabulary_size)} with the reserved indices"]))
        if column.dropped_values:
            facts.append(joined([f" ({integer(column.dropped_values)} rare values left out, encoded as unseen)"]))
    unsaid = ("name", "source", "owner", "vocabulary")
    told = {
        key: value
        for key, value in column.definition.items()
        if key not in unsaid and value not in (None, False, (), [])
    }
    if told:
        shown = ", ".join(
            f"{key} {number(value) if isinstance(value, float) else str(value)[:80]}"
            for key, value in list(told.items())[:_SHOWN_DEFINITION]
        )
        facts.append(joined(["; feature: ", shown]))
    if _scaling(column) is not None:
        facts.append(joined(["; figures below are scaled back to the log's units, null counted as the mean"]))
    return tag("p", *facts, ".", cls="soft small")


def _chart(column: ColumnProfile, cls: str) -> Html:
    groups = [group for group, figures in column.groups.items() if sum(figures.counts)]
    if column.kind not in ("number", "category") or not groups or len(column.slots) < 2:
        return tag("span", _unshown(column), cls="soft small")
    shown = _bars(column)
    series = [(group, [column.groups[group].share(place) for place in shown]) for group in groups]
    first = column.groups[groups[0]]
    top = max(shown, key=lambda place: first.counts[place])
    title = f"{column.name}: share of rows by value; most often {column.slots[top].text}, {percent(first.share(top))}"
    return bars_and_lines(series, title=title, cls=cls)


def _bars(column: ColumnProfile) -> list[int]:
    """The slots worth a bar: no padding, null and unseen where there are any, and of ranks the first alone.

    A range of ranks holds so many values that its bar would dwarf those of the frequent ones.
    """
    kept = []
    for place, slot in enumerate(column.slots):
        occurs = any(figures.counts[place] for figures in column.groups.values())
        is_tail = column.kind == "category" and slot.kind in ("range", "rest")
        if slot.kind != "padding" and not is_tail and (occurs or slot.kind in ("value", "range")):
            kept.append(place)
    return kept


def _unshown(column: ColumnProfile) -> str:
    if column.kind == "identifier":
        return "identifier"
    return "one value" if column.kind in ("number", "category") else ""


def _axis(column: ColumnProfile) -> Html:
    if column.kind not in ("number", "category") or len(column.slots) < 2:
        return Html("")
    slots = [column.slots[place] for place in _bars(column)]
    if column.kind == "category":
        values = [slot.text for slot in slots if slot.kind == "value"]
        reserved = "".join(f"{slot.kind} · " for slot in slots if slot.kind != "value")
        ends = [f"{reserved}{values[0]}" if values else reserved.strip(" ·"), values[-1] if len(values) > 1 else ""]
    else:
        shown = _format(column) if column.role not in ("event_time", "valid_from") else day
        marks = [slot.low if slot.kind == "value" else slot.high for slot in slots]
        ends = [
            shown(marks[0]) if slots[0].kind == "value" else f"below {shown(marks[0])}",
            shown(slots[-1].low) if slots[-1].kind == "value" else f"from {shown(slots[-1].low)}",
        ]
    return tag("div", *(tag("span", end, title=end) for end in ends), cls="axis")


def _figures_table(column: ColumnProfile) -> Html:
    shown = _format(column)
    with_numbers = any(figures.mean is not None for figures in column.groups.values())
    with_label = column.kind in ("number", "category") and any(
        figures.label_correlation_ratio is not None for figures in column.groups.values()
    )
    heads: list[tuple[str, Callable[[str, GroupFigures], str]]] = [
        ("elements" if column.is_list else "rows", lambda g, f: integer(f.values)),
        ("null", lambda g, f: percent(column.missing_share(g))),
    ]
    if column.vocabulary_size is not None:
        heads.append(("unseen", lambda g, f: percent(column.unseen_share(g))))
    if any(figures.not_finite for figures in column.groups.values()):
        heads.append(("not finite", lambda g, f: integer(f.not_finite)))
    if any(figures.distinct_about is not None for figures in column.groups.values()):
        heads.append(("distinct, about", lambda g, f: "–" if f.distinct_about is None else integer(f.distinct_about)))
    if with_numbers:
        heads += [
            ("min", lambda g, f: shown(f.min)),
            *[_quantile(q, shown) for q in ("0.05", "0.25", "0.5", "0.75", "0.95")],
        ]
        heads.append(("max", lambda g, f: shown(f.max)))
        heads.append(("mean", lambda g, f: shown(f.mean)))
        heads.append(("std", lambda g, f: number(f.std and f.std * (_scaling(column) or (0, 1))[1])))
        if any(figures.label_pearson is not None for figures in column.groups.values()):
            heads.append(("r with label", lambda g, f: "–" if f.label_pearson is None else f"{f.label_pearson:+.3f}"))
    if with_label:
        heads.append(("explains of label, about", lambda g, f: percent(f.label_correlation_ratio)))
    head = tag("tr", tag("th", ""), *(tag("th", name, scope="col") for name, _ in heads))
    rows = [
        tag("tr", tag("td", group), *(tag("td", cell(group, figures)) for _, cell in heads))
        for group, figures in column.groups.items()
    ]
    return _scrolled(tag("table", tag("thead", head), tag("tbody", *rows)))


def _quantile(q: str, shown: Format) -> tuple[str, Callable[[str, GroupFigures], str]]:
    name = "median" if q == "0.5" else f"{float(q) * 100:.0f} %"
    return name, lambda group, figures: shown(figures.quantiles.get(q))


def _values_table(table: TableProfile, column: ColumnProfile) -> Html:
    groups = list(column.groups)
    labelled = any(mean is not None for mean in column.groups[groups[0]].mean_labels) and column.name != table.label
    heads = [tag("th", "value", cls="text", scope="col"), tag("th", "rows", scope="col")]
    heads += [tag("th", "share" if len(groups) == 1 else f"share of {group}", scope="col") for group in groups]
    heads += [
        tag("th", f"mean {table.label}" + (f", {group}" if len(groups) > 1 else ""), scope="col")
        for group in groups
        if labelled
    ]
    shown, rows = _format(column), []
    for place, slot in enumerate(column.slots):
        counts = [column.groups[group].counts[place] for group in groups]
        if not any(counts) and slot.kind != "unseen":
            continue
        text = shown(slot.low) if column.kind == "number" else slot.text
        cells = [tag("td", text, cls="text"), tag("td", integer(counts[0]))]
        for group in groups:
            share = column.groups[group].share(place)
            cells.append(tag("td", percent(share), tag("i", style=f"width:{share:.1%}"), cls="share"))
        for group in groups if labelled else ():
            cells.append(tag("td", number(column.groups[group].mean_labels[place])))
        rows.append(tag("tr", *cells, cls=None if slot.kind == "value" else "reserved"))
    return _scrolled(tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows)))


def _label_by_slot(table: TableProfile, column: ColumnProfile) -> list[Html]:
    series = [(group, figures.mean_labels) for group, figures in column.groups.items()]
    means = [mean for _, values in series for mean in values if mean is not None]
    if len(means) < 2:
        return []
    low, high = min(means), max(means)
    title = f"mean {table.label} by value of {column.name}: {number(low)} to {number(high)}"
    return [
        tag("div", f"Mean {table.label} over the same values: {number(low)} to {number(high)}", cls="chart-title"),
        line(series, low=low, high=high, title=title, cls="chart low"),
        _axis(column),
    ]


def legend(groups: list[str], *, lines: bool = False) -> Html:
    marks = [
        tag("span", tag("i", cls=f"g-{group}" + (" thin" if lines and place else "")), group)
        for place, group in enumerate(groups)
    ]
    return tag("div", *marks, cls="legend")


def _scrolled(table: Html) -> Html:
    return tag("div", table, cls="scroll", tabindex=0, role="group", aria_label="table")


def _scaling(column: ColumnProfile) -> tuple[float, float] | None:
    """(mean, std) of a feature that is (value - mean) / std, clipped perhaps; None for any other."""
    told = column.definition
    if told.get("kind") != "number" or told.get("log1p") or not set(told) <= _PLAIN_SCALING or column.kind != "number":
        return None
    return float(told["mean"]), float(told["std"])


def _format(column: ColumnProfile) -> Format:
    if column.role in ("event_time", "valid_from"):
        return moment
    scaling = _scaling(column)
    if scaling is None:
        return number
    mean, std = scaling
    # float32 leaves 29.9999; seven digits are what it holds.
    return lambda value: number(None if value is None else float(f"{value * std + mean:.5g}"))
