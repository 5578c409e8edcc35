"""Search a recipe's settings on a snapshot: each trial is a training, judged on valid; test is not looked at."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
import sqlalchemy.exc

from pipelines import launch
from pipelines.search import Search, finished
from pipelines.trial import TrialProcess
from pipelines.tune_report import print_table, write, write_best, write_plots, write_trials
from pipelines.tune_space import Dimension, candidates, override, read_space
from schemas.errors import UserError
from schemas.programs import Parser, answering_mistakes
from schemas.snapshot import open_snapshot
from schemas.storage import absolute
from schemas.store_urls import sqlite_file, store_url

SEARCH, STUDY, LOCK, NAME = "search.json", "study.db", ".lock", "id"
_CONNECT_S = 10
PRUNERS = {"median": optuna.pruners.MedianPruner, "none": optuna.pruners.NopPruner}
SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}


def tune(given: argparse.Namespace) -> None:
    """Search, going on from what an earlier search with these settings has done; write what was found."""
    for name in ("trials", "parallel", "ranks"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name} takes 1 or more, not {getattr(given, name)}.")
    to, snapshot = Path(absolute(given.to)), open_snapshot(absolute(given.snapshot))
    space = read_space(given.space, given.search, fixed=given.set)
    tried = resolve(given.recipe, [[*given.set, *overrides] for overrides in candidates(space)])
    base = tried[0]
    settings = {
        "recipe": resolve(given.recipe, [given.set])[0]["recipe"],
        "space": {dimension.key: dimension.described() for dimension in space},
        "snapshot": snapshot.manifest.digest(),
        "item_vectors": absolute(given.item_vectors) if given.item_vectors else None,
    }
    fixed = ["--snapshot", snapshot.url, "--recipe", given.recipe, *_set(given.set)]
    fixed += ["--item-vectors", settings["item_vectors"]] if settings["item_vectors"] else []
    url = store_url(given.storage or f"sqlite:///{to / STUDY}", option="--storage")
    with alone_in(to), naming_the_store(url):
        whose = {"study": given.study, **settings}
        check_folder(to, whose)
        study = open_study(url, given, more_is_better=base["more_is_better"])
        check_study(study, settings)
        check_trains(fixed, candidates(space)[0], to, ranks=given.ranks)
        write(to / SEARCH, json.dumps(whose, indent=1).encode())
        study.set_user_attr("settings", settings)
        threads = max(1, len(os.sched_getaffinity(0)) // (given.parallel * given.ranks))

        def begin(folder: Path, overrides: Sequence[str]) -> TrialProcess:
            arguments = [*fixed, *_set(overrides), "--no-tensorboard"]
            return TrialProcess(folder, arguments, ranks=given.ranks, launcher=given.on, threads=threads)

        Search(
            study=study,
            space=space,
            to=to,
            name=name_in(to),
            begin=begin,
            sampler=lambda seed: SAMPLERS[given.sampler](seed=seed),
            seed=given.seed,
            parallel=given.parallel,
            say=_say,
            until=time.monotonic() + given.timeout if given.timeout else float("inf"),
        ).run(given.trials)
        report(study, space, given, base["chosen_by"], to)


def report(
    study: optuna.Study, space: tuple[Dimension, ...], given: argparse.Namespace, chosen_by: str, to: Path
) -> None:
    """Print and write what was found; UserError where no trial came to its end."""
    done = finished(study)
    if done:
        write_trials(study, space, to)
        print_table(study, space, chosen_by)
    else:
        raise UserError(f"no trial was begun within --timeout {given.timeout:g}: give it more seconds.")
    if not any(trial.state == optuna.trial.TrialState.COMPLETE for trial in done):
        raise UserError(f"none of {len(done)} trials came to its end: trials.json in {to} says why.")
    best = study.best_trial.params
    chosen = [override(dimension.key, dimension.value(best[dimension.key])) for dimension in space]
    recipe = resolve(given.recipe, [[*given.set, *chosen]])[0]["recipe"]
    write_plots(study, to, _say)
    _say(f"best recipe: {write_best(recipe, study, chosen_by, to)}")


def resolve(recipe: str, overrides: list[list[str]]) -> list[dict[str, Any]]:
    """What the recipe comes to with each list of overrides; UserError for the first that is no recipe."""
    done = subprocess.run(
        [sys.executable, "-m", "training.resolve"],
        input=json.dumps({"recipe": recipe, "candidates": overrides}),
        capture_output=True,
        env=launch.environment(),
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise UserError(said[-1].removeprefix("resolve: ") if said else "the recipe cannot be read.")
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_trains(fixed: list[str], overrides: list[str], to: Path, *, ranks: int) -> None:
    """Have a training look at snapshot and settings and train nothing; what is wrong it says itself."""
    arguments = [*fixed, *_set(overrides), "--run", str(to / "trials" / "check"), "--check-only"]
    if launch.program("training.train", [*arguments, "--world-size", str(ranks)]) != 0:
        raise UserError("no trial was begun, for training refuses the snapshot or the settings.")


@contextmanager
def alone_in(to: Path) -> Iterator[None]:
    """Hold the folder for one search; a killed one lets go of it by itself."""
    try:
        to.mkdir(parents=True, exist_ok=True)
        lock = (to / LOCK).open("w")
    except OSError as error:
        raise UserError(f"cannot write the folder {to}: {error.strerror}.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another search is at work in {to}: give --to another folder, or end it first.") from None
        yield


def name_in(to: Path) -> str:
    """By which a search knows its trials in the study, wherever its folder lies; made once."""
    path = to / NAME
    if not path.exists():
        write(path, f"{uuid.uuid4().hex}\n".encode())
    return path.read_text(encoding="utf-8").strip()


@contextmanager
def naming_the_store(url: str) -> Iterator[None]:
    """UserError for a study's store that does not answer."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise UserError(
            f"the study's store {url} failed: {_reason(error)}. Trainings were ended; the same command goes on."
        ) from None


