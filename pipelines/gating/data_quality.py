"""Was the data sound that the candidate learned from?"""

from __future__ import annotations

from pipelines.gating.evidence import Evidence, Finding, NoEvidence
from schemas.release import RANKER


def data_quality(evidence: Evidence) -> Finding:
    """Rows quarantined by table, checks of the contract that failed, and rows of the held-out split."""
    rules, snapshot = evidence.rules, evidence.manifest()
    events, url = evidence.events()
    good, bad = [], []
    for name, table in events.ledger.tables.items():
        share = table.quarantined / table.rows if table.rows else 0.0
        said = f"{name}: {table.quarantined:,} of {table.rows:,} rows quarantined ({share:.1%})"
        if share > rules.max_quarantined:
            worst = max(table.quarantined_by_rule, key=lambda rule: table.quarantined_by_rule[rule], default=None)
            most = f", most by {worst}" if worst is not None else ""
            bad.append(
                f"{said}{most}; {rules.max_quarantined:.1%} may be: look into the store's quarantine, and mend the log "
                "or the contract."
            )
        else:
            good.append(f"{said}.")
    checks = events.store.checks if events.store is not None else ()
    for check in checks:
        if check.verdict == "failed":
            bad.append(f"{check.table}: the check {check.rule} failed for {check.broken:,} of {check.of:,} rows.")
    rows = snapshot.rows("test")
    if rows < rules.min_rows:
        bad.append(
            f"The test split holds {rows:,} rows, {rules.min_rows:,} are asked for: prepare a longer window, or wait "
            "for more events."
        )
    else:
        good.append(f"The test split holds {rows:,} rows; checks of the contract made: {len(checks)}.")
    for label, known in labelled_rows(evidence).items():
        if known < rules.min_rows:
            bad.append(
                f"Of the test split {known:,.0f} rows have the label {label}, {rules.min_rows:,} are asked for: wait "
                "for more, or leave the head out."
            )
    files = (evidence.candidate / "snapshot" / "manifest.json",)
    return Finding(passed=not bad, reasons=(*bad, *good, f"Event store: {url}."), files=files)


def labelled_rows(evidence: Evidence) -> dict[str, float]:
    """By head of the ranker the rows whose label is known; nothing where no evaluation says so."""
    try:
        heads = evidence.evaluation(RANKER).model.heads
    except NoEvidence:  # which fails the checks of metrics
        return {}
    return {head: found["rows"] for head, found in heads.items() if "rows" in found}
