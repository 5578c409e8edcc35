"""The run folder: resolved settings, metrics as they come, checkpoints, and at the end the bundle.

run.json        recipe and snapshot: what was run
metrics.jsonl   one line an epoch
tensorboard/    the same as curves
checkpoints/    the last ones, which may be of within an epoch, and the best epoch's
ranks/          of several ranks: what each was doing when last heard of
bundle/         weights, recipe, features, vocabularies, contract, items, metrics, lineage: all that serving needs
evaluation-*.json   what `evaluate` found on a split; of a ranker also as a page, evaluation-*.html
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from schemas.bundle import BUNDLE, BundleManifest, RunEvaluation
from schemas.errors import UserError
from schemas.snapshot import Snapshot
from training.bundle import ITEMS
from training.catalogue import Catalogue
from training.checkpoint import WEIGHTS, Checkpoints, KeptCheckpoints, write_json
from training.embeddings.files import table_files
from training.ranks import Ranks
from training.vocabularies import VOCABULARIES, carry

RUN, METRICS = "run.json", "metrics.jsonl"


class RunFolder:
    """One training run on disk. Rank 0 writes; of embedding tables every rank writes its share."""

    def __init__(self, path: Path, kept: KeptCheckpoints | None = None) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints", kept)

    def check(self, settings: dict[str, Any]) -> None:
        """Raise UserError where another run, or something else, lies here."""
        path = self.path / RUN
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            # As text: the order of a ranker's heads is that of its outputs.
            differing = ", ".join(key for key in settings if json.dumps(settings[key]) != json.dumps(found.get(key)))
            if differing:
                raise UserError(f"{self.path} holds a run with another {differing}: give --run another name.")
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(f"{self.path} is no run folder and not empty: give --run another name.")

    def begin(self, settings: dict[str, Any]) -> None:
        """Make the folder, unless the run was begun before."""
        if (self.path / RUN).exists():
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / RUN, settings)
        except OSError as error:
            raise UserError(f"cannot write the run folder {self.path}: {error.strerror}.") from None

    def check_shared(self, ranks: Ranks) -> None:
        """Raise UserError, on every rank, where a rank's host does not see the run that rank 0 has begun."""
        ranks.sum(torch.zeros(1), "folder_begun")
        blind = ranks.sum(torch.tensor([0 if (self.path / RUN).exists() else 1]), "hosts_without_the_folder")
        if int(blind):
            raise UserError(f"{int(blind)} ranks do not see {self.path}: give --run a folder that all hosts share.")

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    def is_complete(self) -> bool:
        return (self.bundle / BUNDLE).exists()

    def keep_metrics(self, epochs: int) -> list[dict[str, Any]]:
        """Drop the lines of epochs after the checkpoint that training goes on from: they will come again.

        Gives those that stay, by epoch.
        """
        path = self.path / METRICS
        if not path.exists():
            return []
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _epoch_of(line) < epochs]
        draft = path.with_suffix(".draft")
        draft.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        draft.rename(path)
        return [json.loads(line) for line in kept]

    def append_metrics(self, line: dict[str, Any]) -> None:
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self, epoch: int) -> dict[str, Any]:
        """The metrics of an epoch."""
        lines = (self.path / METRICS).read_text(encoding="utf-8").splitlines()
        found: dict[str, Any] = next(json.loads(line) for line in lines if _epoch_of(line) == epoch)
        return found

    def evaluation(self, split: str) -> RunEvaluation | None:
        """What `evaluate` wrote for a split, if it did."""
        path = self._evaluation_path(split)
        return RunEvaluation.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None

    def save_evaluation(self, evaluation: RunEvaluation) -> None:
        write_json(self._evaluation_path(evaluation.split), evaluation.model_dump(mode="json"))

    def save_evaluation_page(self, split: str, content: str) -> Path:
        """Write the page whole or not at all; give its path."""
        path = self.path / f"evaluation-{split}.html"
        draft = path.with_suffix(".draft")
        draft.write_text(content, encoding="utf-8")
        draft.rename(path)
        return path

    def _evaluation_path(self, split: str) -> Path:
        return self.path / f"evaluation-{split}.json"

    def publish_bundle(
        self, checkpoint: Path, catalogue: Catalogue | None, manifest: BundleManifest, snapshot: Snapshot
    ) -> None:
        """Write the bundle of a checkpoint whole or not at all."""
        for debris in self.path.glob(".bundle-*"):  # of a run that was killed here
            shutil.rmtree(debris)
        draft = self.path / f".bundle-{uuid.uuid4().hex}"
        draft.mkdir()
        for file in (checkpoint / WEIGHTS, *table_files(checkpoint)):
            shutil.copyfile(file, draft / file.name)
        if catalogue is not None:
            pq.write_table(catalogue.table, draft / ITEMS)
        carry(draft / VOCABULARIES, snapshot)
        write_json(draft / BUNDLE, manifest.model_dump(mode="json"))
        if self.bundle.exists():
            shutil.rmtree(self.bundle)
        draft.rename(self.bundle)


def _epoch_of(line: str) -> int:
    """The line's epoch; a line cut short by a crash belongs to none that is kept."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return 1 << 60
