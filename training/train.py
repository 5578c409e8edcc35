"""Train a model on a snapshot: alone, or on the ranks that horovodrun or torchrun starts."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from schemas.bundle import BundleManifest, SplitMetrics
from schemas.manifest import Parent
from schemas.programs import Parser
from schemas.snapshot import Snapshot, open_snapshot
from schemas.storage import absolute
from schemas.version import code_version, now_utc
from training.bundle import bundle_of
from training.checkpoint import KeptCheckpoints, Progress
from training.embeddings.files import tables_of
from training.loop import Trainer
from training.programs import device, run, speaker
from training.ranks import OneRank, Ranks
from training.recipe import Recipe, read_recipe
from training.run_folder import RunFolder
from training.step_trace import writer_of_steps
from training.tasks import catalogue_of, check_fits, find_vectors, fresh_model, task_of
from training.tracking import Tracking, follow, tracking_options
from training.vector_files import GivenVectors
from training.warm_start import DoesNotFit, plan_warm_start
from training.watchdog import Watchdog, WatchedRanks

STALL_LIMIT_S = 600.0


def train(
    ranks: Ranks,
    *,
    snapshot_url: str,
    recipe: Recipe,
    folder: RunFolder,
    check_only: bool,
    checkpoint_every: int = 0,
    trace: Path | None = None,
    stall_limit_s: float = STALL_LIMIT_S,
    tensorboard: bool = True,
    tracking: Tracking | None = None,
    warm_start: Path | None = None,
    or_anew: bool = False,
    item_vectors: str | None = None,
) -> None:
    """Train, and publish the bundle of the epoch that is best on valid; test is not looked at.

    With `warm_start` the first weights are those of another generation's bundle, as far as they fit; where the
    model is another, `or_anew` begins without. `item_vectors` is where vectors of the items lie as Parquet.
    """
    say = speaker("train", ranks)
    watchdog = Watchdog(folder.path / "ranks", ranks.rank, ranks.size, limit_s=stall_limit_s)
    ranks = WatchedRanks(ranks, watchdog)
    snapshot = open_snapshot(snapshot_url)
    check_fits(snapshot, recipe)
    earlier = None
    if warm_start is not None:
        try:
            earlier = plan_warm_start(warm_start, snapshot, recipe, ranks)
        except DoesNotFit as reason:  # on every rank: all read the same manifest
            if not or_anew:
                raise
            say(f"begins anew: {reason}")
    files = find_vectors(item_vectors, snapshot, recipe, ranks)
    settings = settings_of(
        snapshot,
        recipe,
        earlier.digest if earlier is not None else None,
        files.digest if files is not None else None,
    )
    folder.check(settings)
    catalogue = catalogue_of(snapshot)
    vectors = files.read(catalogue) if files is not None and catalogue is not None else None
    model = fresh_model(snapshot, catalogue, recipe, ranks, device(), vectors)
    # A run that goes on has its weights from its checkpoint, and asks for no vocabulary of an earlier generation.
    begins = earlier is not None and folder.checkpoints.last() is None and not folder.is_complete()
    matched = earlier.match(model) if earlier is not None and begins else None
    trainer = Trainer(
        task=task_of(model, snapshot, catalogue, recipe, ranks, device()),
        snapshot=snapshot,
        recipe=recipe,
        ranks=ranks,
        device=device(),
        say=say,
        checkpoint_every=checkpoint_every,
        trace=None if check_only or trace is None else writer_of_steps(trace, ranks.rank),
        note=watchdog.does,
        tensorboard=tensorboard,
    )
    trainer.feed("train", ("row_id",))  # refuses what cannot be shared out, before anything is written
    if check_only:
        return
    if tracking is not None:
        tracking.start()
    if folder.is_complete():
        say(f"{folder.path} stands already, trained with these settings on this snapshot.")
        return
    ranks.sum(torch.zeros(1), "folder_checked")  # or a slow rank finds what rank 0 has begun to write
    if ranks.rank == 0:
        snapshot.verify(checksums=False)
        folder.begin(settings)
    folder.check_shared(ranks)
    say(f"{recipe.model.name} on {snapshot.manifest.rows('train'):,} rows of {snapshot.url}, {ranks.size} rank(s)")
    if vectors is not None:
        say(vectors.line())
    for tables in tables_of(model):
        for line in tables.placement.lines():
            say(line)
    if earlier is not None and matched is not None:
        for line in earlier.fill(model, matched):
            say(line)
    with watchdog if ranks.size > 1 else nullcontext():
        progress = trainer.train(folder)
    if ranks.rank == 0:
        manifest = describe(trainer, folder, progress, settings["warm_start"], vectors)
        folder.publish_bundle(folder.checkpoints.best(progress), catalogue, manifest, snapshot)
    say(f"{recipe.keep} epoch {progress.best_epoch}: valid {recipe.chosen_by} {abs(progress.best_value):.4f}")
    say(f"published {folder.bundle}")


def settings_of(
    snapshot: Snapshot, recipe: Recipe, warm_start: str | None = None, item_vectors: str | None = None
) -> dict[str, Any]:
    """What makes a run this run: equal settings go on with it, on any number of ranks; others need another folder."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "snapshot": parent_of(snapshot).model_dump(mode="json"),
        "warm_start": warm_start,
        "item_vectors": item_vectors,
    }


