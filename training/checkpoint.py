"""Checkpoints: weights as safetensors, the rest loadable without unpickling; each appears whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import nn

from training.embeddings.files import load_tables, save_tables, tables_of
from training.ranks import Ranks

WEIGHTS, OPTIMIZER, PROGRESS = "model.safetensors", "optimizer.pt", "progress.json"


class EpochTotals(BaseModel):
    """What the ranks together have done of an epoch."""

    model_config = ConfigDict(extra="forbid")

    loss_sum: float = 0.0
    rows: int = 0
    row_ids: int = 0
    """Sum of row ids, modulo ROW_ID_MODULUS."""
    seconds: float = 0.0


class Progress(BaseModel):
    """Where training stands: after an epoch, or within one."""

    model_config = ConfigDict(extra="forbid")

    epochs_done: int = 0
    best_epoch: int = -1
    best_value: float = float("-inf")
    steps: int = 0
    """Of the epoch under way."""
    feed: dict[str, Any] | None = None
    """Within an epoch: where the feed is."""
    totals: EpochTotals = EpochTotals()
    """Within an epoch."""

    def with_epoch(self, epoch: int, value: float) -> Progress:
        if value > self.best_value:
            return Progress(epochs_done=epoch + 1, best_epoch=epoch, best_value=value)
        return Progress(epochs_done=epoch + 1, best_epoch=self.best_epoch, best_value=self.best_value)

    def within_epoch(self, steps: int, feed: dict[str, Any], totals: EpochTotals) -> Progress:
        return self.model_copy(update={"steps": steps, "feed": feed, "totals": totals})

    @property
    def name(self) -> str:
        """Of its checkpoint: the epoch that is done, or the one under way and its steps."""
        if self.feed is None:
            return f"epoch-{self.epochs_done - 1:05d}"
        return f"epoch-{self.epochs_done:05d}-step-{self.steps:09d}"

    def is_over(self, *, epochs: int, patience: int) -> bool:
        return self.epochs_done >= epochs or self.epochs_done - 1 - self.best_epoch >= patience


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


def save_weights(path: Path, model: nn.Module) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, path)


def load_weights(path: Path, model: nn.Module) -> None:
    model.load_state_dict(load_file(path))


_NAME = re.compile(r"^epoch-(\d{5})(?:-step-(\d{9}))?$")


def _place(name: re.Match[str]) -> tuple[int, int]:
    """Epochs done and steps of the next one, of a checkpoint by its name."""
    return (int(name[1]) + 1, 0) if name[2] is None else (int(name[1]), int(name[2]))


class Checkpoints:
    """The checkpoints of a run: the last one, to go on from, and the best epoch's, to serve."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, ranks: Ranks) -> None:
        """Write a checkpoint, then let go of those that are neither the last nor the best.

        Rank 0 writes; of embedding tables every rank writes its share, so all ranks call this.
        """
        draft = self.folder / f".draft-{progress.name}"
        if ranks.rank == 0:
            if draft.exists():
                shutil.rmtree(draft)
            draft.mkdir(parents=True)
        if tables_of(model):
            ranks.sum(torch.zeros(1), "checkpoint_begun")
            save_tables(draft, model, ranks)
            ranks.sum(torch.zeros(1), "tables_written")
        if ranks.rank == 0:
            self._publish(draft, model, optimizer, progress)

    def _publish(self, draft: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        save_weights(draft / WEIGHTS, model)
        torch.save(optimizer.state_dict(), draft / OPTIMIZER)
        write_json(draft / PROGRESS, progress.model_dump())
        for file in draft.iterdir():
            with file.open("rb") as content:
                os.fsync(content.fileno())
        target = self.folder / progress.name
        if target.exists():  # left by a run that died between this rename and its clean-up, and trained again
            shutil.rmtree(target)
        draft.rename(target)
        for folder in self.folder.iterdir():
            if folder not in (target, self._of(progress.best_epoch)):
                shutil.rmtree(folder)

    def last(self) -> Path | None:
        """The newest checkpoint, or None before the first."""
        found = {path: match for path in self.folder.glob("epoch-*") if (match := _NAME.match(path.name))}
        return max(found, key=lambda path: _place(found[path])) if found else None

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """Load the last checkpoint, if there is one, and say where training stands."""
        folder = self.last()
        if folder is None:
            return Progress()
        load_weights(folder / WEIGHTS, model)
        load_tables(folder, model)
        optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu"))
        return Progress.model_validate_json((folder / PROGRESS).read_text(encoding="utf-8"))

    def best(self, progress: Progress) -> Path:
        return self._of(progress.best_epoch)

    def _of(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:05d}"
