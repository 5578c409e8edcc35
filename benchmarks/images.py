"""An image classifier from pretrained weights beside the same network from a random start, on the same budget.

Generated images of ten digits in colour (benchmarks/digit_images.py) -> `headrace images` -> `headrace train`, each
start and seed with as many epochs, batches and the same learning rate. Epochs are chosen on valid; the table shows
test, mean and spread over seeds. The images are generated: the figures compare two starts, and say nothing of photos.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import digit_images
from pipelines import launch
from pipelines.data import DATA_SETS, fetch
from pipelines.report import read_evaluation, rows_trained_on
from schemas.errors import UserError
from schemas.programs import answering_mistakes
from schemas.snapshot import open_snapshot
from schemas.storage import absolute

WEIGHTS = "efficientnet-lite0"
METRICS = ("accuracy", "log_loss")
_POLICY = Path(__file__).with_name("digits_augmentation.yaml")
STARTS = {
    "random": ("model.pretrained=null", "model.unfreeze_every=0", "model.batch_norm=learned", "model.rate_decay=1.0"),
    "pretrained": ("model.unfreeze_every=0", "model.batch_norm=kept"),
    "pretrained, stage by stage": ("model.unfreeze_every=1", "model.batch_norm=kept"),
}


@dataclass(frozen=True)
class Outcome:
    """What a run came to on test, and the seconds of its training alone."""

    metrics: dict[str, float]
    epochs: int
    seconds: float


Outcomes = dict[str, list[Outcome]]
"""By start, in the order of the seeds."""


def outcomes(
    folder: Path, *, per_class: int, epochs: int, seeds: Sequence[int], starts: Sequence[str], ranks: int
) -> Outcomes:
    """Generate, publish, train and evaluate below `folder`; what stands is kept."""
    print(fetch(WEIGHTS, folder / WEIGHTS))
    weights = folder / WEIGHTS / next(iter(DATA_SETS[WEIGHTS].files))
    raw, snapshot = folder / f"digits-{per_class}", folder / f"snapshot-{per_class}"
    print(f"images: {10 * per_class:,} generated images in {raw}", flush=True)
    digit_images.generate(raw, per_class=per_class)
    layout = ["--size", str(digit_images.SIDE), "--split", "0.75,0.125,0.125", "--augment", str(_POLICY)]
    _ok(launch.spark_submit("images", ["--images", str(raw), "--out", str(snapshot), *layout]))
    found: Outcomes = {start: [] for start in starts}
    for seed in seeds:
        for start in starts:
            run = folder / f"run-{per_class}-{epochs}-{start.replace(', ', '-').replace(' ', '-')}-{seed}"
            settings = [f"model.pretrained={weights}", *STARTS[start], f"epochs={epochs}", f"patience={epochs}"]
            arguments = ["--snapshot", str(snapshot), "--recipe", "image_classifier", "--run", str(run)]
            arguments += [word for setting in (*settings, f"seed={seed}") for word in ("--set", setting)]
            _ok(launch.on_ranks("training.train", arguments, ranks=ranks))
            _ok(launch.on_ranks("training.evaluate", ["--run", str(run)], ranks=ranks))
            found[start].append(_outcome(run))
    return found


def _outcome(run: Path) -> Outcome:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = read_evaluation(run, "test").model.heads["label"]
    return Outcome(metrics, len(rows_trained_on(run)), sum(line["seconds"] for line in lines))


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation over the seeds, which one seed has not."""
    return round(statistics.mean(values), 4), round(statistics.stdev(values), 4) if len(values) > 1 else None


def summary(found: Outcomes) -> dict[str, dict[str, float | None]]:
    """By start: mean and spread of each metric, and the mean seconds of training."""
    shown: dict[str, dict[str, float | None]] = {}
    for start, runs in found.items():
        shown[start] = {}
        for name in METRICS:
            mean, spread = mean_and_spread([run.metrics[name] for run in runs])
            shown[start] |= {name: mean, f"{name}_spread": spread}
        shown[start]["train_s"] = round(statistics.mean(run.seconds for run in runs), 1)
    return shown


def show(found: Outcomes, title: str) -> None:
    table = Table(title=title, title_justify="left")
    for name in ("start", *METRICS, "training, s"):
        table.add_column(name, justify="left" if name == "start" else "right")
    for start, values in summary(found).items():
        spreads = {name: values[f"{name}_spread"] for name in METRICS}
        cells = [
            f"{values[name]:.4f}" + (f" ± {spreads[name]:.4f}" if len(found[start]) > 1 else "") for name in METRICS
        ]
        table.add_row(start, *cells, f"{values['train_s']:.0f}")
    Console(width=120).print(table)


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="headrace benchmark images", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--to", default="runs/images", help="folder to work in (runs/images)")
    command.add_argument("--per-class", type=int, default=400, help="images of each of the ten digits (400)")
    command.add_argument("--epochs", type=int, default=6, help="of every run (6)")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights and order (0 1 2)")
    command.add_argument("--starts", nargs="+", choices=[*STARTS], default=["random", "pretrained"],
                         help="(random pretrained)")  # fmt: skip
    command.add_argument("--ranks", type=int, default=1, help="Horovod ranks (1)")
    given = command.parse_args(arguments)
    return answering_mistakes("benchmark", lambda: _benchmark(given))


def _benchmark(given: argparse.Namespace) -> None:
    if given.per_class < 8:
        raise UserError("--per-class takes 8 or more: an eighth of each class is valid, and an eighth test.")
    began, folder = time.monotonic(), Path(absolute(given.to))
    found = outcomes(
        folder, per_class=given.per_class, epochs=given.epochs, seeds=given.seeds, starts=given.starts,
        ranks=given.ranks,
    )  # fmt: skip
    manifest = open_snapshot(str(folder / f"snapshot-{given.per_class}")).manifest
    rows = {split: manifest.rows(split) for split in ("train", "valid", "test")}
    show(
        found,
        f"EfficientNet-Lite0 on {rows['train']:,} generated digits of {digit_images.SIDE} x {digit_images.SIDE}, "
        f"{given.epochs} epochs, {len(given.seeds)} seed(s): test of {rows['test']:,}",
    )
    line = {"benchmark": "images", "data": "generated", "rows": rows, "epochs": given.epochs, "seeds": given.seeds}
    print(json.dumps({**line, "starts": summary(found), "seconds": round(time.monotonic() - began)}))


def _ok(code: int) -> None:
    if code != 0:
        sys.exit(code)


if __name__ == "__main__":
    sys.exit(main())