def parent_of(snapshot: Snapshot) -> Parent:
    return Parent(url=snapshot.url, id=snapshot.manifest.id, digest=snapshot.manifest.digest())


def describe(
    trainer: Trainer, folder: RunFolder, progress: Progress, warm_start: str | None, vectors: GivenVectors | None
) -> BundleManifest:
    """The bundle's manifest, with the metrics of the best epoch on valid."""
    manifest = trainer.snapshot.manifest
    return BundleManifest(
        created_at=now_utc(),
        code_version=code_version(),
        recipe=trainer.recipe.model_dump(mode="json"),
        contract=manifest.contract,
        transform=trainer.snapshot.transform,
        query_grain=manifest.query_grain,
        images=manifest.images,
        snapshot=parent_of(trainer.snapshot),
        world_size=trainer.ranks.size,
        epochs=progress.epochs_done,
        best_epoch=progress.best_epoch,
        valid=SplitMetrics.model_validate(folder.metrics(progress.best_epoch)["valid"]),
        warm_start=warm_start,
        item_vectors=vectors.described() if vectors is not None else None,
    )


def main(arguments: list[str] | None = None) -> int:
    command = Parser(
        prog="python -m training.train",
        description=f"{__doc__} Example: horovodrun -np 2 --gloo python -m training.train --snapshot S --run R",
    )
    command.add_argument("--snapshot", required=True, help="folder or URL that prepare published")
    command.add_argument("--run", required=True, help="folder of the run; an interrupted run in it goes on")
    command.add_argument("--recipe", default="two_tower", help="built-in recipe, or a path ending in .yaml (two_tower)")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. optimizer.learning_rate=0.001"
    )
    command.add_argument(
        "--checkpoint-every", type=int, default=0, metavar="STEPS", help="checkpoints within an epoch, too (0: none)"
    )
    command.add_argument("--keep", type=int, default=1, metavar="N", help="newest checkpoints that stay (1)")
    command.add_argument(
        "--keep-epochs",
        type=int,
        default=0,
        metavar="K",
        help="checkpoints after every K epochs stay for good (0: none)",
    )
    command.add_argument(
        "--wait-for-checkpoints",
        action="store_true",
        help="training waits while a checkpoint is written, and needs no memory for a copy of the weights",
    )
    command.add_argument("--trace", help="folder for a line a step and rank: rows, their ids, loss")
    command.add_argument(
        "--stall-limit",
        type=float,
        default=STALL_LIMIT_S,
        metavar="SECONDS",
        help=f"how long a rank waits for others before it ends the job and says for whom ({STALL_LIMIT_S:.0f})",
    )
    tracking_options(command)
    command.add_argument("--no-tensorboard", action="store_true", help="write no curves for TensorBoard")
    command.add_argument(
        "--warm-start", metavar="RUN_OR_BUNDLE", help="begin with the weights of an earlier generation, rows by value"
    )
    command.add_argument(
        "--or-anew",
        action="store_true",
        help="with --warm-start: where the recipe's model, width or table optimizer is another, begin without it",
    )
    command.add_argument(
        "--item-vectors",
        metavar="FILE_OR_FOLDER",
        help="Parquet with item_id and vector (a list of floats, all as long): what another model knows of the items",
    )
    command.add_argument("--check-only", action="store_true", help="check settings and data, and train nothing")
    command.add_argument("--world-size", type=int, default=1, help="with --check-only: ranks to check for (1)")
    given = command.parse_args(arguments)
    if given.checkpoint_every < 0:
        command.error(f"--checkpoint-every takes 0 or more steps, not {given.checkpoint_every}")

    if given.keep < 1 or given.keep_epochs < 0:
        command.error("--keep takes 1 or more checkpoints, --keep-epochs 0 or more epochs")
    kept = KeptCheckpoints(
        newest=given.keep, every_epochs=given.keep_epochs, in_background=not given.wait_for_checkpoints
    )

    def work(ranks: Ranks) -> None:
        folder = RunFolder(Path(absolute(given.run)), kept)
        with follow(given.track, given.experiment, folder, ranks) as tracking:
            train(
                OneRank(size=given.world_size) if given.check_only else ranks,
                snapshot_url=absolute(given.snapshot),
                recipe=read_recipe(given.recipe, given.set),
                folder=folder,
                check_only=given.check_only,
                checkpoint_every=given.checkpoint_every,
                trace=Path(absolute(given.trace)) if given.trace else None,
                stall_limit_s=given.stall_limit,
                tensorboard=not given.no_tensorboard,
                tracking=tracking,
                warm_start=bundle_of(Path(absolute(given.warm_start))) if given.warm_start else None,
                or_anew=given.or_anew,
                item_vectors=absolute(given.item_vectors) if given.item_vectors else None,
            )

    return run("train", work)


if __name__ == "__main__":
    sys.exit(main())
