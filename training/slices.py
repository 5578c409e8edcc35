"""How rows are cut into slices, over ranks of which none holds all rows: by frequent values, or by quartiles.

Legend: R rows of a rank, V its different values, Q shares asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from schemas.bundle import SliceMetrics
from schemas.errors import UserError, nearest
from schemas.snapshot import Snapshot
from training.batch import Batch
from training.bootstrap import measured
from training.catalogue import Catalogue
from training.click_metrics import Scored, mixed
from training.ranks import Ranks
from training.reader import open_part
from training.slice_names import names_of_ranges, names_of_values

FEWEST_USERS = 20
"""Of a slice with intervals: resampling fewer says nothing of chance."""
UNLIKELY = 0.025
MOST_VALUES = 20
OTHERS, UNKNOWN = "others", "not known"


@dataclass(frozen=True)
class Slicer:
    """A column to slice by; `reads` are the columns of a batch that `values` needs."""

    name: str
    reads: tuple[str, ...]
    by_value: bool
    values: Callable[[Batch], NDArray[np.float64]]
    """Shape (R,); NaN where not known. Indices are exact: they are below 2 ** 53."""


@dataclass(frozen=True)
class Cut:
    """Which slice each of a rank's rows is in, shape (R,), and what the slices are, the same on every rank.

    Of values the slice after the last holds the others; of ranges it holds the rows that are not known.
    """

    slicer: Slicer
    place: NDArray[np.intp]
    values: NDArray[np.float64]
    """The slices' values, by falling frequency; or the edges of ranges, each of which ends the range below."""

    @property
    def count(self) -> int:
        return len(self.values) + (1 if self.slicer.by_value else 2)


def slicers(names: Sequence[str], snapshot: Snapshot, split: str, catalogue: Catalogue | None) -> list[Slicer]:
    """By name; UserError for what the split and the items lack, or what is no single value."""
    schema = open_part(snapshot, split).schema
    of_items = catalogue.features if catalogue is not None and "item_idx" in schema.names else {}
    found = []
    for name in dict.fromkeys(names):
        if name in schema.names:
            found.append(_of_split(name, schema.field(name).type, by_value=name in snapshot.transform.index_sizes))
        elif name in of_items and of_items[name].dim() == 1:
            column = of_items[name].cpu()
            by_value = not column.is_floating_point()
            found.append(Slicer(name, ("item_idx",), by_value, lambda batch, of=column: _of_item(batch, of)))  # type: ignore[misc]
        else:
            known = [*schema.names, *(one for one in of_items if of_items[one].dim() == 1)]
            raise UserError(
                f"--slice {name!r}: {split} of {snapshot.url} has no such column{nearest(name, known)}; it has "
                f"{', '.join(sorted(known))}."
            )
    return found


def _of_split(name: str, kind: pa.DataType, *, by_value: bool) -> Slicer:
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise UserError(f"--slice {name!r}: it holds {kind}, and slices are made of single numbers or indices.")
    by_value = by_value or pa.types.is_boolean(kind) or (pa.types.is_integer(kind) and kind.bit_width < 64)
    return Slicer(name, (name,), by_value, lambda batch: batch[name].cpu().numpy().astype(np.float64))


