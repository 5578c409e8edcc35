"""The thread that scores: requests wait for it in a bounded queue, and those that wait together are scored together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import faiss
import numpy as np
import torch

from schemas.served import Encoded, Shown
from schemas.wheel import Exploration, ServingSettings
from serving.engine import Asked, Engine, Scored
from serving.policy import draw

MAX_TOGETHER = 8
LEAST_PROPENSITY = 1e-300
"""What was drawn has been possible, though its propensity may be too small for a double."""


class Overloaded(Exception):
    """So many requests wait already that this one is refused at once."""


@dataclass(frozen=True)
class Answer:
    """What the policy shows of what the models scored."""

    items: tuple[Shown, ...]
    features: dict[str, Encoded]
    num_candidates: int


@dataclass(frozen=True)
class _Waiting:
    engine: Engine
    settings: ServingSettings
    asked: Asked
    k: int
    future: Future[Answer]


class Scorer:
    """Scores on one thread of its own, with one core: a request that nobody waits for any longer is left out.

    A request is scored by the engine that it was handed over with, whatever is in service by then.
    """

    def __init__(self, *, together: int = MAX_TOGETHER, seed: int | None = None) -> None:
        self._together, self._random = together, np.random.default_rng(seed)
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, engine: Engine, settings: ServingSettings, asked: Asked, k: int) -> Future[Answer]:
        """Raises Overloaded where `settings.queue` requests wait."""
        future: Future[Answer] = Future()
        with self._changed:
            if len(self._waiting) >= settings.queue or self._closing:
                raise Overloaded
            self._waiting.append(_Waiting(engine, settings, asked, k, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Answer what waits, end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        while (group := self._next()) is not None:
            wanted = [one for one in group if one.future.set_running_or_notify_cancel()]
            if not wanted:
                continue
            try:
                answers = self._answers(wanted)
            except Exception as error:  # whatever it is, popular items are the answer
                if len(wanted) == 1:
                    wanted[0].future.set_exception(error)
                else:  # the others are not to go without models for the fault of one
                    self._answer_each(wanted)
                continue
            for one, answer in zip(wanted, answers, strict=True):
                one.future.set_result(answer)

    def _answer_each(self, group: Sequence[_Waiting]) -> None:
        for one in group:
            try:
                one.future.set_result(self._answers([one])[0])
            except Exception as error:
                one.future.set_exception(error)

    def _next(self) -> list[_Waiting] | None:
        """The oldest request, and with it those behind it of the same engine; None at the end."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return None
                self._changed.wait()
            group = [self._waiting.popleft()]
            while self._waiting and len(group) < self._together and self._waiting[0].engine is group[0].engine:
                group.append(self._waiting.popleft())
            return group

    def _answers(self, group: Sequence[_Waiting]) -> list[Answer]:
        counts = [candidates(one.settings, one.k) for one in group]
        scored = group[0].engine.score([one.asked for one in group], counts)
        return [
            shown(one.engine, one.settings.exploration, found, one.k, self._random)
            for one, found in zip(group, scored, strict=True)
        ]


def candidates(settings: ServingSettings, k: int) -> int:
    """How many a request for k items is scored on."""
    return max(settings.candidates, settings.exploration.pool, k)


def shown(engine: Engine, exploration: Exploration, scored: Scored, k: int, random: np.random.Generator) -> Answer:
    """What the policy makes of what `engine` scored."""
    drawn = draw(scored.scores, k, exploration, random)
    items = []
    for position, rank in enumerate(drawn.places.tolist()):
        items.append(
            Shown(
                item_id=engine.items.ids[scored.places[rank]],
                position=position,
                score=float(scored.scores[rank]),
                propensity=max(float(drawn.propensities[position]), LEAST_PROPENSITY),
                explored=bool(drawn.explored[position]),
                features=engine.of_item(scored, rank),
            )
        )
    return Answer(tuple(items), scored.features, drawn.num_candidates)
