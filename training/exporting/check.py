"""Proof that an exported model scores as the one it was made from."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from schemas.errors import UserError
from schemas.export import Check
from training.exporting.formats import Columns, Scorer
from training.exporting.traced import Traced

BATCH_SIZES = (1, 7, 512)
ROWS = max(BATCH_SIZES)
TOLERANCE = 1e-5


def check(
    traced: Traced, columns: Columns, scorers: Mapping[str, Scorer], *, rows_from: str, tolerance: float
) -> Check:
    """Ask all for the same rows in batches of several sizes; UserError where one says something else.

    Tolerated is a difference of `tolerance`, times the largest output where that is above 1: sums of other order.
    """
    largest = dict.fromkeys(scorers, 0.0)
    allowed = tolerance
    for size in BATCH_SIZES:
        batch = {name: column[:size] for name, column in columns.items()}
        with torch.no_grad():
            expected = list(traced.module(batch))
        allowed = max(allowed, *(tolerance * float(output.abs().max()) for output in expected))
        for name, score in scorers.items():
            found = score(batch)
            for described, one, other in zip(traced.outputs, expected, found, strict=True):
                if one.shape != other.shape:
                    shapes = f"{tuple(other.shape)} instead of {tuple(one.shape)}"
                    raise UserError(f"{name}: the output {described.name!r} of {size} rows has the shape {shapes}.")
                difference = float((one - other).abs().max())
                largest[name] = max(largest[name], difference if difference == difference else float("inf"))
    for name, difference in largest.items():
        if difference > allowed:
            raise UserError(
                f"{name} does not score as the bundle does: on {rows_from} they differ by {difference:.2g}, more than "
                f"{allowed:.2g}. Nothing was exported; if that much does not matter to you, raise --tolerance."
            )
    return Check(rows_from=rows_from, batch_sizes=BATCH_SIZES, tolerance=tolerance, largest_difference=largest)
