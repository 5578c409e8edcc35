"""Searches over settings: killed and gone on with, pruned, failing, in a file and in a real PostgreSQL."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from pipelines import launch, search, tune
from pipelines.processes import with_mark
from pipelines.search import ERROR, FOLDER, Search
from pipelines.trial import TrialProcess, epochs_of, mark_of
from pipelines.tune_report import write_trials
from pipelines.tune_space import Dimension, dimension
from schemas.errors import UserError
from tests.postgres import running_postgres
from tests.snapshots import make_snapshot
from training.recipe import read_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EPOCHS = 80  # enough to be killed in the middle of them
SMALL = ["model.width=4", "model.top=[8]", "batch_size_per_rank=64", f"epochs={EPOCHS}", f"patience={EPOCHS}"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_snapshot(tmp_path_factory.mktemp("data") / "s", [[300], [200]], valid_rows=150)


def command(url: str, to: Path, *more: str, fixed: Sequence[str] = SMALL) -> list[str]:
    arguments = ["--snapshot", url, "--recipe", "dlrm", "--to", str(to), *more]
    arguments += ["--search", "optimizer.learning_rate=log:1e-3:1e-1", "--search", "model.bottom=one-of:[[], [8]]"]
    return arguments + [word for setting in fixed for word in ("--set", setting)]


def environment(**more: str) -> dict[str, str]:
    return {**launch.environment(), "OMP_NUM_THREADS": "1", **more}


def training_of(url: str, *overrides: str, recipe: str = "dlrm", ranks: int = 1) -> search.Begin:
    def begin(folder: Path, suggested: Sequence[str]) -> TrialProcess:
        settings = [word for setting in (*overrides, *suggested) for word in ("--set", setting)]
        arguments = ["--snapshot", url, "--recipe", recipe, *settings, "--no-tensorboard"]
        return TrialProcess(folder, arguments, ranks=ranks, launcher="horovod", threads=1)

    return begin


def search_in(to: Path, study: optuna.Study, begin: search.Begin, *space: Dimension, parallel: int = 1) -> Search:
    sampler = lambda seed: optuna.samplers.RandomSampler(seed=seed)  # noqa: E731
    return Search(
        study=study, space=space, to=to, name="mine", begin=begin, sampler=sampler, seed=0, parallel=parallel,
        say=lambda line: None,
    )  # fmt: skip


def test_a_search_that_was_killed_goes_on_and_no_trial_is_done_twice(url, tmp_path):
    to = tmp_path / "to"
    arguments = command(url, to, "--trials", "4", "--parallel", "2", "--sampler", "random", "--pruner", "none")
    program = [sys.executable, "-m", "pipelines.cli", "tune", *arguments]
    killed = subprocess.Popen(program, env=environment(), stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while len(epochs_of(to / "trials" / "00001")) < 3 and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    marks = [mark_of(to / "trials" / name) for name in ("00000", "00001")]
    until = time.monotonic() + 30
    while any(map(with_mark, marks)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(with_mark, marks)), "trainings end with the search, though nobody could tell them"
    assert 3 <= len(epochs_of(to / "trials" / "00001")) < EPOCHS, "killed in the middle"

    done = subprocess.run(program, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trial 00001 was interrupted and goes on" in done.stdout
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{to / 'study.db'}")
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert sorted(trial.user_attrs[FOLDER] for trial in complete)[:2] == ["00000", "00001"]
    assert len({trial.user_attrs[FOLDER] for trial in complete}) == len(complete) == 4
    first = {trial.user_attrs[FOLDER]: trial.params for trial in study.trials if trial.number < 2}
    for trial in complete:
        name = trial.user_attrs[FOLDER]
        assert trial.params == first.get(name, trial.params), "the same settings"
        assert [epoch for epoch, _ in epochs_of(to / "trials" / name)] == [*range(EPOCHS)]
        assert trial.value == max(value for _, value in epochs_of(to / "trials" / name))
    log = (to / "trials" / "00001" / "train.log").read_text()
    assert len(re.findall(r"^train: epoch 0: loss", log, re.MULTILINE)) == 1, "its run went on from its checkpoint"

    rows = json.loads((to / "trials.json").read_text())
    assert [row["value"] for row in rows] == sorted((trial.value for trial in complete), reverse=True)
    assert len((to / "trials.csv").read_text().splitlines()) == 5
    for plot in ("history", "importance", "parallel-coordinates", "slice"):
        assert (to / "plots" / f"{plot}.png").read_bytes().startswith(b"\x89PNG")
    best = read_recipe(str(to / "best.yaml"), [])
    assert best.optimizer.learning_rate == study.best_params["optimizer.learning_rate"]
    assert (best.model.width, best.epochs) == (4, EPOCHS)


def test_a_pruned_trial_leaves_no_process_of_its_ranks_behind(url, tmp_path):
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=1.1))
    begin = training_of(url, *SMALL[:3], "epochs=5000", "patience=5000", ranks=2)
    search_in(tmp_path, study, begin, dimension("seed", "int:1:9")).run(1)
    (trial,) = study.trials
    assert trial.state == TrialState.PRUNED
    assert trial.value == trial.intermediate_values[trial.last_step]
    assert with_mark(mark_of(tmp_path / "trials" / "00000")) == []
    assert not (tmp_path / "trials" / "00000" / "run" / "bundle").exists()


def test_a_trial_that_fails_is_written_down_and_the_search_goes_on_unless_all_do(url, tmp_path, monkeypatch):
    study = optuna.create_study(direction="maximize")
    begin = training_of(url, "model.width=8", "epochs=1", recipe="sasrec")
    heads = dimension("model.heads", "one-of:2,3")
    why = "train: model.width 8 is no multiple of model.heads 3."
    study.enqueue_trial({"model.heads": 3})
    with monkeypatch.context() as patch:
        patch.setattr(search, "_FAILURES_AT_FIRST", 1)
        with pytest.raises(UserError, match=re.escape(f"the first 1 trials all failed, the last with: {why}")):
            search_in(tmp_path, study, begin, heads).run(2)
    study.enqueue_trial({"model.heads": 2})
    search_in(tmp_path, study, begin, heads).run(2)
    failed, complete = study.trials
    assert (failed.state, failed.user_attrs[ERROR]) == (TrialState.FAIL, why)
    assert complete.state == TrialState.COMPLETE


def test_a_search_in_postgresql_never_shows_nor_stores_the_password(url, tmp_path):
    with running_postgres() as server:
        storage, to = server.store("searches"), tmp_path / "to"
        arguments = command(url, to, "--trials", "1", "--storage", storage, fixed=[*SMALL[:3], "epochs=1"])
        program = [sys.executable, "-m", "pipelines.tune", *arguments]
        wrong = environment(PGPASSWORD="wrong")
        refused = subprocess.run(program, env=wrong, capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert "password authentication failed" in refused.stderr.strip().splitlines()[-1]
        right = environment(PGPASSWORD=server.password)
        done = subprocess.run(program, env=right, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        dump = ["psql", "-h", "127.0.0.1", "-p", str(server.port), "-U", server.user, "-d", "searches", "-Atc"]
        states = subprocess.run([*dump, "SELECT state FROM trials"], env=right, capture_output=True, text=True)
        assert states.stdout.split() == ["COMPLETE"]
    assert server.password not in done.stdout + done.stderr
    for file in to.rglob("*"):
        assert not file.is_file() or server.password.encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--search", "model.widht=int:4:8"], "unknown key 'model.widht'; did you mean 'width'"),
        (["--trials", "0"], "--trials takes 1 or more, not 0"),
        (["--storage", "postgresql://me:geheim@h/d"], "--storage: the address holds a password"),
    ],
)
def test_a_mistake_is_answered_in_one_line_before_the_folder_is_made(url, tmp_path, capsys, change, says):
    assert tune.main(command(url, tmp_path / "to", *change)) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "geheim" not in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "to").exists()


def test_a_trial_that_goes_on_has_its_settings_and_folder_and_those_after_it_the_seeds_they_would_have_had(tmp_path):
    study = optuna.create_study(direction="maximize")
    searching = search_in(tmp_path, study, training_of("nowhere"))
    first, killed, of_another = study.ask(), study.ask(), study.ask()
    killed.suggest_int("seed", 1, 9)
    for trial, name in ((first, "00000"), (killed, "00001")):
        trial.set_user_attr(FOLDER, name)
        trial.set_user_attr(search.SEARCH, "mine")
    of_another.set_user_attr(search.SEARCH, "another")
    study.tell(first, 0.5)
    assert searching.place() == 3
    searching.take_up()
    searching.take_up()
    (waiting,) = study.get_trials(states=(TrialState.WAITING,))
    assert waiting.user_attrs == {FOLDER: "00001", search.SEARCH: "mine"}
    goes_on = study.ask()
    assert goes_on.suggest_int("seed", 1, 9) == killed.params["seed"]
    assert searching.place() == 3
    assert study.trials[of_another.number].state == TrialState.RUNNING


def test_a_search_has_its_folders_name_wherever_that_lies(tmp_path):
    (tmp_path / "to").mkdir()
    name = tune.name_in(tmp_path / "to")
    assert name != ""
    (tmp_path / "to").rename(tmp_path / "moved")
    assert tune.name_in(tmp_path / "moved") == name
    (tmp_path / "to").mkdir()
    assert tune.name_in(tmp_path / "to") != name


def test_a_trial_that_is_killed_before_its_settings_are_suggested_is_known_again(tmp_path):
    study = optuna.create_study(direction="maximize")
    searching = search_in(tmp_path, study, training_of("nowhere"), dimension("seed", "int:1:9"))

    class Killed(optuna.samplers.RandomSampler):
        def sample_independent(self, *which):
            raise KeyboardInterrupt

    searching.sampler = lambda seed: Killed()
    with pytest.raises(KeyboardInterrupt):
        searching.run(1)
    searching.take_up()
    (waiting,) = study.get_trials(states=(TrialState.WAITING,))
    assert waiting.user_attrs == {FOLDER: "00000", search.SEARCH: "mine"}


def test_a_trial_whose_launcher_alone_dies_leaves_no_training_behind(url, tmp_path):
    study = optuna.create_study(direction="maximize")
    began = training_of(url, *SMALL[:3], "epochs=5000", "patience=5000")

    def begin(folder: Path, suggested: Sequence[str]) -> TrialProcess:
        trial = began(folder, suggested)

        def kill_launcher() -> None:
            while not epochs_of(folder):
                time.sleep(0.05)
            trial._process.kill()

        threading.Thread(target=kill_launcher, daemon=True).start()
        return trial

    search_in(tmp_path, study, begin, dimension("seed", "int:1:9")).run(1)
    assert study.trials[0].state == TrialState.FAIL
    assert with_mark(mark_of(tmp_path / "trials" / "00000")) == []


def test_what_is_wrong_with_a_trial_on_ranks_is_said_and_not_that_a_rank_has_failed(url, tmp_path):
    trial = training_of(url, "model.width=8", "model.heads=3", recipe="sasrec", ranks=2)(tmp_path / "trial", [])
    until = time.monotonic() + 120
    while trial.exit_code() is None and time.monotonic() < until:
        time.sleep(0.05)
    trial.close()
    assert (trial.exit_code(), trial.last_line()) == (2, "train: model.width 8 is no multiple of model.heads 3.")


def test_a_trial_is_not_given_the_passwords_of_the_study(tmp_path, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "geheim")
    trial = TrialProcess(tmp_path / "trial", ["--snapshot", "nowhere"], ranks=1, launcher="horovod", threads=1)
    try:
        assert b"geheim" not in Path(f"/proc/{trial._process.pid}/environ").read_bytes()
    finally:
        trial.end()


def test_a_store_that_fails_in_the_middle_is_named_in_one_line(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = tune.open_study(url, tune.parser().parse_args(command("s", tmp_path)), more_is_better=True)
    with sqlite3.connect(tmp_path / "study.db") as file:
        file.execute("DROP TABLE trials")
    says = f"the study's store {url} failed: no such table: trials. Trainings were ended; the same command goes on."
    with pytest.raises(UserError, match=re.escape(says)), tune.naming_the_store(url):
        study.ask()


def test_a_search_that_had_no_time_for_a_trial_says_so(tmp_path):
    study = optuna.create_study(direction="maximize")
    given = tune.parser().parse_args(command("s", tmp_path, "--timeout", "0.5"))
    with pytest.raises(UserError, match=r"no trial was begun within --timeout 0\.5: give it more seconds"):
        tune.report(study, (), given, "auc", tmp_path)


def test_a_setting_named_epochs_has_a_column_beside_the_epochs_that_were_trained(tmp_path):
    study = optuna.create_study(direction="maximize")
    trial = study.ask()
    trial.suggest_int("epochs", 5, 5)
    trial.set_user_attr(FOLDER, "00000")
    trial.report(0.5, 0)
    study.tell(trial, 0.5)
    write_trials(study, (Dimension(key="epochs", kind="int", low=5, high=5),), tmp_path)
    (row,) = json.loads((tmp_path / "trials.json").read_text())
    assert (row["epochs_done"], row["epochs"]) == (1, 5)


def test_a_folder_is_of_one_search_and_one_at_a_time(tmp_path):
    with tune.alone_in(tmp_path / "to"):
        tune.check_folder(tmp_path / "to", {"study": "search"})
        (tmp_path / "to" / tune.SEARCH).write_text('{"study": "search", "space": {"a": "int:1:2"}}')
        with pytest.raises(UserError, match="another search is at work in"), tune.alone_in(tmp_path / "to"):
            pass
    with pytest.raises(UserError, match="holds a search with another space: give --to another name"):
        tune.check_folder(tmp_path / "to", {"study": "search", "space": {"a": "int:1:3"}})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="no folder of a search and not empty"):
        tune.check_folder(tmp_path / "mine", {"study": "search"})


def test_a_store_that_is_away_is_named_in_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    given = tune.parser().parse_args(command("s", tmp_path))
    with pytest.raises(UserError, match=rf"cannot open postgresql\+psycopg2://me@127.0.0.1:{port}/d: .*refused"):
        tune.open_study(f"postgresql+psycopg2://me@127.0.0.1:{port}/d", given, more_is_better=True)
