"""From sketches and counts to the figures of a column; plain arithmetic, without Spark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import pairwise

from schemas.profile import QUANTILES, Drift, GroupFigures
from spark_jobs.profiling.counts import NOT_FINITE_SLOT, NULL_SLOT, Counts, Sums
from spark_jobs.profiling.measures import Measure
from spark_jobs.profiling.sketches import NUM_QUANTILES, Sketch
from spark_jobs.profiling.slots import SlotPlan

NOTHING = Sums(0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, None, None)


def total(parts: Sequence[Sums]) -> Sums:
    if not parts:
        return NOTHING
    lows = [part.min for part in parts if part.min is not None]
    highs = [part.max for part in parts if part.max is not None]
    sums = {
        field.name: sum(getattr(part, field.name) for part in parts)
        for field in fields(Sums)
        if field.name not in ("min", "max")
    }
    return Sums(**sums, min=min(lows, default=None), max=max(highs, default=None))


def figures_of(
    measure: Measure, plan: SlotPlan, sketch: Sketch, by_slot: Mapping[int, Sums], label_center: float
) -> GroupFigures:
    """The figures of one measure in one group."""
    shown = [total([by_slot[fine] for fine in slots if fine in by_slot]) for _, slots in plan.shown]
    everything = total(list(by_slot.values()))
    numbers = total([sums for slot, sums in by_slot.items() if slot >= 0])
    null, odd = by_slot.get(NULL_SLOT, NOTHING), by_slot.get(NOT_FINITE_SLOT, NOTHING)
    figures = GroupFigures(
        values=everything.values,
        nulls=null.values,
        not_finite=odd.values,
        distinct_about=sketch.distinct_about,
        counts=tuple(part.values for part in shown),
        mean_labels=tuple(label_center + part.label / part.labels if part.labels else None for part in shown),
        label_correlation_ratio=correlation_ratio([by_slot[slot] for slot in sorted(by_slot)]),
    )
    if measure.kind != "number" or not numbers.values:
        return figures
    mean = numbers.value / numbers.values
    variance = max(0.0, numbers.value_squares / numbers.values - mean * mean)
    return figures.model_copy(
        update={
            "min": numbers.min,
            "max": numbers.max,
            "mean": plan.center + plan.scale * mean,
            "std": plan.scale * math.sqrt(variance),
            "quantiles": {f"{q:g}": sketch.quantiles[round(q * NUM_QUANTILES)] for q in QUANTILES}
            if sketch.quantiles
            else {},
            "label_pearson": pearson(numbers),
        }
    )


def pearson(sums: Sums) -> float | None:
    """Correlation with the label; None where one of the two is constant, or where a label is missing."""
    if sums.labels != sums.values or sums.values < 2:
        return None
    n = sums.values
    value_variance = sums.value_squares - sums.value**2 / n
    label_variance = sums.label_squares - sums.label**2 / n
    if value_variance <= 1e-12 * n or label_variance <= 1e-12 * max(sums.label_squares, 1e-300):
        return None
    covariance = sums.products - sums.value * sums.label / n
    return max(-1.0, min(1.0, covariance / math.sqrt(value_variance * label_variance)))


def correlation_ratio(slots: Sequence[Sums]) -> float | None:
    """Share of the label's variance between slots, less what chance would give (epsilon squared); at least 0."""
    known = [part for part in slots if part.labels]
    whole = total(known)
    if whole.labels <= len(known) or not known:
        return None
    variance = whole.label_squares - whole.label**2 / whole.labels
    if variance <= 1e-12 * max(whole.label_squares, 1e-300):
        return None
    within = variance - sum(part.label**2 / part.labels for part in known) + whole.label**2 / whole.labels
    return max(0.0, 1 - (within / (whole.labels - len(known))) / (variance / (whole.labels - 1)))


def stability_index(before: Sequence[int], after: Sequence[int]) -> float:
    """PSI: sum of (q - p) ln(q / p) over the slots, half a row added to each, so that an empty one has a logarithm."""
    slots = len(before)
    p = [(count + 0.5) / (sum(before) + slots / 2) for count in before]
    q = [(count + 0.5) / (sum(after) + slots / 2) for count in after]
    return sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))


def drifts(plan: SlotPlan, measure: str, groups: Sequence[str], counts: Counts) -> tuple[Drift, ...]:
    """Each group against the one before, and the last against the first."""
    pairs = [*pairwise(groups), *([(groups[0], groups[-1])] if len(groups) > 2 else [])]
    found = []
    for before, after in pairs:
        compared = [_compared(plan, counts.get((group, measure), {})) for group in (before, after)]
        kept = [(b, a) for b, a in zip(*compared, strict=True) if b or a]
        rows = [sum(column) for column in zip(*kept, strict=True)] if kept else []
        if len(rows) == 2 and all(rows):
            psi = stability_index([b for b, _ in kept], [a for _, a in kept])
            by_chance = (len(kept) - 1) * (1 / rows[0] + 1 / rows[1])
            found.append(Drift(before=before, after=after, psi=psi, by_chance=by_chance))
    return tuple(found)


def _compared(plan: SlotPlan, by_slot: Mapping[int, Sums]) -> list[int]:
    slots = (*plan.compared, (NULL_SLOT,), (NOT_FINITE_SLOT,))
    return [sum(by_slot[fine].values for fine in group if fine in by_slot) for group in slots]
