"""The contract's checks over what one run built: each rule's count beside its threshold, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from schemas.contract import Table
from schemas.errors import UserError
from schemas.event_store import CheckResult, DayRows

_HOUR_MS = 3_600_000
Sample = Callable[[str], str]
"""A row that breaks a rule, as text."""


def rule_checks(
    name: str, table: Table, built: DayRows, *, max_quarantined: float, sample: Sample
) -> list[CheckResult]:
    """One result a rule that was broken or has a threshold, and one for all that was quarantined."""
    found = []
    for rule in table.rule_names():
        broken, threshold = built.broken_by_rule.get(rule, 0), _threshold(table.thresholds, rule)
        if broken == 0 and threshold is None:
            continue
        failed = threshold is not None and broken > threshold * built.rows
        found.append(
            CheckResult(
                table=name,
                rule=rule,
                broken=broken,
                of=built.rows,
                threshold=threshold,
                verdict="failed" if failed else "quarantined" if broken else "ok",
                detail=sample(rule) if failed else "",
            )
        )
    failed = built.quarantined > max_quarantined * built.rows
    found.append(
        CheckResult(
            table=name,
            rule="quarantined",
            broken=built.quarantined,
            of=built.rows,
            threshold=max_quarantined,
            verdict="failed" if failed else "ok",
        )
    )
    return found


def whole_checks(name: str, table: Table, now: DayRows, before: DayRows | None, *, as_of_ms: int) -> list[CheckResult]:
    """Freshness and volume of the table as it will stand; `broken` is 1 where the check fails."""
    found = []

    def add(rule: str, failed: bool, detail: str) -> None:
        verdict = "failed" if failed else "ok"
        found.append(
            CheckResult.model_validate(
                {"table": name, "rule": rule, "broken": int(failed), "of": 1, "verdict": verdict, "detail": detail}
            )
        )

    if table.freshness is not None:
        last = now.last_event_time_ms
        age_hours = (as_of_ms - last) / _HOUR_MS if last is not None else float("inf")
        limit = table.freshness.max_age_hours
        add("freshness", age_hours > limit, f"the newest row is {age_hours:.1f} h old, at most {limit:g} h are allowed")
    if table.volume is not None:
        rows = now.accepted
        add(
            "volume:min_rows", rows < table.volume.min_rows, f"{rows:,} rows, at least {table.volume.min_rows:,} wanted"
        )
        if table.volume.max_change is not None and before is not None and before.accepted:
            change = abs(rows - before.accepted) / before.accepted
            detail = (
                f"{rows:,} rows after {before.accepted:,}: {change:.0%}, at most {table.volume.max_change:.0%} allowed"
            )
            add("volume:max_change", change > table.volume.max_change, detail)
    return found


def refuse_failed(name: str, results: list[CheckResult], built: DayRows) -> None:
    """Raise UserError for the first check that failed, with its numbers."""
    for result in results:
        if result.verdict != "failed":
            continue
        if result.rule == "quarantined":
            worst = max(built.quarantined_by_rule, key=lambda rule: built.quarantined_by_rule[rule])
            raise UserError(
                f"{name}: {result.broken:,} of {result.of:,} rows break the contract, more than the "
                f"{result.threshold:.0%} that --max-quarantined allows; most break {worst!r} "
                f"({built.quarantined_by_rule[worst]:,} rows). Nothing was published."
            )
        if result.threshold is not None:
            raise UserError(
                f"{name}: {result.broken:,} of {result.of:,} rows break {result.rule!r}, {result.share:.2%}, more than "
                f"the {result.threshold:.2%} that the contract's threshold allows. One of them: {result.detail} "
                "Nothing was published."
            )
        raise UserError(f"{name}: {result.rule}: {result.detail}. Nothing was published.")


def table_of(results: tuple[CheckResult, ...]) -> str:
    """The results as lines of text, aligned: what was broken or has a threshold."""
    rows = [("rule", "rows", "share", "threshold", "verdict")]
    for result in results:
        if result.rule == "quarantined" and not result.broken:
            continue
        counted = result.detail if result.of == 1 and result.detail else f"{result.broken:,} of {result.of:,}"
        share = "" if result.of == 1 and result.detail else f"{result.share:.2%}"
        limit = "" if result.threshold is None else f"{result.threshold:.2%}"
        rows.append((f"{result.table} {result.rule}", counted, share, limit, result.verdict))
    if len(rows) == 1:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _threshold(thresholds: Mapping[str, float], rule: str) -> float | None:
    """The rule's own threshold, or the strictest of the patterns that match it."""
    if rule in thresholds:
        return thresholds[rule]
    return min((share for pattern, share in thresholds.items() if fnmatchcase(rule, pattern)), default=None)
