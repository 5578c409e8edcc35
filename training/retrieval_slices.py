"""A retriever's metrics by slices of the held-out rows: by a column of users, events or items.

Legend: R rows of a rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from schemas.bundle import SliceMetrics, SplitMetrics
from training.evaluation import RankedRows
from training.loop import Trainer
from training.metrics import ranking_metrics
from training.ranks import Ranks
from training.retrieval import Retrieval
from training.slices import Cut, Slicer, cut, named

FULL = "full"
"""What slices are of: the ranking of all items."""


def of_retriever(trainer: Trainer, task: Retrieval, split: str, slicing: Sequence[Slicer]) -> SplitMetrics:
    """The split's metrics, with slices, those with the lowest `chosen_by` first."""
    reads = tuple(column for slicer in slicing for column in slicer.reads)
    rows = task.ranked(trainer.held_out(split, task, reads), {slicer.name: slicer.values for slicer in slicing})
    metrics = trainer.checked(split, task.metrics(rows))
    cuts = [cut(slicer, rows.beside[slicer.name], trainer.ranks) for slicer in slicing]
    if not cuts:
        return metrics
    found = named(slice_metrics(cuts, rows, trainer.ranks, task.recipe.ks), trainer.snapshot)
    found.sort(key=lambda one: one.metrics[task.recipe.chosen_by])
    return metrics.model_copy(update={"slices": {FULL: found}})


def slice_metrics(
    cuts: Sequence[Cut], rows: RankedRows, ranks: Ranks, ks: Sequence[int]
) -> list[tuple[Cut, int, SliceMetrics]]:
    """Each slice's metrics, as if its rows were all there are: of a query's items those in the slice. Collective."""
    query_R = ranks.gather(rows.query, "slices.query_id")
    full_R = ranks.gather(rows.full, "slices.full_rank")
    found = []
    for one in cuts:
        place_R = ranks.gather(one.place.astype(np.int64), f"slices.place.{one.slicer.name}")
        for number in range(one.count):
            of_slice = np.flatnonzero(place_R == number)
            if not len(of_slice):
                continue
            metrics = ranking_metrics(query_R[of_slice], full_R[of_slice], ks)
            counts = {"rows": float(len(of_slice)), "queries": float(len(np.unique(query_R[of_slice])))}
            found.append((one, number, SliceMetrics(column=one.slicer.name, value="", metrics=counts | metrics)))
    return found