def _of_item(batch: Batch, column: torch.Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = column[batch["item_idx"].cpu().long()].numpy().astype(np.float64)
    return values


def cut(slicer: Slicer, values_R: NDArray[np.float64], ranks: Ranks) -> Cut:
    """Cut all ranks' rows. Collective."""
    if slicer.by_value:
        top = most_frequent(values_R, MOST_VALUES, ranks)
        order = np.argsort(top)
        place = np.searchsorted(top, values_R, sorter=order)
        place_R = order[np.minimum(place, len(top) - 1)] if len(top) else np.zeros(len(values_R), dtype=np.intp)
        is_top = top[place_R] == values_R if len(top) else np.zeros(len(values_R), dtype=bool)
        return Cut(slicer, np.where(is_top, place_R, len(top)).astype(np.intp), top)
    edges = np.unique(quantiles(values_R, (0.25, 0.5, 0.75), ranks))
    place_R = np.searchsorted(edges, values_R, side="left")
    return Cut(slicer, np.where(np.isnan(values_R), len(edges) + 1, place_R).astype(np.intp), edges)


def most_frequent(values_R: NDArray[np.float64], most: int, ranks: Ranks) -> NDArray[np.float64]:
    """Of all ranks' values those that most rows have, at most `most`; ties by value. Collective.

    Each value is counted on the rank that its hash says, so no rank holds more than its share of them.
    """
    values_V, count_V = np.unique(values_R, return_counts=True)
    owner_V = (mixed(values_V.view(np.int64)) % np.uint64(ranks.size)).astype(np.intp)
    order, sent = np.argsort(owner_V, kind="stable"), np.bincount(owner_V, minlength=ranks.size).tolist()
    came, _ = ranks.exchange(torch.from_numpy(values_V[order]), sent, "slices.values")
    counts, _ = ranks.exchange(torch.from_numpy(count_V[order]), sent, "slices.counts")
    mine, place = np.unique(came.numpy(), return_inverse=True)
    total = np.bincount(place, counts.numpy(), minlength=len(mine))
    best = np.lexsort((mine, -total))[:most]
    every = ranks.gather(np.stack([mine[best], total[best]], axis=1), "slices.best")
    return np.asarray(every[np.lexsort((every[:, 0], -every[:, 1]))[:most], 0])


def quantiles(values_R: NDArray[np.float64], shares: Sequence[float], ranks: Ranks) -> NDArray[np.float64]:
    """For each share the smallest of all ranks' values that at least so many are not above; NaN counts for nothing.

    Found by halving the range of all doubles 64 times: a sum of Q counts over the ranks each. Empty without values.
    """
    known = values_R[~np.isnan(values_R)] + 0.0  # there is one zero
    key_R = np.sort(_turned(known.view(np.int64)))
    total = int(ranks.sum(torch.tensor([len(key_R)]), "slices.known"))
    if not total:
        return np.empty(0)
    wanted_Q = np.ceil(np.asarray(shares) * total).clip(1)
    low_Q, high_Q = np.full((2, len(shares)), [[-(2**63)], [2**63 - 1]], dtype=np.int64)
    for _ in range(64):
        middle_Q = (low_Q & high_Q) + ((low_Q ^ high_Q) >> 1)
        below = np.searchsorted(key_R, middle_Q, side="right")
        enough_Q = ranks.sum(torch.from_numpy(below), "slices.below").numpy() >= wanted_Q
        high_Q = np.where(enough_Q, middle_Q, high_Q)
        low_Q = np.where(enough_Q, low_Q, middle_Q + 1)
    return _turned(high_Q).view(np.float64)


def _turned(bits: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bits of doubles as integers that are ordered as the doubles are, and back again."""
    return bits ^ ((bits >> 63) & np.int64(2**63 - 1))


def slice_metrics(
    cuts: Sequence[Cut], scored: Scored, known_R: NDArray[np.bool_], ranks: Ranks
) -> list[tuple[Cut, int, SliceMetrics]]:
    """Of each slice with rows: its cut, its number and metrics, its value still without a name. Collective.

    `scored` are those of the rank's rows that `known_R` says.
    """
    found = []
    for one in cuts:
        slice_K = one.place[known_R]
        rows = ranks.sum(torch.from_numpy(np.bincount(slice_K, minlength=one.count)), "slices.rows").tolist()
        for number in np.flatnonzero(rows).tolist():
            metrics, intervals = measured(scored.take(np.flatnonzero(slice_K == number)), ranks)
            if metrics.get("users", 0) < FEWEST_USERS:
                intervals = {}
            found.append(
                (one, number, SliceMetrics(column=one.slicer.name, value="", metrics=metrics, intervals=intervals))
            )
    return found


def named(found: Sequence[tuple[Cut, int, SliceMetrics]], snapshot: Snapshot) -> list[SliceMetrics]:
    """The slices with their values as a person reads them, from the snapshot's vocabularies where it has such."""
    names: Mapping[str, list[str]] = {
        one.slicer.name: [*names_of_values(snapshot, one.slicer.name, one.values), OTHERS]
        if one.slicer.by_value
        else [*names_of_ranges(snapshot, one.slicer.name, one.values), UNKNOWN]
        for one, _, _ in found
    }
    return [metrics.model_copy(update={"value": names[one.slicer.name][number]}) for one, number, metrics in found]


def signs(one: SliceMetrics, intervals: Mapping[str, tuple[float, float]]) -> list[str]:
    """What is bad about a slice, beside the intervals of all rows."""
    found = []
    low, high = one.intervals.get("calibration", (1.0, 1.0))
    # By the model itself, that nothing at all comes of these rows has the probability exp(-rows * log loss).
    is_too_empty = one.metrics.get("base_rate") == 0 and (
        one.metrics["rows"] * one.metrics["log_loss"] > -math.log(UNLIKELY)
    )
    if is_too_empty or not low <= 1 <= high:
        found.append("calibration")
    if "auc" in one.metrics and "auc" in intervals and one.metrics["auc"] < intervals["auc"][0]:
        found.append("auc")
    return found


def worst_first(slices: Sequence[SliceMetrics], intervals: Mapping[str, tuple[float, float]]) -> list[SliceMetrics]:
    """Those with most signs first, then by how far predicted clicks are off."""

    def badness(one: SliceMetrics) -> tuple[int, float]:
        found = signs(one, intervals)
        # Undefined where nothing came of a slice's rows.
        calibration = one.metrics.get("calibration", math.inf if "calibration" in found else 1.0)
        return -len(found), -abs(calibration - 1)

    return sorted(slices, key=badness)
