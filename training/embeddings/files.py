"""Embedding tables on disk: one file a rank, with each table's rows i where i modulo the ranks is the rank.

So all ranks write at once, no rank ever holds more than its share, and any number of ranks can read them again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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


def table_share(model: nn.Module, ranks: Ranks, *, copy: bool = False) -> dict[str, Tensor]:
    """This rank's share of every table, with the optimizer's memory; nothing for a model without tables.

    In main memory; a copy if asked, else where possible the tables' own memory.
    """
    content = {}
    for tables in tables_of(model):
        for table in tables.placement.tables:
            held = tables.held(table.name)
            # What every rank holds whole is parted here, so that no rank writes what another does.
            part = slice(None) if held.step == ranks.size else slice(ranks.rank, None, ranks.size)
            for name, values in (("weight", held.weight), ("squares", held.squares)):
                content[f"{table.name}.{name}"] = values[part].to("cpu", copy=copy).contiguous()
    return content


def table_file(ranks: Ranks, rank: int | None = None) -> str:
    """The name of a rank's file, of this one's if none is named."""
    return f"embeddings-{ranks.rank if rank is None else rank:05d}-of-{ranks.size:05d}.safetensors"


def save_tables(folder: Path, model: nn.Module, ranks: Ranks) -> None:
    """Write this rank's share of every table; nothing for a model without tables."""
    if share := table_share(model, ranks):
        save_file(share, folder / table_file(ranks))


def load_tables(folder: Path, model: nn.Module) -> None:
    """Fill the rows that this rank holds, whatever number of ranks wrote them.

    Raises SnapshotDamaged where a rank's file or a table is missing, or has another number of rows.
    """
    for tables in tables_of(model):
        rows = {table.name: table.rows for table in tables.placement.tables}
        _fill_from_every_rank(folder, tables, rows, {})


def table_files(folder: Path) -> Iterable[Path]:
    return (path for path in sorted(folder.glob("embeddings-*")) if _NAME.match(path.name))


def take_over_rows(folder: Path, model: nn.Module, new_of_old: Mapping[str, Tensor]) -> None:
    """Fill the rows that this rank holds from another generation's tables, with the optimizer's memory.

    Row i of the table `name` there is row new_of_old[name][i] here, or is left out where that is -1. Rows that nothing
    is taken over for stay as they are. Raises SnapshotDamaged as `load_tables` does.
    """
    rows = {name: len(places) for name, places in new_of_old.items()}
    for tables in tables_of(model):
        _fill_from_every_rank(folder, tables, rows, new_of_old)


def _fill_from_every_rank(
    folder: Path, tables: EmbeddingTables, rows: Mapping[str, int], new_of_old: Mapping[str, Tensor]
) -> None:
    """From the files that all ranks wrote, which together have `rows` of each table."""
    missing = dict(rows)
    found = {path: match for path in sorted(folder.glob("embeddings-*")) if (match := _NAME.match(path.name))}
    for path, match in found.items():
        rank, size = int(match[1]), int(match[2])
        with safe_open(path, framework="pt") as file:
            for name in rows:
                missing[name] -= _fill(tables.held(name), file, name, rank, size, path, new_of_old.get(name))
    wrong = [name for name, count in missing.items() if count]
    if wrong:
        raise SnapshotDamaged(f"{folder}: the rows of the embedding table {wrong[0]!r} are not all there.")


def _fill(
    held: HeldRows, file: safe_open, name: str, rank: int, size: int, path: Path, new_of_old: Tensor | None = None
) -> int:
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
        if new_of_old is not None:
            if int(rows[-1]) >= len(new_of_old):
                raise SnapshotDamaged(f"{path}: the embedding table {name!r} has more rows than its vocabulary.")
            rows = new_of_old[rows]
        mine = (rows >= 0) & (rows % held.step == held.first)
        places = ((rows[mine] - held.first) // held.step).to(held.weight.device)
        held.weight[places] = weight[start:stop][mine].to(held.weight.device)
        held.squares[places] = squares[start:stop][mine].to(held.squares.device)
    return int(count)
