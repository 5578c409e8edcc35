"""The training loop: epochs over the feed, evaluated, checkpointed and stopped early, with a ledger for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from schemas.ledger import ROW_ID_MODULUS, check_rows_seen
from schemas.snapshot import Snapshot
from training.batch import Batch
from training.catalogue import Catalogue
from training.checkpoint import Progress
from training.evaluation import HELD_OUT_COLUMNS, Evaluation, evaluate
from training.feed import Feed
from training.losses import ItemSampler, bpr, counted, sampled_softmax
from training.models.retriever import Retriever
from training.ranks import Ranks
from training.reader import open_part
from training.recipe import Recipe
from training.run_folder import RunFolder

_SECONDS_BETWEEN_PROGRESS_LINES = 10.0


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """One epoch of training: its mean loss over all rows, its rows, and its seconds."""

    loss: float
    rows: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A model, its data and its ranks."""

    model: nn.Module
    snapshot: Snapshot
    catalogue: Catalogue
    recipe: Recipe
    ranks: Ranks
    device: torch.device
    say: Callable[[str], None]

    @property
    def retriever(self) -> Retriever:
        return cast(Retriever, self.model)

    @cached_property
    def sampler(self) -> ItemSampler:
        counts = self.catalogue.counts.to(self.device)
        return ItemSampler(counts, self.recipe.loss.sampling_exponent, seed=self.recipe.seed)

    def train(self, run: RunFolder) -> Progress:
        """Train until the epochs or the patience are spent, going on from the run's last checkpoint."""
        base = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.recipe.optimizer.learning_rate,
            weight_decay=self.recipe.optimizer.weight_decay,
        )
        progress = run.checkpoints.resume(self.model, base)
        self.ranks.start_alike(self.model, base)
        optimizer = self.ranks.summing(base, self.model)
        feed = self.feed("train", (*self.retriever.columns, "row_id", "item_idx"))
        leads = self.ranks.rank == 0
        with ExitStack() as stack:
            if leads:
                run.keep_metrics(progress.epochs_done)
                board = stack.enter_context(SummaryWriter(str(run.path / "tensorboard")))
            while not progress.is_over(epochs=self.recipe.epochs, patience=self.recipe.patience):
                epoch = progress.epochs_done
                result = self.train_epoch(feed, optimizer, epoch)
                valid = self.evaluate("valid")
                value = valid.full[self.recipe.chosen_by]
                progress = progress.with_epoch(epoch, value)
                self._report(epoch, result, valid, is_best=progress.best_epoch == epoch)
                if leads:
                    run.append_metrics({"epoch": epoch, **asdict(result), "valid": asdict(valid)})
                    for name, number in {"loss": result.loss, **valid.full}.items():
                        board.add_scalar(name, number, epoch)
                    run.checkpoints.save(self.model, base, progress)
        return progress

    def train_epoch(self, feed: Feed, optimizer: torch.optim.Optimizer, epoch: int) -> EpochResult:
        """One pass over the feed; raises LedgerError unless the ranks together saw each row of train once."""
        self.model.train()
        began = time.monotonic()
        totals = torch.zeros(3, dtype=torch.float64)  # loss, rows, row ids (each sum below 2 ** 53: exact)
        for batch in self._with_progress(feed, epoch):
            # All a rank draws at random (dropout) depends on its place in the run alone: a resumed run draws the same.
            torch.manual_seed(_seed_of(self.recipe.seed, epoch, batch.step, self.ranks.rank))
            moved = batch.to(self.device)
            optimizer.zero_grad()
            loss = self.loss_sum(moved, epoch)
            # A share of the global mean: summed over the ranks this is the gradient of one large batch.
            (loss / batch.global_rows).backward()
            optimizer.step()
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

    def loss_sum(self, batch: Batch, epoch: int) -> Tensor:
        """The loss summed over the rank's rows; every parameter gets a gradient, even where there are none."""
        if batch.num_rows == 0:
            return torch.stack([(parameter * 0).sum() for parameter in self.model.parameters()]).sum()
        return counted(self._loss(batch, epoch), batch).sum()

    def _loss(self, batch: Batch, epoch: int) -> Tensor:
        """One value a row."""
        settings = self.recipe.loss
        if settings.name == "bpr":
            return bpr(self.retriever, batch, self.sampler, l2=settings.l2, epoch=epoch)
        return sampled_softmax(
            self.retriever,
            batch,
            self.sampler,
            num_sampled=settings.num_sampled,
            epoch=epoch,
            temperature=settings.temperature,
        )

    def evaluate(self, split: str, model: Retriever | None = None) -> Evaluation:
        """Metrics of a split, of the trained model or of another; raises LedgerError unless every row was ranked."""
        retriever = model or self.retriever
        self.model.eval()
        columns = tuple(dict.fromkeys((*retriever.columns, *HELD_OUT_COLUMNS)))
        feed = self.feed(split, columns, shuffle=False)
        result = evaluate(
            retriever,
            (batch.to(self.device) for batch in feed),
            self.ranks,
            num_items=self.catalogue.num_items,
            ks=self.recipe.ks,
            device=self.device,
        )
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

    def _report(self, epoch: int, result: EpochResult, valid: Evaluation, *, is_best: bool) -> None:
        chosen, best = self.recipe.chosen_by, " (best)" if is_best else ""
        speed = result.rows / result.seconds
        self.say(
            f"epoch {epoch}: loss {result.loss:.4f}, valid {chosen} {valid.full[chosen]:.4f}{best}, "
            f"{result.rows:,} rows in {result.seconds:.1f} s ({speed:,.0f} rows/s)"
        )


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
