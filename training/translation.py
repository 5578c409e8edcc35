"""A column of one snapshot in the encoding of another: the same raw values, as another transform encodes them.

Indices go by value, numbers by the moments and clips of both; what a transform has thrown away does not come back, and
a note says where that makes the result approximate.

Legend: B rows of a batch, V indices of a column.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from schemas.errors import UserError
from schemas.features import (
    NUM_RESERVED,
    PADDING_IDX,
    UNSEEN_IDX,
    AnyFeature,
    BucketFeature,
    CyclicFeature,
    GapsFeature,
    HashFeature,
    HistoryFeature,
    IndexFeature,
    IndicesFeature,
    NumberFeature,
    PastFeature,
    TokensFeature,
)
from training.vocabularies import Renumbering

Translate = Callable[[Tensor], Tensor]
"""A batch's column, shape (B,) or (B, L), in the other encoding; of the same type."""
Renumber = Callable[[str, str], Renumbering]
"""By vocabulary there and here."""


def translated(there: AnyFeature, here: AnyFeature, renumber: Renumber) -> tuple[Translate, list[str]]:
    """From the column of `there` to that of `here`, with notes; UserError where they hold different things."""
    if isinstance(here, NumberFeature) and isinstance(there, NumberFeature) and here.source == there.source:
        return _numbers(there, here)
    if isinstance(here, PastFeature | CyclicFeature):
        return _as_it_is(there, here)
    table_V, notes = _table(there, here, renumber)
    if isinstance(here, HistoryFeature | GapsFeature):
        assert isinstance(there, HistoryFeature | GapsFeature)
        return _in_turn(_gather(table_V), _newest(here.length)), notes + _shorter(there, here)
    if isinstance(here, IndicesFeature | TokensFeature):
        assert isinstance(there, IndicesFeature | TokensFeature)
        return _in_turn(_gather(table_V), _first(here.length)), notes + _shorter(there, here)
    return _gather(table_V), notes


def index_table(renumbering: Renumbering) -> Tensor:
    """What each index of one vocabulary is in another, int32, shape (V,); unseen for a value that it lacks."""
    table_V = torch.from_numpy(renumbering.new_of_old).to(torch.int32)
    return torch.where(table_V < 0, UNSEEN_IDX, table_V).to(torch.int32)


def _table(there: AnyFeature, here: AnyFeature, renumber: Renumber) -> tuple[Tensor | None, list[str]]:
    """What each index becomes; None where all stay."""
    if isinstance(here, IndexFeature | IndicesFeature) and there.kind == here.kind:
        assert isinstance(there, IndexFeature | IndicesFeature)
        if there.source == here.source:
            return index_table(renumber(there.vocabulary, here.vocabulary)), []
    elif isinstance(here, HistoryFeature) and isinstance(there, HistoryFeature):
        return index_table(renumber(there.vocabulary, here.vocabulary)), []
    elif isinstance(here, GapsFeature) and isinstance(there, GapsFeature):
        return None, []
    elif isinstance(here, BucketFeature) and isinstance(there, BucketFeature) and there.source == here.source:
        return _buckets(there, here)
    elif (isinstance(here, HashFeature) and isinstance(there, HashFeature) and there.sources == here.sources) or (
        isinstance(here, TokensFeature) and isinstance(there, TokensFeature) and there.source == here.source
    ):
        return _hashes(here.name, there.buckets, here.buckets), []
    raise UserError(
        f"the feature {here.name!r} is made of something else in the later snapshot ({there.kind}) than in the run's "
        f"({here.kind}): prepare both with the same feature set."
    )


def _hashes(name: str, there: int, here: int) -> Tensor | None:
    """A hash modulo fewer buckets follows from one modulo a multiple of them, and from no other."""
    if there == here:
        return None
    if there % here:
        raise UserError(
            f"the feature {name!r} is hashed to {there:,} buckets in the later snapshot and to {here:,} in the run's: "
            "only a multiple can be translated. Prepare both with as many."
        )
    values_V = torch.arange(there, dtype=torch.int32) % here + NUM_RESERVED
    return torch.cat([torch.arange(NUM_RESERVED, dtype=torch.int32), values_V])


