"""Tracking: a run folder mirrored into MLflow while it trains; training neither waits for it nor depends on it.

The run folder is the truth. What its last checkpoint holds is brought to MLflow, each epoch once, so that a run that
was killed goes on in the same MLflow run, and epochs of an hour in which the server was away are brought later.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from schemas.bundle import BUNDLE
from schemas.errors import UserError
from schemas.store_urls import store_url
from schemas.version import code_version
from training.checkpoint import PROGRESS, write_json
from training.mlflow_store import MlflowStore
from training.programs import speaker
from training.ranks import Ranks, RanksChanged
from training.run_folder import METRICS, RUN, RunFolder

TRACKED = "mlflow.json"
EXPERIMENT = "headrace"
_POLL_S = 2.0
_LAST_WAIT_S = 60.0


class Mirror:
    """Brings what a run folder holds to MLflow at `uri`; remembers in the folder which MLflow run is its own."""

    def __init__(self, uri: str, experiment: str, folder: RunFolder, world_size: int) -> None:
        self._uri, self._experiment, self._folder, self._world_size = uri, experiment, folder, world_size
        self._began_ms = int(time.time() * 1000)
        self._store: MlflowStore | None = None
        self._run_id = ""
        self._there: set[int] = set()
        self.left = threading.Event()
        """Set when the run goes on elsewhere, with a mirror of its own: this one brings nothing more."""

    def bring(self) -> None:
        """Bring what is not there yet; the run itself the first time. Raises whatever MLflow does."""
        if self._store is None:
            if not (self._folder.path / RUN).exists():
                return
            self._store = self._opened()
        for line in kept_epochs(self._folder):
            if line["epoch"] in self._there:
                continue
            if self.left.is_set():
                return
            try:
                self._store.log_epoch(self._run_id, line["epoch"], values_of(line))
            except Exception:
                self._store = None  # it may be there though no answer came: what is there is asked anew
                raise
            self._there.add(line["epoch"])

    def end(self, status: str) -> None:
        """Bring the rest, and the bundle's manifest where there is one, and close the run."""
        self.bring()
        if self._store is not None:
            if self._folder.is_complete():
                self._store.save_file(self._run_id, self._folder.bundle / BUNDLE)
            self._store.set_status(self._run_id, status)

    def register(self, *, model: str, alias: str | None) -> tuple[str, bool]:
        """The bundle as a version of the model; its number, and whether it is new."""
        assert self._store is not None, "ended before"
        return self._store.register(self._run_id, self._folder.bundle, model=model, alias=alias)

    def _opened(self) -> MlflowStore:
        path, store = self._folder.path, MlflowStore(self._uri)
        known = tracked_by(self._folder)
        self._run_id = store.run_of(
            known["run_id"] if known.get("uri") == self._uri else None,
            experiment=self._experiment,
            name=path.name,
            artifacts=path.parent / "mlartifacts",
            began_ms=self._began_ms,
        )
        write_json(path / TRACKED, {"uri": self._uri, "run_id": self._run_id})
        if not self._folder.is_complete():
            store.set_status(self._run_id, "RUNNING")
        settings = json.loads((path / RUN).read_text(encoding="utf-8"))
        tags = {
            "headrace.snapshot_id": settings["snapshot"]["id"],
            "headrace.snapshot_digest": settings["snapshot"]["digest"],
            "headrace.code_version": code_version(),
            "headrace.world_size": str(self._world_size),
            "headrace.run": str(path),
        }
        store.describe(self._run_id, flat(settings["recipe"]), tags)
        self._there = store.epochs(self._run_id)
        return store


