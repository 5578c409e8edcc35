"""Tables shared out over the ranks by rows: row i of a table lies on rank i modulo the number of ranks.

A step's look-ups: the batch's rows, each once, travel as numbers to the ranks that hold them, the vectors come back,
and after the backward pass the gradients go the same way.

Legend: I ids of a batch, U different rows among them, A rows that other ranks asked for, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.embeddings.rows import RowRule, adagrad_, first_values
from training.ranks import Ranks


@dataclass
class _Lookup:
    """What must be known of a look-up once its gradient is there."""

    rows_sent: list[int]
    asked: Tensor
    """Rows of this rank that were asked for, shape (A,)."""
    vectors: Tensor
    """What came back, shape (U, D); its gradient is what the rows learn from."""


class ShardedTables(nn.Module):
    """Several tables of one width in one space of rows; each begins at a multiple of the number of ranks.

    So row i of a table that begins at b is row b + i of the space, lies on rank i % ranks, and is its row
    (b + i) // ranks: every rank holds as many rows. Look-ups and updates are collective, also for ranks without ids.
    """

    def __init__(self, rows: Mapping[str, int], width: int, ranks: Ranks, device: torch.device) -> None:
        super().__init__()
        self.rows, self.width, self.ranks = dict(rows), width, ranks
        self.first: dict[str, int] = {}
        total = 0
        for name, count in rows.items():
            self.first[name] = total
            total += -(-count // ranks.size) * ranks.size
        self.rows_per_rank = total // ranks.size
        # Buffers, so that they follow the model to its device; no part of its state, which every rank has alike.
        self.weight: Tensor
        self.squares: Tensor
        self.register_buffer("weight", torch.zeros(self.rows_per_rank, width, device=device), persistent=False)
        self.register_buffer("squares", torch.zeros(self.rows_per_rank, device=device), persistent=False)
        self._pending: list[_Lookup] = []

    def own(self, name: str) -> tuple[slice, Tensor]:
        """This rank's share of a table: where it lies in `weight`, and which rows of the table these are."""
        start = self.first[name] // self.ranks.size
        first = min(self.ranks.rank, self.rows[name])  # a table may have fewer rows than there are ranks
        numbers = torch.arange(first, self.rows[name], self.ranks.size, device=self.weight.device)
        return slice(start, start + len(numbers)), numbers

    def fill(self, name: str, *, limit: float, seed: int) -> None:
        """First values of a table; they depend on seed and row alone."""
        place, numbers = self.own(name)
        first_values(numbers, self.width, limit=limit, seed=seed, out_RD=self.weight[place])

    def look_up(self, ids_I: Tensor, *, learns: bool) -> Tensor:
        """Vectors of rows of the space, shape (I, D); with `learns` their gradient is kept for `update`."""
        size, per_rank = self.ranks.size, self.rows_per_rank
        # Ordered by owner, so that what goes to a rank lies together.
        keys_U, inverse_I = torch.unique(ids_I % size * per_rank + ids_I // size, return_inverse=True)
        owners = torch.arange(size + 1, device=keys_U.device) * per_rank
        rows_sent = torch.searchsorted(keys_U, owners).diff().tolist()
        asked_A, rows_asked = self.ranks.exchange(keys_U % per_rank, rows_sent, "rows_wanted")
        vectors_UD, _ = self.ranks.exchange(self.weight[asked_A], rows_asked, "rows_given")
        if learns:
            vectors_UD.requires_grad_()
            self._pending.append(_Lookup(rows_sent, asked_A, vectors_UD))
        return vectors_UD[inverse_I]

    def update(self, *, learning_rate: float, eps: float, rule: RowRule = adagrad_) -> None:
        """Bring the gradients of all look-ups since the last update to their rows, and take one step."""
        pending, self._pending = self._pending, []
        came: list[tuple[Tensor, Tensor]] = []
        for one in pending:
            gradient_UD = one.vectors.grad
            if gradient_UD is None:  # a rank without rows in this step
                gradient_UD = torch.zeros_like(one.vectors)
            gradient_AD, _ = self.ranks.exchange(gradient_UD, one.rows_sent, "row_gradients")
            came.append((one.asked, gradient_AD))
        if not came:
            return
        rows_A = torch.cat([rows for rows, _ in came])
        gradient_AD = torch.cat([gradient for _, gradient in came])
        if self.ranks.size > 1 or len(came) > 1:  # else every row stands there once
            rows_A, inverse = torch.unique(rows_A, return_inverse=True)
            summed = gradient_AD.new_zeros(len(rows_A), self.width)
            gradient_AD = summed.index_add_(0, inverse, gradient_AD)
        weight, squares = self.weight[rows_A], self.squares[rows_A]
        rule(weight, squares, gradient_AD, learning_rate=learning_rate, eps=eps)
        self.weight[rows_A], self.squares[rows_A] = weight, squares

    def drop_gradients(self) -> None:
        self._pending = []
