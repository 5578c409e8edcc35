"""Learning from all positions of a sequence: each place of a row's history predicts the item that follows it.

Kang and McAuley 2018 (section III-E). There a user is one sequence; here every event of train is a row with its
history, so an item is learned again with every later row that still holds it. `last_rows` finds the rows that hold
each user once.

Legend: B rows of a batch, L history length, D width, P positions that count, U users.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from schemas.errors import UserError
from schemas.features import NUM_RESERVED
from schemas.snapshot import Snapshot
from schemas.storage import filesystem, join
from training.batch import Batch
from training.losses import ItemSampler, softmax
from training.models.sasrec import SASRec

MOST_SCORES = 1 << 24
"""Of positions with items, held at once: 64 MB of float32."""
_WHO_AND_WHEN = ["user_idx", "event_time_ms", "row_id"]


def following(batch: Batch) -> Tensor:
    """The item that follows each place of the history, the row's own after the newest; shape (B, L).

    Only items of the vocabulary count. The last padding is followed by the user's first item, as an empty history is
    by the row's: it counts; the padding before it is followed by more of its kind. A history that fills its window
    may have been cut, so nothing tells of its first item.
    """
    return torch.cat([batch["history"][:, 1:], batch["item_idx"].unsqueeze(1)], dim=1).long()


def loss_of_positions(
    model: SASRec, batch: Batch, following_BL: Tensor, sampler: ItemSampler, *, num_sampled: int, epoch: int,
    temperature: float, most_scores: int = MOST_SCORES,
) -> Tensor:  # fmt: skip
    """Cross-entropy of the items that follow, as in `sampled_softmax`, summed over the positions that count."""
    counts_BL = following_BL >= NUM_RESERVED
    users_PD, target_P = model.states(batch)[counts_BL] / temperature, following_BL[counts_BL]
    loss_P = softmax(
        model,
        users_PD,
        target_P,
        sampler,
        num_sampled=num_sampled,
        epoch=epoch,
        step=batch.step,
        most_scores=most_scores,
    )
    return loss_P.sum()


def only_rows(batch: Batch, kept_B: Tensor) -> Batch:
    """The rows that are kept; the global batch is said to be as large as before."""
    columns = {name: column[kept_B] for name, column in batch.columns.items() if isinstance(column, Tensor)}
    return replace(batch, columns=columns, positions=batch.positions[kept_B])


def of_last_rows(batch: Batch, last_rows_U: Tensor) -> Batch:
    """Each user's last row; a user who is not known is another one in every row."""
    user_B = batch["user_idx"].long()
    return only_rows(batch, (last_rows_U[user_B] == batch["row_id"]) | (user_B < NUM_RESERVED))


def last_rows(snapshot: Snapshot) -> Tensor:
    """By user_idx the row_id of the user's last row in train, -1 without one; ties in time go to the higher row_id.

    One pass over three columns of train, a row group at a time. UserError where train lacks one of them.
    """
    vocabulary = snapshot.transform.vocabularies.get("user")
    fs, root = filesystem(snapshot.url)
    size = vocabulary.size if vocabulary is not None else 0
    time_U, row_U = np.full(size, np.iinfo(np.int64).min), np.full(size, -1, dtype=np.int64)
    for data_file in snapshot.files("train"):
        with fs.open(join(root, data_file.path), "rb") as source:
            file = pq.ParquetFile(source)
            missing = {*_WHO_AND_WHEN} - {*file.schema_arrow.names}
            if missing or vocabulary is None:
                raise UserError(
                    f"{snapshot.url}: train has no {', '.join(sorted(missing)) or 'users'}, which loss.rows: "
                    "last_of_user needs."
                )
            for number in range(file.metadata.num_row_groups):
                table = file.read_row_group(number, columns=_WHO_AND_WHEN)
                user, time, row = (table[name].to_numpy() for name in _WHO_AND_WHEN)
                order = np.lexsort((row, time, user))
                last = order[np.append(np.flatnonzero(np.diff(user[order])), len(order) - 1)] if len(order) else order
                user, time, row = user[last], time[last], row[last]
                is_later = (time > time_U[user]) | ((time == time_U[user]) & (row > row_U[user]))
                time_U[user[is_later]], row_U[user[is_later]] = time[is_later], row[is_later]
    return torch.from_numpy(row_U)
