"""A report in words: the first sentence of the page, the table of the terminal, and what the measures mean."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.drift import ColumnDrift, DriftReport
from spark_jobs.profiling.wording import integer, number, percent

NAMES = {
    "psi": "stability index",
    "jensen_shannon": "Jensen-Shannon",
    "kolmogorov_smirnov": "Kolmogorov-Smirnov",
    "wasserstein": "Wasserstein",
    "unseen_share": "new values",
    "null_share": "nulls",
    "mean": "mean",
}
MEANINGS = (
    ("stability index (PSI)", "sum over the bins of (share now - share before) x log of their ratio. Numbers have ten "
     "bins of about equal share, categories their 24 most frequent values and one for all others; an empty bin "
     "counts as a share of 0.0001. Customary: below 0.1 little, above 0.25 a shift."),
    ("Kolmogorov-Smirnov", "the largest difference of the shares of rows below any value; of numbers. Taken at every "
     "second percentile of both sides, so that it is short by a fiftieth at most."),
    ("Wasserstein", "how far rows would have to be moved on average to make one distribution into the other, in "
     "standard deviations of the reference."),
    ("Jensen-Shannon", "distance between the shares of the bins: "
     "0 where they are equal, 0.83 where no value is in both."),
    ("new values", "share of the current rows whose value the reference does not hold; held against how many rows of "
     "the reference have a value that one user alone has, which is what a second sample like it would bring."),
    ("nulls, mean", "how much the share of nulls, and the mean in standard deviations of the reference, have changed."),
    ("asked for", "a verdict asks that chance be excluded and that the difference be large enough to matter: what is "
     "asked for is the larger of both. Chance is excluded over all columns together, so that a report on unshifted "
     "rows names any column no more often than promised."),
    ("design effect", "rows of one user are alike, so they say less than as many rows of strangers: how much less is "
     "estimated from 64 groups of users, and the tests count so many rows fewer."),
)  # fmt: skip


def named(measure: str) -> str:
    of_length = measure.removeprefix("length_")
    return f"length: {NAMES[of_length]}" if of_length != measure else NAMES[measure]


def headline(report: DriftReport) -> str:
    judged = [column for column in report.columns if column.verdict != "not_enough_rows"]
    few = len(report.columns) - len(judged)
    rest = f" {counted(few, 'column')} had too few rows for a verdict." if few else ""
    if not report.drifted:
        what = f"None of {counted(len(judged), 'column')} drifted." if judged else "There is no verdict on any column."
        return what + rest
    worst = report.columns[0]
    share = f"{len(report.drifted)} of {counted(len(judged), 'column')}"
    return f"{share} drifted, {worst.column} the most: {told(worst)}.{rest}"


def told(column: ColumnDrift) -> str:
    """What tells most of a column that drifted, with what was asked for."""
    exceeding = [measure for measure in column.measures if measure.exceeds and measure.threshold]
    if not exceeding:
        return "no measure exceeds what is asked for"
    worst = max(exceeding, key=lambda measure: measure.value / (measure.threshold or 1.0))
    values = ""
    if worst.name == "unseen_share" and column.new_values:
        values = f" ({', '.join(column.new_values[:3])}{' ...' if column.num_new > 3 else ''})"
    shown = percent if worst.name.endswith("share") else number
    return f"{named(worst.name)} {shown(worst.value)}{values}, asked for {shown(worst.threshold)}"


def counted(number_of: int, what: str) -> str:
    return f"{integer(number_of)} {what}" + ("" if number_of == 1 else "s")


def print_columns(title: str, columns: Sequence[ColumnDrift], *, most: int = 20) -> None:
    """The worst columns on the terminal."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for head in ("column", "verdict", "PSI", "asked for", "KS", "new", "nulls", "design effect"):
        table.add_column(head, justify="left" if head in ("column", "verdict") else "right")
    for column in columns[:most]:
        measures = {measure.name: measure for measure in column.measures}
        psi = measures.get("psi")
        cells = [column.column, column.verdict.replace("_", " ")]
        cells += [number(psi.value), number(psi.threshold)] if psi is not None else ["–", "–"]
        cells.append(number(measures["kolmogorov_smirnov"].value) if "kolmogorov_smirnov" in measures else "–")
        cells.append(percent(measures["unseen_share"].value) if "unseen_share" in measures else "–")
        cells.append(percent(column.figures["null_share"][1]) if "null_share" in column.figures else "–")
        cells.append(f"{column.design_effect:.1f}" if measures else "–")
        table.add_row(*map(Text, cells))  # plain: a name in brackets is no markup
    Console(width=110, soft_wrap=True).print(table)
    if len(columns) > most:
        print(f"and {len(columns) - most} more columns, in the report")
