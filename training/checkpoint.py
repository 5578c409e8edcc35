"""Checkpoints: weights as safetensors, the rest loadable without unpickling; each appears whole or not at all.

They are written while training goes on. No exchange between ranks takes part in that: each rank writes its file of the
embedding tables into one draft, and rank 0, when all are there, gives the draft its name.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from schemas.errors import CheckpointNotWritten, UserError
from training.embeddings.files import load_tables, table_file, table_share
from training.in_background import Abandoned, InBackground, Signals
from training.ranks import Ranks

WEIGHTS, OPTIMIZER, PROGRESS = "model.safetensors", "optimizer.pt", "progress.json"
_POLL_S = 0.02


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

    def with_epoch(self, epoch: int, value: float, *, keep: Literal["best", "last"] = "best") -> Progress:
        if keep == "last" or value > self.best_value:
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


def load_weights(path: Path, model: nn.Module) -> None:
    model.load_state_dict(load_file(path))


_NAME = re.compile(r"^epoch-(\d{5})(?:-step-(\d{9}))?$")


def _place(name: re.Match[str]) -> tuple[int, int]:
    """Epochs done and steps of the next one, of a checkpoint by its name."""
    return (int(name[1]) + 1, 0) if name[2] is None else (int(name[1]), int(name[2]))


@dataclass(frozen=True, kw_only=True)
class KeptCheckpoints:
    """Which checkpoints stay, beside the best epoch's, and how they are written."""

    newest: int = 1
    every_epochs: int = 0
    """Those after every so many epochs stay for good; 0 for none."""
    in_background: bool = True
    """Written while training goes on, from a copy of this rank's weights in main memory; else training waits."""

    def stays(self, name: str) -> bool:
        """Whether a checkpoint stays for good."""
        found = _NAME.match(name)
        assert found is not None
        epochs, steps = _place(found)
        return bool(self.every_epochs) and steps == 0 and epochs % self.every_epochs == 0


class Checkpoints:
    """The checkpoints of a run: the last ones, to go on from, and the best epoch's, to serve."""

    def __init__(self, folder: Path, kept: KeptCheckpoints | None = None) -> None:
        self.folder, self.kept = folder, kept or KeptCheckpoints()
        self._writing = InBackground()
        self._attempt = 0

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, ranks: Ranks) -> None:
        """Begin to write a checkpoint, once the one before is written; all ranks call this.

        After it those that the policy does not keep are removed.
        """
        self._finish(ranks)
        copies, leads = self.kept.in_background, ranks.rank == 0
        share = table_share(model, ranks, copy=copies)
        weights = {name: _in_memory(value, copy=copies) for name, value in model.state_dict().items()} if leads else {}
        state = _in_memory(optimizer.state_dict(), copy=copies) if leads else {}
        draft = self.folder / f".draft-{progress.name}-{self._attempt:x}"

        def write(signals: Signals) -> None:
            try:
                if share or leads:
                    draft.mkdir(parents=True, exist_ok=True)
                if share:
                    _appearing_whole(draft / table_file(ranks), share)
                if leads:
                    _appearing_whole(draft / WEIGHTS, weights)
                    torch.save(state, draft / OPTIMIZER)
                    write_json(draft / PROGRESS, progress.model_dump())
                signals.half_done.set()
                if leads:
                    if share:
                        _wait_for([draft / table_file(ranks, rank) for rank in range(ranks.size)], signals)
                    self._publish(draft, progress)
            except (OSError, RuntimeError, SafetensorError) as error:  # torch says RuntimeError of a full disk
                raise CheckpointNotWritten(
                    f"rank {ranks.rank} cannot write the checkpoint {draft}: {error}. Make room, or mend what is "
                    "wrong; the same command goes on from the last one."
                ) from error

        self._writing.begin(write)
        if not copies:
            self._finish(ranks)

    def settle(self, ranks: Ranks) -> None:
        """Wait until the last checkpoint stands, on every rank; raises CheckpointNotWritten where it could not be."""
        self._finish(ranks)
        ranks.sum(torch.zeros(1), "checkpoint_stands")

    def _finish(self, ranks: Ranks) -> None:
        """Wait for the checkpoint that is being written, if one is; collective.

        Ranks meet in an exchange before they wait for each other's files: it ends with an error where one has died.
        """
        if not self._writing.is_begun:
            return
        error = self._writing.wait_for_half()
        failed = int(ranks.sum(torch.tensor([0 if error is None else 1]), "shares_written"))
        if failed and error is None:
            self.abandon()
            raise UserError(f"{failed} rank(s) could not write their share of a checkpoint; they say why.")
        self._writing.settle()

    def abandon(self) -> None:
        """Leave a checkpoint that is being written: its ranks are not what they were."""
        self._writing.abandon()

    def _publish(self, draft: Path, progress: Progress) -> None:
        for file in draft.iterdir():
            with file.open("rb") as content:
                os.fsync(content.fileno())
        target = self.folder / progress.name
        if target.exists():  # left by a run that died between this rename and its clean-up, and trained again
            shutil.rmtree(target)
        draft.rename(target)
        newest = self._by_age()[-self.kept.newest :]
        for folder in self._by_age():
            if folder not in (*newest, self._of(progress.best_epoch)) and not self.kept.stays(folder.name):
                shutil.rmtree(folder)

    def _by_age(self) -> list[Path]:
        found = {path: match for path in self.folder.glob("epoch-*") if (match := _NAME.match(path.name))}
        return sorted(found, key=lambda path: _place(found[path]))

    def last(self) -> Path | None:
        """The newest checkpoint, or None before the first."""
        found = self._by_age()
        return found[-1] if found else None

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> Progress:
        """Load the last checkpoint, if there is one, and say where training stands; all ranks call this."""
        if ranks.rank == 0:
            for draft in self.folder.glob(".draft-*"):  # of a run that died while it wrote
                shutil.rmtree(draft)
        # A name of its own for what these ranks will write: files of an earlier attempt must never be taken for theirs.
        number = secrets.randbits(48) if ranks.rank == 0 else 0
        self._attempt = int(ranks.sum(torch.tensor([number]), "attempt"))
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


def _in_memory(value: Any, *, copy: bool) -> Any:
    """The tensors of a state in main memory; copies, which training does not change, if asked."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=copy).contiguous()
    if isinstance(value, Mapping):
        return {key: _in_memory(inner, copy=copy) for key, inner in value.items()}
    if isinstance(value, list):
        return [_in_memory(inner, copy=copy) for inner in value]
    return value


def _appearing_whole(path: Path, tensors: dict[str, Tensor]) -> None:
    draft = path.with_name(f".{path.name}")
    save_file(tensors, draft)
    draft.rename(path)


def _wait_for(files: list[Path], signals: Signals) -> None:
    """Until the other ranks' files are there, or nobody wants them any longer."""
    while not all(file.exists() for file in files):
        if signals.unwanted.is_set():
            raise Abandoned
        time.sleep(_POLL_S)
