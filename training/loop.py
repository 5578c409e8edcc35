"""The training loop: epochs over the feed, evaluated, checkpointed and stopped early, with a ledger for each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from schemas.bundle import SplitMetrics
from schemas.errors import UserError
from schemas.ledger import ROW_ID_MODULUS, check_rows_seen
from schemas.snapshot import Snapshot
from training.batch import Batch
from training.checkpoint import Progress
from training.feed import Feed
from training.optimizers import Optimizers
from training.ranks import GradientSum, Ranks
from training.reader import open_part
from training.recipe import Recipe
from training.run_folder import RunFolder
from training.task import Task

_SECONDS_BETWEEN_PROGRESS_LINES = 10.0


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

    def train(self, run: RunFolder) -> Progress:
        """Train until the epochs or the patience are spent, going on from the run's last checkpoint."""
        model = self.task.model
        optimizers = Optimizers(model, self.recipe.optimizer)
        progress = run.checkpoints.resume(model, optimizers.dense)
        self._agree_on(progress, run)
        self.ranks.start_alike(model)
        gradients = self.ranks.summing(model)
        feed = self.feed("train", ("row_id", *self.task.columns))
        leads = self.ranks.rank == 0
        with ExitStack() as stack:
            if leads:
                run.keep_metrics(progress.epochs_done)
                board = stack.enter_context(SummaryWriter(str(run.path / "tensorboard")))
            while not progress.is_over(epochs=self.recipe.epochs, patience=self.recipe.patience):
                epoch = progress.epochs_done
                result = self.train_epoch(feed, optimizers, gradients, epoch)
                valid = self.evaluate("valid")
                value = self.task.chosen(valid)
                if math.isnan(value):
                    raise UserError(
                        f"valid has no {self.recipe.chosen_by}: its {valid.num_rows:,} rows are too few, or their "
                        "labels all of one class. Give chosen_by another metric, or prepare with a larger valid."
                    )
                progress = progress.with_epoch(epoch, value if self.task.more_is_better else -value)
                self._report(epoch, result, valid, is_best=progress.best_epoch == epoch)
                if leads:
                    run.append_metrics({"epoch": epoch, **asdict(result), "valid": valid.model_dump()})
                    for name, number in {"loss": result.loss, **self.task.scalars(valid)}.items():
                        board.add_scalar(name, number, epoch)
                run.checkpoints.save(model, optimizers.dense, progress, self.ranks)
        return progress

    def _agree_on(self, progress: Progress, run: RunFolder) -> None:
        """Every rank reads the checkpoint itself, and so the optimizer's state; those of a host that lacks it would
        wait for steps that the others have done."""
        epochs = self.ranks.gather(np.array([progress.epochs_done]), "epochs_done")
        if len({*epochs.tolist()}) > 1:
            raise UserError(
                f"the ranks found different checkpoints in {run.path} (epochs done: {epochs.tolist()}): "
                "give --run a folder that all hosts share."
            )

    def train_epoch(self, feed: Feed, optimizers: Optimizers, gradients: GradientSum, epoch: int) -> EpochResult:
        """One pass over the feed; raises LedgerError unless the ranks together saw each row of train once."""
        self.task.model.train()
        began = time.monotonic()
        totals = torch.zeros(3, dtype=torch.float64)  # loss, rows, row ids (each sum below 2 ** 53: exact)
        for batch in self._with_progress(feed, epoch):
            # All a rank draws at random (dropout) depends on its place in the run alone: a resumed run draws the same.
            torch.manual_seed(_seed_of(self.recipe.seed, epoch, batch.step, self.ranks.rank))
            moved = batch.to(self.device)
            optimizers.zero_grad()
            loss = self.task.loss_sum(moved, epoch)
            # A share of the global mean: summed over the ranks this is the gradient of one large batch.
            (loss / batch.global_rows).backward()
            gradients.wait()
            optimizers.step()
            totals[0] += float(loss.detach())
            totals[1] += batch.num_rows
            totals[2] = (totals[2] + float((batch["row_id"] % ROW_ID_MODULUS).sum() % ROW_ID_MODULUS)) % ROW_ID_MODULUS
        loss_sum, rows, row_ids = (float(total) for total in self.ranks.sum(totals, "epoch_totals"))
        check_rows_seen(
            "train",
            expected_rows=self.snapshot.manifest.rows("train"),
            rows=int(rows),
            expected_id_sum=self.snapshot.manifest.row_id_sums["train"],
            id_sum=int(row_ids) % ROW_ID_MODULUS,
        )
        return EpochResult(loss=loss_sum / rows, rows=int(rows), seconds=round(time.monotonic() - began, 3))

    def evaluate(self, split: str, task: Task | None = None) -> SplitMetrics:
        """Metrics of a split, of what is trained or of another; raises LedgerError unless every row was judged."""
        task = task or self.task
        task.model.eval()
        feed = self.feed(split, task.held_out_columns, shuffle=False)
        result = task.evaluate(batch.to(self.device) for batch in feed)
        check_rows_seen(
            split,
            expected_rows=self.snapshot.manifest.rows(split),
            rows=result.num_rows,
            expected_id_sum=self.snapshot.manifest.row_id_sums[split],
            id_sum=result.row_id_sum,
        )
        return result

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
        feed.set_epoch(epoch)
        num_steps, began = len(feed), time.monotonic()
        last_said = began
        for batch in feed:
            yield batch
            now = time.monotonic()
            if self.ranks.rank == 0 and now - last_said > _SECONDS_BETWEEN_PROGRESS_LINES:
                last_said = now
                done = (batch.step + 1) / num_steps
                left = (now - began) * (1 - done) / done
                self.say(f"epoch {epoch}: step {batch.step + 1} of {num_steps} ({done:.0%}), {left:.0f} s left")

    def _report(self, epoch: int, result: EpochResult, valid: SplitMetrics, *, is_best: bool) -> None:
        chosen, best = self.recipe.chosen_by, " (best)" if is_best else ""
        speed = result.rows / result.seconds
        self.say(
            f"epoch {epoch}: loss {result.loss:.4f}, valid {chosen} {self.task.chosen(valid):.4f}{best}, "
            f"{result.rows:,} rows in {result.seconds:.1f} s ({speed:,.0f} rows/s)"
        )


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
