"""The slots of a distribution, the same ones in every split: chosen from the sketches or from the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from schemas.features import NULL_IDX, NUM_RESERVED, PADDING_IDX, UNSEEN_IDX
from schemas.profile import Slot
from spark_jobs.profiling.measures import Measure
from spark_jobs.profiling.sketches import Sketch

TOP = 20
HEAD = NUM_RESERVED + TOP
_BARS = 22
_MOST_VALUES = 24
_HEAVY_TAIL = 8
_NEW_VALUES = 5

Rule = Literal["edges", "rank", "code"]


@dataclass(frozen=True)
class SlotPlan:
    """How a value finds its slot. edges: the number of edges at or below it; rank: a vocabulary's index, its tail in
    ranges of doubling size; code: the value is the slot.
    """

    rule: Rule
    fine: tuple[Slot, ...]
    """What is counted."""
    edges: tuple[float, ...] = ()
    shown: tuple[tuple[Slot, tuple[int, ...]], ...] = ()
    """What is shown: each slot with the fine ones that it adds up."""
    compared: tuple[tuple[int, ...], ...] = ()
    """What drift compares: fine slots together."""
    codes: tuple[str, ...] = ()
    """The text of each code."""
    center: float = 0.0
    scale: float = 1.0


def plan_slots(
    measure: Measure, sketches: Sequence[Sketch], vocabulary_size: int, texts: Mapping[int, str]
) -> SlotPlan:
    """Choose slots from the sketches of the groups, the first of them (train) deciding."""
    if measure.kind == "index":
        return _plain("rank", rank_slots(vocabulary_size, texts))
    if measure.kind == "text":
        known = [*sketches[0].top[:TOP]] if sketches else []
        for sketch in sketches[1:]:
            known += [text for text in sketch.top[:_NEW_VALUES] if text not in known]
        slots = (*(Slot(text=text, kind="value") for text in known), Slot(text="other values", kind="rest"))
        return _plain("code", slots, codes=tuple(known))
    if measure.kind == "number":
        return _number_plan(sketches)
    return _plain("code", (Slot(text="a value", kind="value"),))


def slot_of_rank(index: int) -> int:
    """The slot of a vocabulary's index; the second pass computes the same in Spark."""
    return index if index < HEAD else HEAD + int(math.log2((index - HEAD) / TOP + 1))


def rank_slots(size: int, texts: Mapping[int, str]) -> tuple[Slot, ...]:
    """Padding, null, unseen, the most frequent values of train, and ranges of ranks, each as long as all before."""
    reserved = {PADDING_IDX: ("padding", "padding"), NULL_IDX: ("null", "null"), UNSEEN_IDX: ("unseen", "unseen")}
    slots = [Slot(text=text, kind=kind) for text, kind in reserved.values()]  # type: ignore[arg-type]
    slots += [Slot(text=texts.get(index, f"index {index}"), kind="value") for index in range(3, min(size, HEAD))]
    first = HEAD
    while first < size:
        after = HEAD + TOP * (2 ** (slot_of_rank(first) - HEAD + 1) - 1)
        low, high = first - NUM_RESERVED + 1, min(after, size) - NUM_RESERVED
        slots.append(Slot(text=f"rank {low:,} to {high:,}", kind="range", low=low, high=high))
        first = after
    return tuple(slots)


def _plain(rule: Rule, slots: tuple[Slot, ...], codes: tuple[str, ...] = ()) -> SlotPlan:
    each: tuple[tuple[int, ...], ...] = tuple((number,) for number in range(len(slots)))
    # Padding is no value: that lists are short shows in their lengths.
    compared = tuple(group for group in each if slots[group[0]].kind != "padding")
    return SlotPlan(rule, slots, shown=tuple(zip(slots, each, strict=True)), compared=compared, codes=codes)


def _number_plan(sketches: Sequence[Sketch]) -> SlotPlan:
    seen = [sketch for sketch in sketches if sketch.quantiles]
    if not seen:
        return _plain("edges", (Slot(text="any", kind="range"),))
    quantiles = seen[0].quantiles
    center, spread = quantiles[50], max(abs(q - quantiles[50]) for sketch in seen for q in sketch.quantiles)
    values = sorted({value for sketch in seen for value in sketch.quantiles})
    if all((sketch.distinct_about or 0) <= _MOST_VALUES for sketch in seen) and len(values) <= _MOST_VALUES:
        edges = tuple((low + high) / 2 for low, high in pairwise(values))
        slots = tuple(Slot(text=number_text(value), kind="value", low=value) for value in values)
        each: tuple[tuple[int, ...], ...] = tuple((number,) for number in range(len(slots)))
        shown = tuple(zip(slots, each, strict=True))
        return SlotPlan("edges", slots, edges, shown, each, center=center, scale=spread or 1.0)
    bars = _bar_edges(quantiles)
    deciles = sorted({quantiles[tenth] for tenth in range(10, 100, 10)})
    edges = tuple(sorted({*bars, *deciles}))
    fine = _ranges(edges)
    shown = tuple(zip(_ranges(bars), _merged(edges, bars), strict=True))
    return SlotPlan("edges", fine, edges, shown, _merged(edges, deciles), center=center, scale=spread or 1.0)


def _bar_edges(quantiles: tuple[float, ...]) -> list[float]:
    """Equal steps over the middle 98 %, on a logarithmic scale where the tail is long; the rest is in the end bars."""
    low, median, high = quantiles[1], quantiles[50], quantiles[99]
    if high <= low:
        low, high = quantiles[0], quantiles[100]
    if high <= low:
        return []
    if low > 0 and (high - median) > _HEAVY_TAIL * (median - low):
        steps = [low * (high / low) ** (step / _BARS) for step in range(_BARS + 1)]
    elif low >= 0 and (high - median) > _HEAVY_TAIL * (median - low):
        steps = [math.expm1(math.log1p(high) * step / _BARS) for step in range(_BARS + 1)]
    else:
        steps = [low + (high - low) * step / _BARS for step in range(_BARS + 1)]
    return sorted({step for step in steps if step > quantiles[0]})


def _ranges(edges: Sequence[float]) -> tuple[Slot, ...]:
    bounds = [None, *edges, None]
    return tuple(Slot(text=range_text(low, high), kind="range", low=low, high=high) for low, high in pairwise(bounds))


def _merged(edges: Sequence[float], coarse: Sequence[float]) -> tuple[tuple[int, ...], ...]:
    """The slots between `edges` that lie in each slot between the `coarse` ones, which are among them."""
    place = [0, *(list(edges).index(edge) + 1 for edge in coarse), len(edges) + 1]
    return tuple(tuple(range(low, high)) for low, high in pairwise(place))


def number_text(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"


def range_text(low: float | None, high: float | None) -> str:
    if low is None:
        return "any" if high is None else f"below {number_text(high)}"
    return f"{number_text(low)} and more" if high is None else f"{number_text(low)} to {number_text(high)}"
