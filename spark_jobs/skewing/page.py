"""The report of skew as one page of HTML, and its words."""

from __future__ import annotations

from schemas.drift import FeatureSkew, SkewReport
from schemas.html import Html, joined, tag
from spark_jobs.drifting.page import columns_table, left_out_list, legend, meanings, report_page, section
from spark_jobs.drifting.wording import counted
from spark_jobs.profiling.wording import integer, moment, number, percent

_HOW = (
    "Each request is run again: its user, its context and its time go through the batch transforms with the "
    "vocabularies and moments of the snapshot that the release was made of, and through the event store for what "
    "happened before it. A feature is skewed where more of its values differ than the share allowed, by more than the "
    "chance of the sample (at 95 %). What either side lacks of a request or an item differs.",
    "Whole numbers and lists must be equal; other numbers may differ by the tolerance. A served history may lag by "
    "what happened in the last moments before the request, which shows as a small share of histories that differ by "
    "their last items.",
)


def headline(report: SkewReport) -> str:
    of = f"{counted(len(report.features), 'feature')} of {counted(report.requests, 'request')}"
    if not report.skewed:
        worst = max(report.features, key=lambda feature: feature.share, default=None)
        most = (
            f": at most {percent(worst.share)} of values differ ({worst.feature})" if worst and worst.different else ""
        )
        return f"No skew in {of}{most}."
    worst = report.features[0]
    return (
        f"{len(report.skewed)} of {of} {'is' if len(report.skewed) == 1 else 'are'} skewed, {worst.feature} the most: "
        f"{percent(worst.share)} of its values differ, {percent(report.max_share)} may."
    )


def skew_page(report: SkewReport) -> str:
    facts = (
        ("release", report.generation),
        ("requests", f"{integer(report.requests)} replayed"),
        ("tolerance", f"{report.tolerance:g} of a number; of whole numbers none"),
        ("may differ", f"{percent(report.max_share)} of a feature's values"),
        ("made", report.created_at.replace("T", " ")),
    )
    sections = [
        tag("h1", "Skew between serving and batch"),
        tag("p", headline(report), cls="lead"),
        tag("dl", *(joined([tag("dt", name), tag("dd", value)]) for name, value in facts), cls="facts-list"),
        section("features", "Features, the worst first", _table(report)),
    ]
    if report.distributions:
        about = tag(
            "p", "Of features that differ: before is what the batch gives, now is what was served.", cls="soft small"
        )
        sections.append(section("distributions", "Distributions", about, legend(), columns_table(report.distributions)))
    if report.left_out:
        sections.append(section("left-out", "Not compared", left_out_list(report.left_out)))
    sections.append(
        section("reading", "How to read this", *(tag("p", text, cls="lead small") for text in _HOW), meanings())
    )
    footer = "Made by headrace skew. The same figures, for programs, are in skew.json beside this page."
    return report_page("Skew", [*sections, tag("footer", footer, cls="soft small")])


def _table(report: SkewReport) -> Html:
    heads = ("feature", "verdict", "compared", "different", "share", "largest difference", "examples")
    head = tag("tr", *(tag("th", name, scope="col", cls="text" if name == "examples" else None) for name in heads))
    rows = [_row(feature, feature.feature in report.skewed) for feature in report.features]
    caption = tag("caption", "How many of a feature's values differ between what was served and the batch features.")
    table = tag("table", caption, tag("thead", head), tag("tbody", *rows))
    return tag("div", table, cls="scroll", tabindex=0, role="group", aria_label="features")


def _row(feature: FeatureSkew, is_skewed: bool) -> Html:
    verdict = tag("span", "skewed" if is_skewed else "no skew", cls=f"verdict {'drifted' if is_skewed else 'ok'}")
    return tag(
        "tr",
        tag("th", feature.feature, scope="row"),
        tag("td", verdict),
        tag("td", integer(feature.compared)),
        tag("td", integer(feature.different)),
        tag("td", percent(feature.share)),
        tag("td", number(feature.largest)),
        tag("td", _examples(feature) if feature.examples else "–", cls="wrap"),
    )


def _examples(feature: FeatureSkew) -> Html:
    listed = [
        tag(
            "div",
            tag("div", f"request {one.request_id} of user {one.user_id}, {moment(one.time_ms)}", cls="soft"),
            tag("div", "served ", tag("code", one.served), ", batch ", tag("code", one.batch)),
            cls="sample",
        )
        for one in feature.examples
    ]
    return tag("details", tag("summary", counted(len(listed), "example")), *listed, cls="small")
