"""The profile in a screenful of text."""

from __future__ import annotations

from schemas.profile import Profile, TableProfile
from spark_jobs.profiling.wording import percent

_SHOWN_FINDINGS = 8


def summary(profile: Profile) -> str:
    """Rows by table and split, the most telling columns, and the warnings."""
    lines = [f"{profile.id}: {profile.contract_meaning}"]
    for table in profile.tables:
        rows = " + ".join(f"{count:,} {group}" for group, count in table.groups.items())
        whole = f"{sum(table.groups.values()):,}"
        named = f"  {table.name}: {whole} rows" + (f" = {rows}" if len(table.groups) > 1 else "")
        lines.append(f"{named}, {len(table.columns)} columns{_label(table)}")
    warnings = [finding.text for finding in profile.findings if finding.level == "warning"]
    notes = len(profile.findings) - len(warnings)
    lines.append(f"  {_counted(len(warnings), 'warning')}, {_counted(notes, 'note')}{':' if warnings else ''}")
    lines += [f"  ! {text}" for text in warnings[:_SHOWN_FINDINGS]]
    if len(warnings) > _SHOWN_FINDINGS:
        lines.append(f"  ! and {len(warnings) - _SHOWN_FINDINGS} more on the page")
    return "\n".join("".join(char if char.isprintable() else " " for char in line) for line in lines)


def _label(table: TableProfile) -> str:
    label = next((column for column in table.columns if column.name == table.label), None)
    if label is None:
        return ""
    strongest = [
        (strength, column.name)
        for column in table.columns
        if column.name != table.label
        and (strength := next(iter(column.groups.values())).label_correlation_ratio) is not None
    ]
    if not strongest:
        return ""
    strength, name = max(strongest)
    return f"; of {table.label}'s variance {name} explains about {percent(strength)}"


def _counted(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