def check_folder(to: Path, settings: dict[str, Any]) -> None:
    """Raise UserError where another search, or something else, lies in the folder."""
    path = to / SEARCH
    if path.exists():
        _refuse_others(json.loads(path.read_text(encoding="utf-8")), settings, f"{to} holds a search", "--to")
    elif {entry.name for entry in to.iterdir()} - {LOCK, STUDY}:  # of one that was refused before it began
        raise UserError(f"{to} is no folder of a search and not empty: give --to another name.")


def open_study(url: str, given: argparse.Namespace, *, more_is_better: bool) -> optuna.Study:
    """The study, made where there is none; UserError where its store cannot be reached."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    wait = {"timeout": 60} if sqlite_file(url) else {"connect_timeout": _CONNECT_S}
    try:
        return optuna.create_study(
            storage=optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": wait, "pool_pre_ping": True}),
            study_name=given.study,
            pruner=PRUNERS[given.pruner](),
            direction="maximize" if more_is_better else "minimize",
            load_if_exists=True,
        )
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise UserError(f"--storage: cannot open {url}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The driver's own words, which hold no password; SQLAlchemy's would add the statement."""
    of_database = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    return str(getattr(of_database, "orig", None) or error).strip().splitlines()[0].rstrip(".")


def check_study(study: optuna.Study, settings: dict[str, Any]) -> None:
    """Raise UserError where the study is another search's."""
    found = study.user_attrs.get("settings")
    if found is not None:
        _refuse_others(found, settings, f"the study {study.study_name} is a search", "--study")


def _refuse_others(found: dict[str, Any], settings: dict[str, Any], whose: str, option: str) -> None:
    differing = ", ".join(key for key in settings if settings[key] != found.get(key))
    if differing:
        raise UserError(f"{whose} with another {differing}: give {option} another name.")


def _set(overrides: Sequence[str]) -> list[str]:
    return [word for setting in overrides for word in ("--set", setting)]


def _say(line: str) -> None:
    print(f"tune: {line}", flush=True)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that trainings are ended before the search is


def parser() -> Parser:
    command = Parser(prog="headrace tune", description=__doc__, allow_abbrev=False)
    command.add_argument("--snapshot", required=True, help="folder or URL that prepare published")
    command.add_argument("--recipe", default="two_tower", help="built-in recipe, or a path ending in .yaml (two_tower)")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of all trials")
    command.add_argument("--item-vectors", metavar="FILE_OR_FOLDER", help="vectors of items, as of train")
    command.add_argument("--space", metavar="FILE", help="YAML with a line KEY: SPEC, or KEY: [choices], a setting")
    command.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="KEY=SPEC",
        help="a setting to search: log:1e-4:1e-1, float:0:0.5, int:8:64, int:8:64:8 (steps of 8), log-int:8:512, "
        "one-of:8,16,32 or one-of:[[64], [128, 64]]",
    )
    command.add_argument("--to", required=True, help="folder of the search; an interrupted search in it goes on")
    command.add_argument("--trials", type=int, default=20, help="trials in all, those done before included (20)")
    command.add_argument("--parallel", type=int, default=1, help="trials at once (1)")
    command.add_argument("--ranks", type=int, default=1, help="ranks of each trial (1)")
    command.add_argument("--on", choices=("horovod", "torch"), default="horovod", help="horovodrun or torchrun")
    command.add_argument(
        "--storage",
        metavar="URL",
        help="sqlite:///FILE or postgresql+psycopg2://USER@HOST:PORT/DATABASE, its password in PGPASSWORD or ~/.pgpass "
        "(study.db in the folder)",
    )
    command.add_argument("--study", default="search", help="name of the study in the storage (search)")
    command.add_argument("--pruner", choices=[*PRUNERS], default="median", help="what ends poor trials early (median)")
    command.add_argument("--sampler", choices=[*SAMPLERS], default="tpe", help="what suggests settings (tpe)")
    command.add_argument("--seed", type=int, default=0, help="of the sampler (0)")
    command.add_argument(
        "--timeout", type=float, default=0, metavar="SECONDS", help="after which no further trial begins (0: none)"
    )
    return command


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return answering_mistakes("tune", lambda: tune(given))
    except KeyboardInterrupt:
        print("tune: interrupted; the same command goes on from what is done", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
