"""From counts to verdicts: a column drifted where neither chance nor too small an effect explains the difference.

Chance is excluded over all columns together: each test gets its part of the false alarms allowed (Bonferroni). At few
rows that asks for large differences, at many rows for none to speak of, and then the smallest effect decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy import stats

from schemas.drift import Bin, ColumnDrift, Measure
from spark_jobs.drifting.statistics import (
    Chance,
    Distribution,
    chance_of,
    chi_square,
    cumulative_design_effect,
    design_effect,
    harmonic,
    jensen_shannon,
    kolmogorov_smirnov,
    merged_cells,
    stability_index,
    std_of,
    summed,
    wasserstein,
)

Of = Literal["feature", "label", "prediction"]
Kind = Literal["categorical", "numeric", "list"]
MIN_GROUPS = 20
"""Groups of users on either side, below which their differences say nothing of chance."""
SHOWN_BINS, NAMED_VALUES = 12, 5


@dataclass(frozen=True, kw_only=True)
class News:
    """Values of a category that one side alone holds."""

    new_share: float
    """Of the current rows."""
    expected_share: float
    """What a second sample like the reference would have: its rows whose value no other user has (Good and Turing)."""
    num_new: int = 0
    num_vanished: int = 0
    new_values: tuple[str, ...] = ()
    vanished_values: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One column as it was counted."""

    column: str
    of: Of
    kind: Kind
    values: Distribution
    """Of a list: its elements."""
    lengths: Distribution | None = None
    news: News | None = None
    null_cell: int | None = None
    """Which of the cells holds nulls."""
    figures: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What makes a verdict."""

    false_alarms: float = 0.05
    min_effect: float = 0.1
    """As a stability index; the same of other measures is what a normal distribution has that is moved so far."""
    min_rows: int = 100

    @property
    def min_distance(self) -> float:
        """Kolmogorov-Smirnov's distance of two normal distributions whose stability index is `min_effect`."""
        return float(2 * stats.norm.cdf(math.sqrt(self.min_effect) / 2) - 1)

    @property
    def min_unseen(self) -> float:
        return self.min_effect / 2


def judge(columns: Sequence[Observed], limits: Limits) -> tuple[ColumnDrift, ...]:
    """The verdict of every column, the worst first. The more columns there are, the more each must show."""
    tests = sum(_num_tests(column, limits) for column in columns)
    alpha = limits.false_alarms / max(1, tests)
    judged = [_judged(column, alpha, limits) for column in columns]
    order = {"drifted": 0, "ok": 1, "not_enough_rows": 2}
    return tuple(sorted(judged, key=lambda column: (order[column.verdict], -column.effect, column.column)))


def has_enough(values: Distribution, limits: Limits) -> bool:
    return min(values.rows) >= limits.min_rows and (not values.is_clustered or values.groups >= MIN_GROUPS)


def _num_tests(column: Observed, limits: Limits) -> int:
    of_values = (2 if column.values.centers is not None else 1) + (column.news is not None)
    of_lengths = 2 if column.lengths is not None and has_enough(column.lengths, limits) else 0
    return of_lengths + (of_values if has_enough(column.values, limits) else 0)


def _judged(column: Observed, alpha: float, limits: Limits) -> ColumnDrift:
    """Elements of a list and its lengths each where there are enough: lists that went empty have lengths alone."""
    values, lengths, figures = column.values, column.lengths, figures_of(column)
    measures: list[Measure] = []
    bins: tuple[Bin, ...] = ()
    effect = 1.0
    if has_enough(values, limits):
        groups = merged_cells(values)
        measures, bins = measures_of(values, groups, alpha, limits), bins_of(values, groups)
        effect = design_effect(summed(values.reference, groups), summed(values.current, groups))
        if column.news is not None:
            measures.append(_unseen(column.news, values, effect, alpha, limits))
    if lengths is not None and has_enough(lengths, limits):
        of_length = measures_of(lengths, merged_cells(lengths), alpha, limits)
        measures += [measure.model_copy(update={"name": f"length_{measure.name}"}) for measure in of_length]
    if not measures:
        return ColumnDrift(
            column=column.column, of=column.of, kind=column.kind, verdict="not_enough_rows", figures=figures
        )
    if "null_share" in figures:
        before, now = figures["null_share"]
        measures.append(Measure(name="null_share", value=abs(now - before)))
    if "mean" in figures:
        (before, now), spread = figures["mean"], figures["std"][0]
        measures.append(Measure(name="mean", value=abs(now - before) / spread if spread else abs(now - before)))
    news = column.news
    return ColumnDrift(
        column=column.column,
        of=column.of,
        kind=column.kind,
        verdict="drifted" if any(measure.exceeds for measure in measures) else "ok",
        measures=tuple(measures),
        bins=bins,
        new_values=news.new_values if news is not None else (),
        vanished_values=news.vanished_values if news is not None else (),
        num_new=news.num_new if news is not None else 0,
        num_vanished=news.num_vanished if news is not None else 0,
        figures=figures,
        design_effect=effect,
    )


