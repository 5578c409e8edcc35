"""Embedding tables as inference needs them: whole, in one process, as float32, as bfloat16, or as int8 with a scale a
row; no gradient, no optimizer's memory.

Legend: B rows of a batch, F features of one index, L length of a list, R rows of a table, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from schemas.features import PADDING_IDX
from training.embeddings.tables import EmbeddingTables

Precision = Literal["float32", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
_STEPS = 127  # int8 from -127 to 127, so that a vector and its opposite have opposite codes
_ROWS_AT_ONCE = 1 << 20


def quantised(weight_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (int8, shape (R, D)) and a scale for each row (float32, shape (R,)): a number is about code x scale.

    A row's scale is its largest number over 127, so that no number is off by more than half of it. There is no offset:
    it would cost 4 bytes a row more, 20 % of a row of 16 numbers, and rows lie about zero: of 16 numbers uniform about
    zero the range is on average 15/17 of the widest, the largest 16/17, so an offset makes steps 6 % smaller. A row of
    zeros has the scale 0 and stays one.
    """
    scale_R = weight_RD.abs().amax(1) / _STEPS
    codes_RD = weight_RD / scale_R.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
    return codes_RD.round().clamp(-_STEPS, _STEPS).to(torch.int8), scale_R


class QuantisedTable(nn.Module):
    """One table; `scales` is there for int8 alone."""

    def __init__(self, rows: int, width: int, precision: Precision, *, device: torch.device | None = None) -> None:
        super().__init__()
        self.codes: Tensor
        self.scales: Tensor | None
        self.register_buffer("codes", torch.zeros(rows, width, dtype=_TYPES[precision], device=device))
        self.register_buffer("scales", torch.zeros(rows, device=device) if precision == "int8" else None)

    @classmethod
    def of(cls, weight_RD: Tensor, precision: Precision) -> QuantisedTable:
        """A table of these rows; float32 ones are not copied."""
        table = cls(0 if precision == "float32" else len(weight_RD), weight_RD.shape[1], precision)
        if precision == "float32":
            table.codes = weight_RD.detach()
            return table
        for start in range(0, len(weight_RD), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            if table.scales is None:
                table.codes[part] = weight_RD[part].detach()
            else:
                table.codes[part], table.scales[part] = quantised(weight_RD[part].detach())
        return table

    def forward(self, index: Tensor) -> Tensor:
        """Vectors in float32, shape (*index.shape, D)."""
        flat = index.flatten()
        vectors = self.codes.index_select(0, flat).to(torch.float32)  # rows first: never a table in float32
        if self.scales is not None:
            vectors = vectors * self.scales.index_select(0, flat).unsqueeze(1)
        return vectors.view(*index.shape, self.codes.shape[1])


class QuantisedTables(nn.Module):
    """Takes the place of EmbeddingTables in a ranker that learns no more; part of its `state_dict`."""

    def __init__(self, features: Mapping[str, str], tables: Mapping[str, QuantisedTable]) -> None:
        """`features` names the table of each feature."""
        super().__init__()
        self.features, self.names = dict(features), tuple(tables)
        self.tables = nn.ModuleList(tables.values())  # no ModuleDict, which takes no table called `items` or `keys`

    @classmethod
    def of(cls, tables: EmbeddingTables, precision: Precision) -> QuantisedTables:
        """The same tables with less to each number; of one process, which holds every row."""
        assert tables.sharded.ranks.size == 1, "other ranks hold rows"
        names = [table.name for table in tables.placement.tables]
        return cls(tables.tables, {name: QuantisedTable.of(tables.held(name).weight, precision) for name in names})

    @classmethod
    def blank(cls, tables: EmbeddingTables, precision: Precision) -> QuantisedTables:
        """Tables of those sizes that wait for saved rows and take no memory until then."""
        meta = torch.device("meta")
        return cls(
            tables.tables,
            {
                table.name: QuantisedTable(table.rows, tables.width, precision, device=meta)
                for table in tables.placement.tables
            },
        )

    def forward(self, ids: Mapping[str, Tensor]) -> Tensor:
        """As EmbeddingTables: indices by feature, (B,) or (B, L), to (B, F, D); a list counts by its values' mean."""
        vectors = []
        by_name = dict(zip(self.names, self.tables, strict=True))
        for feature, index in ids.items():
            of_feature = by_name[self.features[feature]](index)
            if index.dim() == 2:
                held_BL1 = (index != PADDING_IDX).unsqueeze(-1).to(of_feature.dtype)
                of_feature = (of_feature * held_BL1).sum(1) / held_BL1.sum(1).clamp(min=1)
            vectors.append(of_feature)
        return torch.stack(vectors, dim=1)

    def bytes_by_table(self) -> dict[str, int]:
        return {name: _bytes(table) for name, table in zip(self.names, self.tables, strict=True)}


def _bytes(module: nn.Module) -> int:
    return sum(buffer.nbytes for buffer in module.buffers())
