"""The training loop: epochs over the feed, evaluated, checkpointed and stopped early, with a ledger for each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from schemas.bundle import SplitMetrics
from schemas.errors import UserError
from schemas.ledger import ROW_ID_MODULUS, check_rows_seen
from schemas.snapshot import Snapshot
from training.batch import Batch
from training.checkpoint import Checkpoints, EpochTotals, Progress
from training.curves import Curves
from training.diagnosis import Diagnosis, diagnose
from training.feed import Feed
from training.models.batch_norm import average_statistics
from training.optimizers import Optimizers
from training.ranks import Ranks, RanksChanged
from training.reader import open_part
from training.recipe import Recipe
from training.run_folder import RunFolder
from training.signs import Units
from training.step import Stepper
from training.step_clock import TurnTo
from training.task import Task

_SECONDS_BETWEEN_PROGRESS_LINES = 10.0

Trace = Callable[[int, Batch, float], None]
"""Epoch, batch, and its loss summed over the rank's rows."""


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """One epoch of training: its mean loss over all rows, its rows, and its seconds."""

    loss: float
    rows: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A task, its data and its ranks."""

    task: Task
    snapshot: Snapshot
    recipe: Recipe
    ranks: Ranks
    device: torch.device
    say: Callable[[str], None]
    checkpoint_every: int = 0
    """Steps between checkpoints within an epoch; 0 writes those after epochs alone."""
    trace: Trace | None = None
    """Told of every batch of train that was learned from."""
    note: Callable[..., None] = lambda *_, **__: None
    """Told what the rank turns to; the watchdog's `does`."""
    tensorboard: bool = True

    def train(self, run: RunFolder) -> Progress:
        """Train until the epochs or the patience are spent, going on from the run's last checkpoint."""
        model, feed = self.task.model, self.feed("train", ("row_id", *self.task.columns))
        stepper = self.stepper()
        progress = run.checkpoints.resume(model, stepper.optimizers.dense, self.ranks)
        self._agree_on(progress, run)
        self.ranks.start_alike(model)
        leads = self.ranks.rank == 0
        with ExitStack() as stack:
            stack.callback(run.checkpoints.abandon)  # after an error: its writing would wait for other ranks
            if leads:
                past = run.keep_metrics(progress.epochs_done)
                curves = stack.enter_context(closing(Curves(run.path / "tensorboard" if self.tensorboard else None)))
            while not progress.is_over(epochs=self.recipe.epochs, patience=self.recipe.patience):
                epoch = progress.epochs_done
                result = self.train_epoch(feed, stepper, progress, run.checkpoints)
                units = Units(model)
                with units.watched():
                    valid = self.evaluate("valid")
                signs = diagnose(result.loss, stepper.signs.taken(), units, model, self.ranks)
                value = self.task.chosen(valid)
                if math.isnan(value):
                    raise UserError(
                        f"valid has no {self.recipe.chosen_by}: its {valid.num_rows:,} rows are too few, or their "
                        "labels all of one class. Give chosen_by another metric, or prepare with a larger valid."
                    )
                progress = progress.with_epoch(
                    epoch, value if self.task.more_is_better else -value, keep=self.recipe.keep
                )
                is_best = self.recipe.keep == "best" and progress.best_epoch == epoch
                self._report(epoch, result, valid, is_best=is_best)
                if leads:
                    self._warn(epoch, signs, past)
                    found = {"epoch": epoch, **asdict(result), "chosen": value, "valid": valid.model_dump()}
                    past.append({**found, "diagnosis": signs.scalars()})
                    run.append_metrics(past[-1])
                    of_signs = {f"diagnosis/{name}": number for name, number in signs.scalars().items()}
                    curves.add({"loss": result.loss, **self.task.scalars(valid), **of_signs}, epoch)
                self._save(progress, stepper, run.checkpoints)
            run.checkpoints.settle(self.ranks)
        return progress

    def train_epoch(
        self, feed: Feed, stepper: Stepper, progress: Progress, checkpoints: Checkpoints | None = None
    ) -> EpochResult:
        """The epoch, or what is left of it; raises LedgerError unless the ranks together saw each row of train once."""
        self.task.model.train()
        epoch, steps = progress.epochs_done, progress.steps
        if frozen := stepper.optimizers.begin_epoch(epoch):
            self.say(f"epoch {epoch}: frozen are {', '.join(frozen)}")
        if progress.feed is None:
            feed.set_epoch(epoch)
        else:
            feed.load_state_dict(progress.feed)
            self.say(f"epoch {epoch} goes on after {progress.totals.rows:,} rows")
        began = time.monotonic() - progress.totals.seconds
        mine = EpochTotals()
        # By rows and not by steps: a run that goes on may have had other ranks.
        first = epoch * self._steps_per_epoch + progress.totals.rows // self._rows_per_step - steps
        for batches in groups(self._with_progress(feed, epoch), self.recipe.accumulate):
            losses = stepper.step(batches, epoch=epoch, number=first + steps)
            steps += 1
            for batch, loss in zip(batches, losses, strict=True):
                self._count(mine, batch, loss, epoch)
            is_due = bool(self.checkpoint_every) and steps % self.checkpoint_every == 0
            goes_on = feed.epoch == epoch and len(feed) > 0  # else the epoch's own checkpoint comes next
            if checkpoints is not None and is_due and goes_on:
                average_statistics(self.task.model, self.ranks)
                totals = self._over_ranks(mine, progress.totals, began)
                within = progress.within_epoch(steps, feed.state_dict(), totals)
                self._save(within, stepper, checkpoints)
        average_statistics(self.task.model, self.ranks)  # or each rank would judge valid by its own
        totals = self._over_ranks(mine, progress.totals, began)
        check_rows_seen(
            "train",
            expected_rows=self.snapshot.manifest.rows("train"),
            rows=totals.rows,
            expected_id_sum=self.snapshot.manifest.row_id_sums["train"],
            id_sum=totals.row_ids,
        )
        return EpochResult(loss=totals.loss_sum / totals.rows, rows=totals.rows, seconds=round(totals.seconds, 3))

    def _save(self, progress: Progress, stepper: Stepper, checkpoints: Checkpoints) -> None:
        """Begin to write a checkpoint; raises RanksChanged once it stands, where hosts have come or will go."""
        self.note("writes a checkpoint")
        checkpoints.save(self.task.model, stepper.optimizers.dense, progress, self.ranks)
        if self.ranks.hosts_changed():
            checkpoints.settle(self.ranks)
            raise RanksChanged

    def stepper(self, turn_to: TurnTo = lambda phase: None) -> Stepper:
        model, recipe = self.task.model, self.recipe
        return Stepper(
            task=self.task,
            recipe=recipe,
            ranks=self.ranks,
            device=self.device,
            optimizers=Optimizers(
                model,
                recipe.optimizer,
                total_steps=recipe.epochs * self._steps_per_epoch,
                world_size=self.ranks.size,
            ),
            gradients=self.ranks.summing(model, travels_as=getattr(torch, recipe.exchanged_as)),
            turn_to=turn_to,
        )

    @property
    def _rows_per_step(self) -> int:
        return self.recipe.batch_size_per_rank * self.ranks.size * self.recipe.accumulate

    @property
    def _steps_per_epoch(self) -> int:
        return -(-self.snapshot.manifest.rows("train") // self._rows_per_step)

    def _agree_on(self, progress: Progress, run: RunFolder) -> None:
        """Every rank reads the checkpoint itself, and so the optimizer's state; those of a host that lacks it would
        wait for steps that the others have done."""
        found = self.ranks.gather(np.array([[progress.epochs_done, progress.steps]]), "progress")
        if len({*map(tuple, found.tolist())}) > 1:
            raise UserError(
                f"the ranks found different checkpoints in {run.path} (epochs and steps: {found.tolist()}): "
                "give --run a folder that all hosts share."
            )

    def _count(self, totals: EpochTotals, batch: Batch, loss: float, epoch: int) -> None:
        totals.loss_sum += loss
        totals.rows += batch.num_rows
        totals.row_ids = (totals.row_ids + int((batch["row_id"] % ROW_ID_MODULUS).sum())) % ROW_ID_MODULUS
        if self.trace is not None:
            self.trace(epoch, batch, loss)

    def _over_ranks(self, mine: EpochTotals, before: EpochTotals, began: float) -> EpochTotals:
        """What all ranks did, and what was done before this process began. Sums of ids stay below 2 ** 53: exact."""
        sums = self.ranks.sum(torch.tensor([mine.loss_sum, mine.rows, mine.row_ids], dtype=torch.float64), "totals")
        loss_sum, rows, row_ids = sums.tolist()
        return EpochTotals(
            loss_sum=before.loss_sum + loss_sum,
            rows=before.rows + int(rows),
            row_ids=(before.row_ids + int(row_ids)) % ROW_ID_MODULUS,
            seconds=time.monotonic() - began,
        )

    def held_out(self, split: str, task: Task, more: tuple[str, ...] = ()) -> Iterator[Batch]:
        """The rank's batches of valid or test, in the same order for every task; `more` columns beside its own."""
        task.model.eval()
        columns = tuple(dict.fromkeys((*task.held_out_columns, *more)))
        return (batch.to(self.device) for batch in self.feed(split, columns, shuffle=False))

    def evaluate(self, split: str, task: Task | None = None) -> SplitMetrics:
        """Metrics of a split, of what is trained or of another; raises LedgerError unless every row was judged."""
        task = task or self.task
        return self.checked(split, task.evaluate(self.held_out(split, task)))

    def checked(self, split: str, metrics: SplitMetrics) -> SplitMetrics:
        """The metrics; LedgerError unless they are of every row of the split."""
        check_rows_seen(
            split,
            expected_rows=self.snapshot.manifest.rows(split),
            rows=metrics.num_rows,
            expected_id_sum=self.snapshot.manifest.row_id_sums[split],
            id_sum=metrics.row_id_sum,
        )
        return metrics

    def feed(self, part: str, columns: tuple[str, ...], *, shuffle: bool = True) -> Feed:
        return Feed(
            open_part(self.snapshot, part, columns=columns),
            batch_size_per_rank=self.recipe.batch_size_per_rank,
            rank=self.ranks.rank,
            world_size=self.ranks.size,
            seed=self.recipe.seed,
            shuffle=shuffle,
            device=self.device,
        )

    def _with_progress(self, feed: Feed, epoch: int) -> Iterator[Batch]:
        """The batches; on rank 0 a line now and then that says how far the epoch is."""
        num_steps, began = feed.plan().num_steps, time.monotonic()
        done_before, last_said = num_steps - len(feed), began
        self.note(f"reads the first rows of epoch {epoch}")
        for batch in feed:
            self.note(f"computes step {batch.step} of epoch {epoch}")
            yield batch
            self.note(f"reads after step {batch.step} of epoch {epoch}", rows=batch.num_rows)
            now = time.monotonic()
            if self.ranks.rank == 0 and now - last_said > _SECONDS_BETWEEN_PROGRESS_LINES:
                last_said = now
                done = (batch.step + 1) / num_steps
                left = (now - began) * (num_steps - batch.step - 1) / (batch.step + 1 - done_before)
                self.say(f"epoch {epoch}: step {batch.step + 1} of {num_steps} ({done:.0%}), {left:.0f} s left")
        self.note(f"has come to the end of its rows of epoch {epoch}")

    def _warn(self, epoch: int, signs: Diagnosis, past: Sequence[Mapping[str, Any]]) -> None:
        """Say what looks wrong, beside what the epochs before were like."""
        first = past[0].get("diagnosis", {}).get("gradient_norm_median") if past else None
        before = past[-1]["loss"] if past else None
        for line in signs.warnings(first_norm=first, loss_before=before):
            self.say(f"epoch {epoch}: warning: {line}")

    def _report(self, epoch: int, result: EpochResult, valid: SplitMetrics, *, is_best: bool) -> None:
        chosen, best = self.recipe.chosen_by, " (best)" if is_best else ""
        speed = result.rows / result.seconds
        self.say(
            f"epoch {epoch}: loss {result.loss:.4f}, valid {chosen} {self.task.chosen(valid):.4f}{best}, "
            f"{result.rows:,} rows in {result.seconds:.1f} s ({speed:,.0f} rows/s)"
        )


def groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """As many batches at a time; the last group may be smaller, on every rank alike."""
    together: list[Batch] = []
    for batch in batches:
        together.append(batch)
        if len(together) == size:
            yield together
            together = []
    if together:
        yield together
