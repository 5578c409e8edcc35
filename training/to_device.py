"""Blocks on their way to a GPU: page-locked memory, and copies that run while the GPU works on the block before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from training.batch import Column, Ragged
from training.blocks import Allocate, Block


def allocator(device: torch.device) -> Allocate:
    """Where blocks are gathered: page-locked memory when they go to a GPU, which torch keeps and hands out again."""
    pinned = device.type == "cuda"
    return lambda shape, dtype: torch.empty(shape, dtype=dtype, pin_memory=pinned)


@dataclass(frozen=True, kw_only=True)
class _OnItsWay(Block):
    """A block whose copy was begun on a stream of its own; whoever takes its batches waits for the copy on the GPU."""

    copied: torch.cuda.Event

    def batches(self) -> Iterator[dict[str, Column]]:
        current = torch.cuda.current_stream()
        current.wait_event(self.copied)
        for column in self.columns.values():
            for tensor in (column.values, column.offsets) if isinstance(column, Ragged) else (column,):
                tensor.record_stream(current)  # its memory is given away again only after this stream's work
        yield from super().batches()


def moved(blocks: Iterator[Block], device: torch.device) -> Iterator[Block]:
    """The blocks on `device`; on the CPU the very same."""
    if device.type == "cpu":
        yield from blocks
        return
    stream = torch.cuda.Stream(device)
    for block in blocks:
        with torch.cuda.stream(stream):
            columns: dict[str, Column] = {
                name: column.pin_memory().to(device, non_blocking=True)
                if isinstance(column, Ragged)
                else _copied(column, device)
                for name, column in block.columns.items()
            }
            copied = torch.cuda.Event()
            copied.record(stream)
        moving = replace(block, columns=columns)
        yield _OnItsWay(**{name: getattr(moving, name) for name in Block.__dataclass_fields__}, copied=copied)


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)