def measures_of(values: Distribution, groups: Sequence[Sequence[int]], alpha: float, limits: Limits) -> list[Measure]:
    """The stability index with its test and, of numbers, Kolmogorov-Smirnov's; beside them what is told."""
    reference_GK, current_GK = summed(values.reference, groups), summed(values.current, groups)
    reference_K, current_K = reference_GK.sum(axis=0), current_GK.sum(axis=0)
    measures = [_stability(reference_K, current_K, chance_of(reference_GK, current_GK), alpha, limits)]
    if values.centers is not None:
        measures.append(_distance(values, alpha, limits))
    measures.append(Measure(name="jensen_shannon", value=jensen_shannon(reference_K, current_K)))
    if values.centers is not None:
        reference_C, current_C = values.reference.sum(axis=0), values.current.sum(axis=0)
        moved = wasserstein(values.centers, reference_C, current_C)
        # Squares of very large numbers are no numbers, and JSON has no name for these.
        if math.isfinite(moved):
            measures.append(Measure(name="wasserstein", value=moved))
    return measures


def _stability(reference_K: np.ndarray, current_K: np.ndarray, chance: Chance, alpha: float, limits: Limits) -> Measure:
    """The test is Pearson's, which keeps its promise at fewer rows; its limit is told as a stability index."""
    value, statistic = stability_index(reference_K, current_K), chi_square(reference_K, current_K)
    rows = harmonic((float(reference_K.sum()), float(current_K.sum())))
    # Of small differences the index is the statistic over the rows; of large ones it is more.
    index_per_statistic = value / statistic if statistic > 0 and value > 0 else 1 / rows
    threshold = max(limits.min_effect, chance.critical(alpha) * index_per_statistic)
    return Measure(name="psi", value=value, threshold=threshold, p_value=chance.p_value(statistic))


def _distance(values: Distribution, alpha: float, limits: Limits) -> Measure:
    value = kolmogorov_smirnov(values.reference.sum(axis=0), values.current.sum(axis=0))
    effect = cumulative_design_effect(values.reference, values.current)
    root = math.sqrt(harmonic(values.rows) / max(effect, 1e-12))
    threshold = max(limits.min_distance, float(stats.kstwobign.isf(alpha)) / root)
    p_value = float(stats.kstwobign.sf(value * root))
    return Measure(name="kolmogorov_smirnov", value=value, threshold=threshold, p_value=p_value)


def _unseen(news: News, values: Distribution, effect: float, alpha: float, limits: Limits) -> Measure:
    """New values against those that a second sample of the same users' kind would bring."""
    rows = values.rows
    share = min(1.0, max(news.expected_share, max(1.0, effect) / rows[0]))
    error = math.sqrt(max(1.0, effect) * share * (1 - share) * (1 / rows[0] + 1 / rows[1]))
    threshold = max(limits.min_unseen, share + float(stats.norm.isf(alpha)) * error)
    excess = (news.new_share - share) / error if error > 0 else 0.0
    return Measure(
        name="unseen_share", value=news.new_share, threshold=min(1.0, threshold), p_value=float(stats.norm.sf(excess))
    )


def figures_of(column: Observed) -> dict[str, tuple[float, float]]:
    values = column.values
    reference_C, current_C = values.reference.sum(axis=0), values.current.sum(axis=0)
    figures = {"rows": values.rows, **column.figures}
    if not min(values.rows):
        return figures
    if column.null_cell is not None:
        nulls = (float(reference_C[column.null_cell]), float(current_C[column.null_cell]))
        figures["null_share"] = (nulls[0] / values.rows[0], nulls[1] / values.rows[1])
    if values.centers is not None and "mean" not in figures:
        known = ~np.isnan(values.centers)
        sides = [counts[known] for counts in (reference_C, current_C)]
        if all(side.sum() for side in sides):
            before, now = (float(np.average(values.centers[known], weights=side)) for side in sides)
            spreads = [std_of(values.centers[known], side) for side in sides]
            figures |= {"mean": (before, now), "std": (spreads[0], spreads[1])}
    if not all(math.isfinite(figure) for name in ("mean", "std") for figure in figures.get(name, ())):
        figures = {name: sides for name, sides in figures.items() if name not in ("mean", "std")}
    return figures


def bins_of(values: Distribution, groups: Sequence[Sequence[int]]) -> tuple[Bin, ...]:
    """The merged cells for a picture: of a number in order, of a category the largest."""
    rows = values.rows
    reference_C, current_C = values.reference.sum(axis=0), values.current.sum(axis=0)
    bins = []
    for group in groups:
        name = values.cells[group[0]]
        if len(group) > 1 and values.centers is not None:
            name = _span([values.cells[cell] for cell in group])
        elif len(group) > 1:
            name = "other values"
        before, now = float(reference_C[list(group)].sum()), float(current_C[list(group)].sum())
        bins.append(Bin(name=name, reference=before / rows[0], current=now / rows[1]))
    if values.centers is None:
        bins = sorted(bins, key=lambda one: -max(one.reference, one.current))[:SHOWN_BINS]
    return tuple(bins)


def _span(names: Sequence[str]) -> str:
    """`1 to 2`, `2 to 4` -> `1 to 4`."""
    ends = [name for name in names if name != "null"] or list(names)
    low = ends[0].split(" to ")[0].removesuffix(" and more")
    last = ends[-1]
    if last.endswith(" and more"):
        span = last if ends[0] == last else f"{low} and more"
    else:
        high = last.split(" to ")[-1].removeprefix("below ")
        span = f"below {high}" if low.startswith("below ") else (f"{low} to {high}" if low != high else low)
    return f"{span}, or null" if "null" in names and names != ["null"] else span