def _buckets(there: BucketFeature, here: BucketFeature) -> tuple[Tensor | None, list[str]]:
    """Each interval goes by its middle, the outer ones by the edge that they have: exact where it lies within one."""
    if there.edges == here.edges:
        return None, []
    if not there.edges:
        raise UserError(
            f"the feature {here.name!r} has no edges in the later snapshot: what lay where cannot be told. Prepare it "
            "with buckets."
        )
    edges, place = there.edges, here.edges
    # An edge belongs to the interval above it: below the first one is anything just under it.
    inner = [bisect_right(place, (low + high) / 2) for low, high in pairwise(edges)]
    indices = [bisect_left(place, edges[0]), *inner, bisect_right(place, edges[-1])]
    within = [bisect_right(place, low) == bisect_left(place, high) for low, high in pairwise(edges)]
    cut = [not place or place[0] >= edges[0], *within, not place or place[-1] <= edges[-1]].count(False)
    table_V = torch.tensor([*range(NUM_RESERVED), *(NUM_RESERVED + one for one in indices)], dtype=torch.int32)
    note = f"{here.name}: {cut} of {len(indices)} intervals lie in several of the run's and go by their middle"
    return table_V, [f"{note} (approximate)"] if cut else []


def _numbers(there: NumberFeature, here: NumberFeature) -> tuple[Translate, list[str]]:
    """Back to the raw number and forth again; 0 stays, where it is what null becomes and no number has it by chance."""
    if there == here.model_copy(update={"owner": there.owner}):
        return lambda column_B: column_B, []
    zero_is_null = there.mean != 0  # else 0 is what most logs hold many of, and null is one of them

    def change(column_B: Tensor) -> Tensor:
        number_B = column_B.double() * there.std + there.mean
        if (there.log1p, there.low, there.high) != (here.log1p, here.low, here.high):
            number_B = number_B.sign() * number_B.abs().expm1() if there.log1p else number_B
            number_B = number_B.clamp(here.low, here.high) if (here.low, here.high) != (None, None) else number_B
            number_B = number_B.sign() * number_B.abs().log1p() if here.log1p else number_B
        changed_B = ((number_B - here.mean) / here.std).to(column_B.dtype)
        return torch.where(column_B == 0, column_B, changed_B) if zero_is_null else changed_B

    is_cut = _above(there.low, here.low, -math.inf) or _above(here.high, there.high, math.inf)
    notes = [f"{here.name}: clipped more narrowly in the later snapshot than in the run's (approximate)"]
    return change, notes if is_cut else []


def _above(one: float | None, other: float | None, default: float) -> bool:
    return (default if one is None else one) > (default if other is None else other)


def _as_it_is(there: AnyFeature, here: AnyFeature) -> tuple[Translate, list[str]]:
    same = {"owner": here.owner}
    is_past = isinstance(there, PastFeature) and isinstance(here, PastFeature)
    if is_past:
        same |= {"prior_mean": here.prior_mean, "prior_rows": here.prior_rows}  # type: ignore[union-attr,dict-item]
    if there.model_copy(update=same) != here:
        raise UserError(
            f"the feature {here.name!r} is counted otherwise in the later snapshot than in the run's: prepare both "
            "with the same feature set."
        )
    differs = is_past and here.what == "rate" and there.model_copy(update={"owner": here.owner}) != here  # type: ignore[union-attr]
    note = f"{here.name}: taken as it is, though drawn towards another mean (approximate)"
    return lambda column_B: column_B, [note] if differs else []


def _gather(table_V: Tensor | None) -> Translate:
    if table_V is None:
        return lambda column: column
    held = {table_V.device: table_V}

    def change(column: Tensor) -> Tensor:
        table = held.setdefault(column.device, table_V.to(column.device))
        return table[column.long()].to(column.dtype)

    return change


def _newest(length: int) -> Translate:
    """Left-padded lists: the last entries, or padding in front."""

    def change(column_BL: Tensor) -> Tensor:
        missing = length - column_BL.shape[1]
        if missing <= 0:
            return column_BL[:, -length:]
        return torch.cat([column_BL.new_full((len(column_BL), missing), PADDING_IDX), column_BL], dim=1)

    return change


def _first(length: int) -> Translate:
    """Right-padded lists: the first entries, or padding behind."""

    def change(column_BL: Tensor) -> Tensor:
        missing = length - column_BL.shape[1]
        if missing <= 0:
            return column_BL[:, :length]
        return torch.cat([column_BL, column_BL.new_full((len(column_BL), missing), PADDING_IDX)], dim=1)

    return change


def _in_turn(*changes: Translate) -> Translate:
    def change(column: Tensor) -> Tensor:
        for one in changes:
            column = one(column)
        return column

    return change


def _shorter(
    there: HistoryFeature | GapsFeature | IndicesFeature | TokensFeature,
    here: HistoryFeature | GapsFeature | IndicesFeature | TokensFeature,
) -> list[str]:
    if there.length >= here.length:
        return []
    return [f"{here.name}: lists of {there.length} in the later snapshot, of {here.length} in the run's (approximate)"]
