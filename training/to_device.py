"""Blocks on their way to a GPU: page-locked memory, and copies that run while the GPU works on the block before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from training.batch import Column, Ragged
from training.blocks import Allocate, Block


def allocator(device: torch.device) -> Allocate:
    """Where blocks are gathered: page-locked memory when they go to a GPU, which torch keeps and hands out again."""
    pinned = device.type == "cuda"
    return lambda shape, dtype: torch.empty(shape, dtype=dtype, pin_memory=pinned)


@dataclass(frozen=True, kw_only=True)
class _OnItsWay(Block):
    """A block whose copy was begun on a stream of its own; whoever takes its batches waits for the copy on the GPU."""

    device: torch.device
    copied: torch.cuda.Event

    def batches(self) -> Iterator[dict[str, Column]]:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(self.copied)
        for column in self.columns.values():
            for tensor in (column.values, column.offsets) if isinstance(column, Ragged) else (column,):
                tensor.record_stream(current)  # its memory is given away again only after this stream's work
        yield from super().batches()


def moved(blocks: Iterator[Block], device: torch.device) -> Iterator[Block]:
    """The blocks on `device`; on the CPU the very same."""
    if device.type != "cuda":
        yield from blocks
        return
    stream = torch.cuda.Stream(device)
    for block in blocks:
        columns: dict[str, Column] = {}
        copied = torch.cuda.Event()
        with torch.cuda.stream(stream):
            for name, column in block.columns.items():
                pinned = column.pin_memory() if isinstance(column, Ragged) else column  # tensors were made so
                columns[name] = pinned.to(device, non_blocking=True)
            copied.record(stream)
        yield _OnItsWay(
            first_step=block.first_step,
            num_steps=block.num_steps,
            batch_rows=block.batch_rows,
            columns=columns,
            device=device,
            copied=copied,
        )
