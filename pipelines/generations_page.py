"""Generations as one page of HTML that needs nothing else: no network, no script, no files beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipelines.generations_charts import change_bar, line_chart
from schemas.generations import Generation, Generations, MetricChange
from schemas.html import Html, document, joined, tag

_STYLE = """
:root { color-scheme: light dark; --paper:#fcfcfb; --ink:#1c2024; --soft:#5f6b76; --line:#e3e6e8; --points:#1d5fa8;
  --other:#8a6d1f; --good:#1d6b3a; --good-paper:#e6f4ea; --warn:#9a4a00; --warn-paper:#fff4e5; }
@media (prefers-color-scheme: dark) { :root { --paper:#14171a; --ink:#e6e9ec; --soft:#9aa6b1; --line:#2d343a;
  --points:#7db4f5; --other:#e0c069; --good:#8fd9a8; --good-paper:#17291d; --warn:#ffc37a; --warn-paper:#2d2416; } }
body { margin:0 auto; max-width:66rem; padding:1.5rem 1.25rem 4rem; background:var(--paper); color:var(--ink);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size:1.5rem; margin:0; overflow-wrap:anywhere; } h2 { font-size:1.15rem; margin:2.4rem 0 .6rem; }
h3 { font-size:.95rem; margin:1.2rem 0 .4rem; } .soft { color:var(--soft); } .small { font-size:.85rem; }
a { color:var(--points); } .pair { display:flex; flex-wrap:wrap; gap:1rem 2.5rem; align-items:flex-start; }
.scroll { overflow-x:auto; } table { border-collapse:collapse; font-variant-numeric:tabular-nums; font-size:.9rem; }
th, td { padding:.22rem .7rem; text-align:right; border-bottom:1px solid var(--line); vertical-align:top; }
th { color:var(--soft); font-weight:500; } th:first-child, td:first-child, .left { text-align:left; }
td { overflow-wrap:anywhere; } section { border-top:1px solid var(--line); margin-top:2rem; }
.mark { border-radius:.3rem; padding:.05rem .45rem; font-size:.85rem; font-weight:600; border:1px solid currentColor; }
.good { color:var(--good); background:var(--good-paper); } .bad { color:var(--warn); background:var(--warn-paper); }
svg { max-width:100%; height:auto; } svg text { fill:var(--soft); font-size:11px; } .grid { stroke:var(--line); }
.mine { stroke:var(--points); fill:none; stroke-width:2; } .theirs { stroke:var(--other); fill:none; stroke-width:2;
  stroke-dasharray:5 4; } .point { fill:var(--points); } .up { fill:var(--good); } .down { fill:var(--warn); }
.middle { stroke:var(--soft); }
"""
_READING = (
    "A turn takes in what was served since the last one, trains a candidate and holds it against the champion, on the "
    "same held-out rows. The gate decides; what it refuses stays on record and is not put into service.",
    "Popular items are the tenth of the catalogue with the most events in train. Amplification is their share of what "
    "was shown over their share of the log: above 1 a generation shows them more often than people took them, and the "
    "next one learns from that.",
    "Off-policy estimates say what a release would have earned on the log of another one, as far as that log shows "
    "what it would have shown.",
)


def page(found: Generations) -> str:
    """The whole page, the newest generation first; what comes from logs is escaped."""
    title = f"Generations of {found.wheel}"
    service = f"Generation {found.champion} is in service." if found.champion else "No release is in service yet."
    return document(
        title,
        _STYLE,
        tag(
            "main",
            tag("h1", title),
            tag("p", f"{service} As of {found.created_at}.", cls="soft small"),
            _trends(found.generations),
            _overview(found.generations),
            *(_generation(one) for one in reversed(found.generations)),
            tag("section", tag("h2", "How to read this"), *(tag("p", text, cls="small") for text in _READING)),
        ),
    )


def _trends(generations: Sequence[Generation]) -> Html | None:
    """A chart for the first metric of each model and for amplification, from two generations on."""
    charts = []
    ids = [one.turn.id for one in generations]
    for model in ("retriever", "ranker"):
        first = next((m.metric for one in generations for m in one.metrics if m.model == model), None)
        if first is not None:
            changes = [_of(one, model, first) for one in generations]
            mine = [change.candidate if change else None for change in changes]
            theirs = [change.champion if change else None for change in changes]
            label = f"{model}: {first} on each generation's held-out rows"
            charts.append(line_chart(label, ids, {"candidate": mine, "champion of then": theirs}))
    spread = [one.served.popularity if one.served else None for one in generations]
    amplified = [one.amplification if one else None for one in spread]
    explored = [one.served.explored_share if one.served else None for one in generations]
    charts.append(line_chart("popularity amplification of what was shown", ids, {"amplification": amplified}))
    charts.append(line_chart("share of shown items that chance put there", ids, {"explored": explored}))
    shown = [chart for chart in charts if chart is not None]
    return tag("div", *shown, cls="pair") if shown else None


def _overview(generations: Sequence[Generation]) -> Html:
    rows = []
    for one in reversed(generations):
        first = one.metrics[0] if one.metrics else None
        rows.append(
            (
                tag("a", one.turn.id, href=f"#generation-{one.turn.id}"),
                _outcome(one),
                tag("span", one.turn.started_at),
                _count(one.events),
                _signed(one.new_events),
                f"{first.metric} {first.candidate:.4f}" if first else "",
                _count(one.served.requests if one.served else None),
                f"{one.served.popularity.amplification:.2f}" if one.served and one.served.popularity else "",
            )
        )
    heads = ("generation", "outcome", "began", "events", "new", "first metric", "requests", "amplification")
    return joined([tag("h2", "All generations"), _table(heads, rows)])


def _generation(one: Generation) -> Html:
    turn = one.turn
    seconds = sum(step.seconds or 0.0 for step in turn.steps)
    said = f"began {turn.started_at}, {seconds:,.0f} s of work"
    return tag(
        "section",
        tag("h2", f"Generation {turn.id} ", _outcome(one), id=f"generation-{turn.id}"),
        tag("p", said, f", held against {turn.champion}" if turn.champion else "", cls="soft small"),
        tag("div", _came_in(one), _changed(one), cls="pair"),
        _served(one),
        _decided(one),
        _steps(one),
    )


def _came_in(one: Generation) -> Html:
    rows = [("events", _count(one.events)), ("more than the champion's", _signed(one.new_events))]
    if one.new_in_train is not None:
        rows += [("of these in train, not held out", _count(one.new_in_train))]
    rows += [("served", _count(one.served_events))]
    rows += [(f"{split} rows", _count(rows_)) for split, rows_ in one.splits.items()]
    for name, ledger in one.ledgers.items():
        rows.append((f"{name}: duplicates", _count(ledger.duplicates)))
        rows.append((f"{name}: quarantined", _count(ledger.quarantined)))
    if one.feedback is not None:
        rows += [(f"actions: {name}", _count(count)) for name, count in one.feedback.actions.parts().items() if count]
    rows += [
        (f"vocabulary {grown.name}", f"{grown.size:,}" + (f" ({grown.size - grown.before:+,})" if grown.before else ""))
        for grown in one.vocabularies
    ]
    return tag("div", tag("h3", "What came in"), _table(("", "rows"), rows))


def _changed(one: Generation) -> Html:
    rows: list[tuple[object, ...]] = [
        (
            f"{change.model}: {change.metric}",
            f"{change.candidate:.4f}",
            f"{change.champion:.4f}" if change.champion is not None else "",
            change_bar(change) if change.champion is not None else "",
            f"{change.popularity:.4f}" if change.popularity is not None else "",
        )
        for change in one.metrics
    ]
    table = (
        _table(("metric", "candidate", "champion", "change", "popularity"), rows) if rows else _none("Not evaluated.")
    )
    return tag("div", tag("h3", "What changed"), table, _drift(one), _skew(one), _off_policy(one))


def _drift(one: Generation) -> Html | None:
    if one.drift is None:
        return None
    text = f"Drift: {len(one.drift.drifted)} of {one.drift.columns} columns since the champion's snapshot"
    listed = [
        f"{column.column} ({column.measure.name} {column.measure.value:.3g}, limit {column.measure.threshold:.3g})"
        if column.measure is not None
        else column.column
        for column in one.drift.drifted
    ]
    return tag("p", f"{text}{': ' if listed else '.'}{', '.join(listed)}", cls="small")


def _skew(one: Generation) -> Html | None:
    if one.skew is None:
        return None
    text = (
        f"Skew: {one.skew.requests:,} requests replayed, {len(one.skew.skewed)} of {one.skew.features} features differ"
    )
    return tag("p", f"{text}{': ' if one.skew.skewed else '.'}{', '.join(one.skew.skewed)}", cls="small")


def _off_policy(one: Generation) -> Html | None:
    if one.off_policy is None:
        return None
    report = one.off_policy
    parts = [f"logged {report.logged.value:.4f}"]
    for name, policy in (("candidate", report.candidate), ("champion", report.champion)):
        for estimate in policy.estimates if policy is not None else ():
            low, high = estimate.interval
            parts.append(f"{name} by {estimate.estimator} {estimate.value:.4f} ({low:.4f} to {high:.4f})")
    return tag("p", f"Off-policy, {report.candidate.reward} per item shown: {'; '.join(parts)}.", cls="small")


def _served(one: Generation) -> Html | None:
    if one.served is None:
        return None
    found = one.served
    rows: list[tuple[object, ...]] = [
        ("requests", _count(found.requests)),
        ("items shown", _count(found.shown)),
        ("put there by chance", f"{found.explored_share:.1%}"),
        ("answered by popularity alone", _count(found.fallbacks)),
    ]
    rows += [
        (f"{name} actions", f"{count:,} ({count / found.shown:.2%} of shown)") for name, count in found.actions.items()
    ]
    if (spread := found.popularity) is not None:
        rows += [
            ("different items", f"{spread.items_shown:,} of {spread.items:,}"),
            ("popular items' share, shown / log", f"{spread.popular_share_shown:.1%} / {spread.popular_share_log:.1%}"),
            ("amplification", f"{spread.amplification:.2f}"),
            ("Gini, shown / log", f"{spread.gini_shown:.3f} / {spread.gini_log:.3f}"),
        ]
    return joined([tag("h3", "What it showed in service"), _table(("", ""), rows)])


def _decided(one: Generation) -> Html:
    if one.verdict is None:
        return joined([tag("h3", "What was decided"), _none("The gate has not been reached.")])
    rows = [
        (
            check.check,
            tag("span", check.verdict, cls=f"mark {'bad' if check.verdict == 'failed' else 'good'}"),
            " ".join(check.reasons),
        )
        for check in one.verdict.checks
    ]
    return joined([tag("h3", "What was decided, and why"), _table(("check", "verdict", "reasons"), rows, left=(1, 2))])


def _steps(one: Generation) -> Html:
    rows = [
        (
            step.name,
            "" if step.seconds is None else f"{step.seconds:.1f}",
            step.skipped or ("not done" if step.code is None else "" if step.code == 0 else f"exit code {step.code}"),
        )
        for step in one.turn.steps
    ]
    return tag("details", tag("summary", "Steps"), _table(("step", "seconds", "note"), rows, left=(2,)))


def _outcome(one: Generation) -> Html:
    words = "in service" if one.in_service else one.turn.outcome
    good = one.in_service or one.turn.outcome == "promoted"
    return tag("span", words, cls=f"mark {'good' if good else 'bad'}")


def _of(one: Generation, model: str, metric: str) -> MetricChange | None:
    return next((change for change in one.metrics if (change.model, change.metric) == (model, metric)), None)


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, left: Sequence[int] = ()) -> Html:
    listed = [
        tag("tr", *(tag("td", cell, cls="left" if place in left else None) for place, cell in enumerate(row)))
        for row in rows
    ]
    named = [tag("th", head, scope="col", cls="left" if place in left else None) for place, head in enumerate(heads)]
    top = tag("thead", tag("tr", *named)) if any(heads) else None
    return tag("div", tag("table", top, tag("tbody", *listed)), cls="scroll")


def _none(text: str) -> Html:
    return tag("p", text, cls="soft small")


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _signed(value: int | None) -> str:
    return "" if value is None else f"{value:+,}"