class Tracking:
    """Mirrors from a thread of its own; of a server that is away it warns once and tries again."""

    def __init__(self, mirror: Mirror, uri: str, say: Callable[[str], None]) -> None:
        self._mirror, self._uri, self._say = mirror, uri, say
        self._closing, self._has_warned, self._status = threading.Event(), False, "FINISHED"
        self._thread = threading.Thread(target=self._follow, name="tracking", daemon=True)

    def start(self) -> None:
        """Begin, once the folder is known to be this run's."""
        self._thread.start()

    def close(self, status: str) -> None:
        """Bring the rest, and wait for that no longer than a minute."""
        if not self._thread.is_alive():
            return
        self._status = status
        self._closing.set()
        self._thread.join(_LAST_WAIT_S)
        if self._thread.is_alive():
            self._warn(f"it does not answer within {_LAST_WAIT_S:.0f} s")

    def leave(self) -> None:
        """Go without waiting and without a word to MLflow: the run goes on, maybe in another process."""
        self._mirror.left.set()
        self._closing.set()

    def _follow(self) -> None:
        while not self._closing.wait(_POLL_S):
            self._try(self._mirror.bring)
        if not self._mirror.left.is_set():
            self._try(lambda: self._mirror.end(self._status))

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever it is, training goes on
            self._warn(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)

    def _warn(self, why: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._say(
                f"warning: cannot track in MLflow at {self._uri}: {why}. Training goes on; what is missing there is "
                "brought when MLflow answers again, or by the same command later."
            )


@contextmanager
def follow(track: str | None, experiment: str, folder: RunFolder, ranks: Ranks) -> Iterator[Tracking | None]:
    """Tracking of the run in `folder` where it is asked for, on rank 0; else None."""
    if track is None or ranks.rank != 0:
        yield None
        return
    uri = uri_of(track)
    tracking = Tracking(Mirror(uri, experiment, folder, ranks.size), uri, speaker("train", ranks))
    try:
        yield tracking
    except RanksChanged:
        tracking.leave()
        raise
    except BaseException as error:
        tracking.close("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracking.close("FINISHED")


def tracking_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--track",
        metavar="URI",
        help="MLflow: sqlite:///FILE, postgresql+psycopg2://USER@HOST:PORT/DATABASE, http://HOST:PORT, or env for "
        "MLFLOW_TRACKING_URI; no password in it (not tracked)",
    )
    command.add_argument("--experiment", default=EXPERIMENT, help=f"MLflow's experiment ({EXPERIMENT})")


def uri_of(track: str) -> str:
    """The address that `--track` means."""
    option = "--track"
    if track == "env":
        option, track = "MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI", "")
        if not track:
            raise UserError("--track env takes the address from MLFLOW_TRACKING_URI, which is not set.")
    if find_spec("mlflow") is None:
        raise UserError("--track needs MLflow: install headrace[tracking].")
    return store_url(track, option=option, kinds=("sqlite", "postgresql", "http", "https"))


def tracked_by(folder: RunFolder) -> dict[str, str]:
    """`uri` and `run_id` of the MLflow run that this run is, if it is one."""
    path = folder.path / TRACKED
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def kept_epochs(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of the epochs that a checkpoint holds; one after it would be trained again by a run that is killed."""
    last, path = folder.checkpoints.last(), folder.path / METRICS
    try:
        assert last is not None
        done = json.loads((last / PROGRESS).read_text(encoding="utf-8"))["epochs_done"]
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (AssertionError, FileNotFoundError):  # no checkpoint yet, or the next one has just taken its place
        return []
    return [line for line in map(json.loads, filter(_is_whole, lines)) if line["epoch"] < done]


def _is_whole(line: str) -> bool:
    return line.endswith("\n")


def values_of(line: dict[str, Any]) -> dict[str, float]:
    """What is worth a curve of a line of metrics.jsonl."""
    valid = line["valid"]
    heads = {f"valid/{head}/{name}": value for head, found in valid["heads"].items() for name, value in found.items()}
    full = {f"valid/{name}": value for name, value in valid["full"].items()}
    return {"loss": line["loss"], "rows": line["rows"], "seconds": line["seconds"], **full, **heads}


def flat(settings: dict[str, Any], outer: str = "") -> dict[str, str]:
    """Settings by their place, as `--set` names them: model.width."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        place = f"{outer}{key}"
        found |= flat(value, f"{place}.") if isinstance(value, dict) else {place: json.dumps(value).strip('"')}
    return found
