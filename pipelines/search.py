"""A search over a recipe's settings: trials begun, watched epoch by epoch, pruned, and told to Optuna."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from pipelines.processes import end_marked
from pipelines.trial import TrialProcess, mark_of
from pipelines.tune_space import Dimension, override
from schemas.errors import UserError

_POLL_S = 0.1
_FAILURES_AT_FIRST = 3
# Attributes of a trial: which search runs it, in which folder, and why it failed.
SEARCH, FOLDER, ERROR = "search", "folder", "error"
Begin = Callable[[Path, Sequence[str]], TrialProcess]
"""Begins the training of a trial in a folder with these overrides."""


@dataclass(kw_only=True)
class Search:
    """Trials of a study, at most `parallel` at once, each in a folder of its own under `to`.

    Of several searches on one study each has its own `to`, and knows its trials by `name`, on whatever host it goes on.
    """

    study: optuna.Study
    space: tuple[Dimension, ...]
    to: Path
    name: str
    begin: Begin
    sampler: Callable[[int], optuna.samplers.BaseSampler]
    """From a seed."""
    seed: int
    parallel: int
    say: Callable[[str], None]
    until: float = float("inf")
    """When, by time.monotonic(), no further trial begins."""
    _running: dict[int, tuple[optuna.Trial, TrialProcess]] = field(default_factory=dict)
    _failed_here: int = 0

    def run(self, trials: int) -> None:
        """Go on until the study has so many trials; UserError where the first ones all fail.

        However this ends, no training is left behind; trials that it was in the middle of go on with the next search.
        """
        self.take_up()
        try:
            while True:
                while self._wants_another(trials):
                    self._begin_one()
                if not self._running:
                    return
                time.sleep(_POLL_S)
                for number in [*self._running]:
                    self._look_after(number)
        finally:
            for _, process in self._running.values():
                process.end()

    def _wants_another(self, trials: int) -> bool:
        free = len(self._running) < self.parallel and time.monotonic() < self.until
        return free and len(finished(self.study)) + len(self._running) < trials

    def take_up(self) -> None:
        """Have the trials that a killed search was in the middle of run again: same settings, same folder."""
        waiting = [trial.user_attrs.get(FOLDER) for trial in self.study.get_trials(states=(TrialState.WAITING,))]
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            if trial.user_attrs.get(SEARCH) != self.name:
                continue
            folder = trial.user_attrs[FOLDER]
            end_marked(mark_of(self.to / "trials" / folder))  # else two would train in one folder
            if folder not in waiting:  # or this was as far as an earlier search came
                self.study.enqueue_trial(trial.params, user_attrs={FOLDER: folder, SEARCH: self.name})
            self.study.tell(trial.number, state=TrialState.FAIL)
            self.say(f"trial {folder} was interrupted and goes on")

    def _begin_one(self) -> None:
        # A seed a trial, so that a search that goes on suggests what it would have without the interruption.
        seed = np.random.SeedSequence([self.seed, self.place()]).generate_state(1)[0]
        self.study.sampler = self.sampler(int(seed))
        trial = self.study.ask()
        # Said before its settings are: a search that is killed in between knows the trial again. Its folder first.
        name = trial.user_attrs.get(FOLDER, f"{trial.number:05d}")
        trial.set_user_attr(FOLDER, name)
        trial.set_user_attr(SEARCH, self.name)
        values = {dimension.key: dimension.suggest(trial) for dimension in self.space}
        overrides = [override(key, value) for key, value in values.items()]
        self.say(f"trial {name} begins: {', '.join(overrides)}")
        self._running[trial.number] = trial, self.begin(self.to / "trials" / name, overrides)

    def place(self) -> int:
        """Trials that were begun before the next one; one that was interrupted and goes on is one."""
        return len(finished(self.study)) + len(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def _look_after(self, number: int) -> None:
        trial, process = self._running[number]
        code = process.exit_code()  # before its epochs are read, so that none is missed
        name = trial.user_attrs[FOLDER]
        for epoch, value in process.new_epochs():
            trial.report(value, epoch)
            if code is None and trial.should_prune():
                process.end()
                self._tell(trial, TrialState.PRUNED, f"pruned after epoch {epoch}: {value:.4f}")
                return
        if code is None:
            return
        if code != 0:
            process.end()  # its ranks too: it may be the launcher alone that died
            reason = process.last_line()
            trial.set_user_attr(ERROR, reason)
            self._tell(trial, TrialState.FAIL, f"failed: {reason}")
            self._failed_here += 1
            if self._failed_here >= _FAILURES_AT_FIRST and not self._any_came_through():
                raise UserError(
                    f"the first {self._failed_here} trials all failed, the last with: {reason} "
                    f"({process.folder / 'train.log'} has the rest)."
                )
            return
        process.close()
        values = self.study.trials[number].intermediate_values.values()
        if not values:
            raise UserError(f"trial {name} ended without an epoch: is {process.folder} being changed by others?")
        best = max(values) if self.study.direction == optuna.study.StudyDirection.MAXIMIZE else min(values)
        self._tell(trial, TrialState.COMPLETE, f"{best:.4f} after {len(values)} epochs", best)

    def _tell(self, trial: optuna.Trial, state: TrialState, what: str, value: float | None = None) -> None:
        self.study.tell(trial, value, state=state)
        del self._running[trial.number]
        self.say(f"trial {trial.user_attrs[FOLDER]} {what} ({len(finished(self.study))} trials done)")

    def _any_came_through(self) -> bool:
        return any(trial.state != TrialState.FAIL for trial in finished(self.study))


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that came to an end of their own; those that were interrupted have no error and do not count."""
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return [trial for trial in ended if trial.state != TrialState.FAIL or ERROR in trial.user_attrs]
