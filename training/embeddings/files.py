"""Embedding tables on disk: one file a rank, with each table's rows i where i modulo the ranks is the rank.

So all ranks write at once, no rank ever holds more than its share, and any number of ranks can read them again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from schemas.errors import SnapshotDamaged
from training.embeddings.tables import EmbeddingTables, HeldRows
from training.ranks import Ranks

_NAME = re.compile(r"^embeddings-(\d{5})-of-(\d{5})\.safetensors$")
_ROWS_AT_ONCE = 1 << 20


def tables_of(model: nn.Module) -> list[EmbeddingTables]:
    return [module for module in model.modules() if isinstance(module, EmbeddingTables)]


def save_tables(folder: Path, model: nn.Module, ranks: Ranks) -> None:
    """Write this rank's share of every table, with the optimizer's memory; nothing for a model without tables."""
    content = {}
    for tables in tables_of(model):
        for table in tables.placement.tables:
            held = tables.held(table.name)
            # What every rank holds whole is parted here, so that no rank writes what another does.
            part = slice(None) if held.step == ranks.size else slice(ranks.rank, None, ranks.size)
            content[f"{table.name}.weight"] = held.weight[part].cpu().contiguous()
            content[f"{table.name}.squares"] = held.squares[part].cpu().contiguous()
    if content:
        save_file(content, folder / f"embeddings-{ranks.rank:05d}-of-{ranks.size:05d}.safetensors")


def load_tables(folder: Path, model: nn.Module) -> None:
    """Fill the rows that this rank holds, whatever number of ranks wrote them.

    Raises SnapshotDamaged where a rank's file or a table is missing, or has another number of rows.
    """
    found = {path: match for path in sorted(folder.glob("embeddings-*")) if (match := _NAME.match(path.name))}
    for tables in tables_of(model):
        missing = {table.name: table.rows for table in tables.placement.tables}
        for path, match in found.items():
            rank, size = int(match[1]), int(match[2])
            with safe_open(path, framework="pt") as file:
                for table in tables.placement.tables:
                    missing[table.name] -= _fill(tables.held(table.name), file, table.name, rank, size, path)
        wrong = [name for name, rows in missing.items() if rows]
        if wrong:
            raise SnapshotDamaged(f"{folder}: the rows of the embedding table {wrong[0]!r} are not all there.")


def table_files(folder: Path) -> Iterable[Path]:
    return (path for path in sorted(folder.glob("embeddings-*")) if _NAME.match(path.name))


def _fill(held: HeldRows, file: safe_open, name: str, rank: int, size: int, path: Path) -> int:
    """Take over what a file of `rank` of `size` has of the rows held; give the number of rows in the file."""
    if f"{name}.weight" not in file.keys():  # noqa: SIM118  (no mapping)
        raise SnapshotDamaged(f"{path} has no embedding table {name!r}.")
    weight, squares = file.get_slice(f"{name}.weight"), file.get_slice(f"{name}.squares")
    count, width = weight.get_shape()
    if width != held.weight.shape[1]:
        raise SnapshotDamaged(f"{path}: vectors of {name!r} have {width} numbers, the model's {held.weight.shape[1]}.")
    for start in range(0, count, _ROWS_AT_ONCE):
        stop = min(count, start + _ROWS_AT_ONCE)
        rows: Tensor = torch.arange(start, stop) * size + rank
        mine = rows % held.step == held.first
        places = ((rows[mine] - held.first) // held.step).to(held.weight.device)
        held.weight[places] = weight[start:stop][mine].to(held.weight.device)
        held.squares[places] = squares[start:stop][mine].to(held.squares.device)
    return int(count)
