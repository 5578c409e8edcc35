"""Checkpoints: weights as safetensors, the rest loadable without unpickling; each appears whole or not at all."""

from __future__ import annotations

import json
import os
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


class Progress(BaseModel):
    """Where training stands after an epoch."""

    model_config = ConfigDict(extra="forbid")

    epochs_done: int = 0
    best_epoch: int = -1
    best_value: float = float("-inf")

    def with_epoch(self, epoch: int, value: float) -> Progress:
        if value > self.best_value:
            return Progress(epochs_done=epoch + 1, best_epoch=epoch, best_value=value)
        return self.model_copy(update={"epochs_done": epoch + 1})

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


class Checkpoints:
    """The checkpoints of a run: the last epoch's, to go on from, and the best one's, to serve."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, ranks: Ranks) -> None:
        """Write this epoch's checkpoint, then let go of those that are neither the last nor the best.

        Rank 0 writes; of embedding tables every rank writes its share, so all ranks call this.
        """
        epoch = progress.epochs_done - 1
        draft = self.folder / f".draft-{epoch:05d}"
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
        epoch = progress.epochs_done - 1
        save_weights(draft / WEIGHTS, model)
        torch.save(optimizer.state_dict(), draft / OPTIMIZER)
        write_json(draft / PROGRESS, progress.model_dump())
        target = self._of(epoch)
        if target.exists():  # left by a run that died between this rename and its clean-up, and trained again
            shutil.rmtree(target)
        draft.rename(target)
        for folder in self.folder.iterdir():
            if folder not in (target, self._of(progress.best_epoch)):
                shutil.rmtree(folder)

    def last(self) -> Path | None:
        """The newest checkpoint, or None before the first."""
        found = sorted(self.folder.glob("epoch-*")) if self.folder.exists() else []
        return found[-1] if found else None

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """Load the last checkpoint, if there is one, and say where training stands."""
        folder = self.last()
        if folder is None:
            return Progress()
        load_weights(folder / WEIGHTS, model)
        load_tables(folder, model)
        optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True))
        return Progress.model_validate_json((folder / PROGRESS).read_text(encoding="utf-8"))

    def best(self, progress: Progress) -> Path:
        return self._of(progress.best_epoch)

    def _of(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:05d}"
