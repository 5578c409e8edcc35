"""Has the data changed since the champion learned from it, and did serving see what training sees?"""

from __future__ import annotations

from pathlib import Path

from pipelines.gating.evidence import Evidence, Finding
from schemas.drift import DriftReport, SkewReport


def drift(evidence: Evidence) -> Finding:
    """The share of columns that have drifted, and those that never may."""
    if evidence.is_first:
        return Finding(passed=True, reasons=("The first generation has no earlier snapshot to have drifted from.",))
    rules = evidence.rules
    report = evidence.report(DriftReport, "drift/drift.json", made_by="headrace drift")
    files = (evidence.candidate / "drift" / "drift.json",)
    compared = {column.column for column in report.columns if column.verdict != "not_enough_rows"}
    reason = of_others(report, evidence)
    if reason is None and not compared:
        reason = (
            f"The report compares no column; {len(report.columns)} had too few rows to say: run `headrace drift` on "
            "the two snapshots again, or wait for more events."
        )
    if reason is not None:
        return Finding(passed=False, reasons=(reason,), files=files)
    bad, drifted, known = [], report.drifted, {column.column for column in report.columns}
    share = len(drifted) / len(compared)
    named = f": {', '.join(drifted[:5])}{', ...' if len(drifted) > 5 else ''}" if drifted else ""
    said = f"{len(drifted)} of {len(compared)} columns have drifted ({share:.0%}){named}"
    if share > rules.max_drifted:
        bad.append(
            f"{said}; {rules.max_drifted:.0%} may: see drift.html whether the log or the world has changed, and raise "
            "max_drifted only for the latter."
        )
    for column in rules.never_drift:
        if column not in known:
            bad.append(f"never_drift names {column}, which the report does not compare: correct the name.")
        elif column not in compared:
            bad.append(
                f"never_drift names {column}, which had too few rows to say: wait for more, or take the name out."
            )
        elif column in drifted:
            bad.append(f"{column} has drifted and is one that never may (never_drift).")
    good = [] if share > rules.max_drifted else [f"{said}."]
    if few := len(known - compared):
        good.append(f"{few} columns had too few rows to say, and count as neither.")
    return Finding(passed=not bad, reasons=(*bad, *good), files=files)


def of_others(report: DriftReport, evidence: Evidence) -> str | None:
    """What is wrong with a report of other snapshots than the champion's and the candidate's."""
    assert evidence.champion is not None, "asked for only where there is one"
    sides = (("reference", report.reference, evidence.champion), ("current", report.current, evidence.candidate))
    for name, found, folder in sides:
        if Path(found.partition(", from ")[0]).resolve() != (folder / "snapshot").resolve():
            return (
                f"The report's {name} is {found}, not {folder / 'snapshot'}: run `headrace drift` on the snapshots of "
                "champion and candidate."
            )
    return None


def skew(evidence: Evidence) -> Finding:
    """The share of features that served requests and the batch features do not agree on."""
    if evidence.is_first:
        return Finding(passed=True, reasons=("Before the first generation nothing was served that could be replayed.",))
    rules = evidence.rules
    report = evidence.report(SkewReport, "skew/skew.json", made_by="headrace skew")
    files = (evidence.candidate / "skew" / "skew.json",)
    in_service = evidence.release_of_champion().id
    compared = [feature for feature in report.features if feature.compared]
    reason = None
    if report.generation != in_service:
        reason = (
            f"The report is of {report.generation}, and {in_service} is the champion: run `headrace skew` on its "
            "release."
        )
    elif not report.requests or not compared:
        reason = (
            f"No value of any feature was compared on {report.requests:,} replayed requests: land the logs of the "
            "release in service and run `headrace skew` again."
        )
    if reason is not None:
        return Finding(passed=False, reasons=(reason,), files=files)
    share = len(report.skewed) / len(compared)
    said = f"{len(report.skewed)} of {len(compared)} features are skewed on {report.requests:,} replayed requests"
    if few := len(report.features) - len(compared):
        said = f"{said}, {few} had no value to compare"
    if share <= rules.max_skewed:
        return Finding(passed=True, reasons=(f"{said}.",), files=files)
    worst = ", ".join(
        f"{feature.feature} ({feature.different:,} of {feature.compared:,})"
        for feature in report.features
        if feature.feature in report.skewed[:5]
    )
    reason = f"{said} ({share:.0%}), {rules.max_skewed:.0%} may be: {worst}; skew.html shows examples of each."
    return Finding(passed=False, reasons=(reason,), files=files)
