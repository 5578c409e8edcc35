"""What a reader should know before training, in words; each rule is one function of a profile's figures."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.ledger import Ledger
from schemas.profile import ColumnProfile, Finding, Level, TableProfile
from spark_jobs.profiling.wording import percent

UNSEEN, MISSING, REFUSED = 0.2, 0.5, 0.01
PSI_SHIFT, PSI_CHANGE, CHANCE = 0.25, 0.1, 3.0
LEAK = 0.9
_NO_FEATURES = {"row_id", "query_id", "negatives", "seen", "title", "count", "event_time_ms"}


def findings(tables: tuple[TableProfile, ...], ledger: Ledger) -> list[Finding]:
    """Warnings first, then notes, in the order of tables and columns."""
    found = [*_about_the_ledger(ledger)]
    for table in tables:
        found += _about_the_label(table)
        for column in table.columns:
            if column.name not in _NO_FEATURES and column.role != "event_time":
                found += _about_a_column(table, column)
    return sorted(found, key=lambda finding: finding.level != "warning")


def _about_the_ledger(ledger: Ledger) -> Iterator[Finding]:
    for name, table in ledger.tables.items():
        if table.quarantined:
            worst = max(table.quarantined_by_rule, key=lambda rule: table.quarantined_by_rule[rule])
            share = table.quarantined / table.rows
            yield Finding(
                level="warning" if share > REFUSED else "note",
                table=name,
                text=f"{name}: {table.quarantined:,} of {table.rows:,} rows ({percent(share)}) are quarantined, "
                f"most of them by the rule {worst} ({table.quarantined_by_rule[worst]:,})",
            )
        if table.duplicates > REFUSED * table.rows:
            yield Finding(
                level="warning",
                table=name,
                text=f"{name}: {table.duplicates:,} of {table.rows:,} rows ({percent(table.duplicates / table.rows)}) "
                "repeat the key of an earlier row",
            )


def _about_the_label(table: TableProfile) -> Iterator[Finding]:
    label = next((column for column in table.columns if column.name == table.label), None)
    if label is None:
        return
    first, *later = [(group, label.groups[group]) for group in table.groups if group in label.groups]
    for group, figures in later:
        before = first[1]
        if before.mean is None or figures.mean is None or not before.std or not before.values or not figures.values:
            continue
        change = figures.mean - before.mean
        by_chance = before.std * (1 / before.values + 1 / figures.values) ** 0.5
        if abs(change) > max(4 * by_chance, 0.1 * before.std):
            verb = "falls" if change < 0 else "rises"
            yield Finding(
                level="warning",
                table=table.name,
                column=label.name,
                text=f"mean {label.name} {verb} from {before.mean:.3g} in {first[0]} to {figures.mean:.3g} in {group}",
            )


def _about_a_column(table: TableProfile, column: ColumnProfile) -> Iterator[Finding]:
    named = column.name if table.name in ("rows", "events") else f"{table.name}.{column.name}"

    def say(level: Level, text: str) -> Finding:
        return Finding(level=level, table=table.name, column=column.name, text=f"{named}: {text}")

    def where(group: str) -> str:
        return f" in {group}" if len(table.groups) > 1 else ""

    unseen = [(share, group) for group in column.groups if (share := column.unseen_share(group)) >= UNSEEN]
    if unseen:
        shares = " and ".join(f"{percent(share)}{where(group)}" for share, group in unseen)
        yield say("warning", f"unseen in train: {shares}; the model knows nothing of these values")
    for group, figures in column.groups.items():
        if figures.not_finite:
            yield say("warning", f"{figures.not_finite:,} values are NaN or infinite{where(group)}")
    first = next(iter(column.groups))
    if (share := column.missing_share(first)) >= MISSING:
        yield say("warning" if share == 1 else "note", f"{percent(share)} null{where(first)}")
    if is_constant(column, first):
        yield say("warning", f"constant{where(first)}: it can tell nothing apart")
    if column.lengths is not None and column.name != "history":
        counts = column.lengths.groups[first]
        empty = sum(
            n
            for slot, n in zip(column.lengths.slots, counts.counts, strict=True)
            if slot.low == 0 and slot.kind == "value"
        )
        if counts.values and empty / counts.values >= MISSING:
            yield say("note", f"{percent(empty / counts.values)} of the lists are empty{where(first)}")
    yield from _about_leaks(table, column, first)
    drifts = [drift for drift in column.drift if drift.psi > max(PSI_CHANGE, CHANCE * drift.by_chance)]
    if drifts and column.name != table.label:
        worst = max(drifts, key=lambda drift: drift.psi)
        shifted = worst.psi > PSI_SHIFT
        yield say(
            "warning" if shifted and is_ordinary(column) else "note",
            f"its values in {worst.after} are {'quite ' if shifted else ''}unlike those in {worst.before} "
            f"(PSI {worst.psi:.2f})",
        )


def is_ordinary(column: ColumnProfile) -> bool:
    """Ids and lists of ids change with the people and the items that come: worth a note, and no warning."""
    return column.role not in ("user", "item") and not column.is_list


def _about_leaks(table: TableProfile, column: ColumnProfile, first: str) -> Iterator[Finding]:
    if column.name == table.label or column.role in ("user", "item", "label", "weight", "propensity"):
        return
    figures = column.groups[first]
    strength = max((figures.label_pearson or 0.0) ** 2, figures.label_correlation_ratio or 0.0)
    if strength >= LEAK:
        yield Finding(
            level="warning",
            table=table.name,
            column=column.name,
            text=f"{column.name}: explains {percent(strength)} of the label's variance: does it know the outcome?",
        )


def is_constant(column: ColumnProfile, group: str) -> bool:
    figures = column.groups[group]
    if figures.values - figures.nulls < 2 or column.kind in ("other", "identifier"):
        return False
    if column.kind == "number":
        return figures.min is not None and figures.min == figures.max and not figures.nulls
    return max(figures.counts, default=0) == figures.values and max(
        zip(figures.counts, column.slots, strict=True), key=lambda pair: pair[0]
    )[1].kind in ("value", "unseen")
