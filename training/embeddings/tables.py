"""The embedding tables of a model: one look-up for all of its features, wherever their tables lie.

Legend: B rows of a batch, F features of one index, L length of a list, D width, R rows of the replicated tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.features import PADDING_IDX
from training.embeddings.placement import Placement
from training.embeddings.rows import RowRule, adagrad_, first_values
from training.embeddings.sharded import ShardedTables
from training.ranks import Ranks

_EPS = 1e-8


@dataclass(frozen=True)
class HeldRows:
    """Rows first, first + step, first + 2 step ... of a table: their vectors (R, D) and their memory (R,)."""

    weight: Tensor
    squares: Tensor
    first: int
    step: int


class EmbeddingTables(nn.Module):
    """Tables of one width; `tables` names the table of each feature, and features may share one.

    The replicated tables lie one below the other in one parameter, so that a batch needs one look-up and one exchange
    for all of them. All tables learn by one rule, row by row, in `update`: where a table lies changes nothing that it
    learns. They are no part of `state_dict`: checkpoints hold them by rows (`training.embeddings.files`).
    """

    def __init__(
        self, tables: Mapping[str, str], width: int, placement: Placement, ranks: Ranks, *, seed: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, self.placement, self.tables = width, placement, dict(tables)
        self.first: dict[str, int] = {}
        total = 0
        for name, rows in placement.replicated.items():
            self.first[name] = total
            total += rows
        self.weight = nn.Parameter(torch.zeros(total, width, device=device))
        self.squares: Tensor
        self.register_buffer("squares", torch.zeros(total, device=device), persistent=False)
        self.sharded = ShardedTables(placement.sharded, width, ranks, device)
        for number, table in enumerate(placement.tables):
            # Uniform within 1 / sqrt(rows), as in DLRM's own code.
            limit, own_seed = table.rows**-0.5, seed * 1000 + number
            if table.is_sharded:
                self.sharded.fill(table.name, limit=limit, seed=own_seed)
            else:
                place = slice(self.first[table.name], self.first[table.name] + table.rows)
                every = torch.arange(table.rows, device=device)
                first_values(every, width, limit=limit, seed=own_seed, out_RD=self.weight.data[place])

    def forward(self, ids: Mapping[str, Tensor]) -> Tensor:
        """Indices by feature, of shape (B,) or (B, L), to vectors of shape (B, F, D), in the order of `ids`.

        A list becomes the mean of its values, padding left out; an empty one zeros.
        """
        spaces: dict[bool, list[Tensor]] = {False: [], True: []}
        for feature, index in ids.items():
            is_sharded = self.tables[feature] in self.sharded.first
            first = (self.sharded.first if is_sharded else self.first)[self.tables[feature]]
            spaces[is_sharded].append((index.long() + first).flatten())
        found = {is_sharded: self._look_up(parts, is_sharded=is_sharded) for is_sharded, parts in spaces.items()}
        vectors = []
        for feature, index in ids.items():
            of_feature = next(found[self.tables[feature] in self.sharded.first])
            if index.dim() == 1:
                vectors.append(of_feature)
            else:
                held_BL1 = (index != PADDING_IDX).unsqueeze(-1).to(of_feature.dtype)
                summed_BD = (of_feature.view(*index.shape, self.width) * held_BL1).sum(1)
                vectors.append(summed_BD / held_BL1.sum(1).clamp(min=1))
        return torch.stack(vectors, dim=1)

    def _look_up(self, parts: list[Tensor], *, is_sharded: bool) -> Any:
        """An iterator over the vectors of each part."""
        if not parts:
            return iter(())
        every = torch.cat(parts)
        if is_sharded:
            vectors = self.sharded.look_up(every, learns=self.training and torch.is_grad_enabled())
        else:
            vectors = F.embedding(every, self.weight)
        return iter(vectors.split([part.shape[0] for part in parts]))

    @torch.no_grad()
    def update(self, learning_rate: float, rule: RowRule = adagrad_) -> None:
        """One step with the gradients that the last backward passes left; collective."""
        if self.weight.grad is not None:
            rule(self.weight.data, self.squares, self.weight.grad, learning_rate=learning_rate, eps=_EPS)
        self.sharded.update(learning_rate=learning_rate, eps=_EPS, rule=rule)

    def held(self, name: str) -> HeldRows:
        """The rows of a table that this rank holds, as views: what is put into them stays."""
        ranks = self.sharded.ranks
        if name in self.sharded.first:
            place, _ = self.sharded.own(name)
            return HeldRows(self.sharded.weight[place], self.sharded.squares[place], ranks.rank, ranks.size)
        place = slice(self.first[name], self.first[name] + self.placement.replicated[name])
        return HeldRows(self.weight.data[place], self.squares[place], 0, 1)

    def _save_to_state_dict(self, *_: Any, **__: Any) -> None:
        """Nothing: see the class."""

    def _load_from_state_dict(self, *_: Any, **__: Any) -> None:
        """Nothing: see the class."""
