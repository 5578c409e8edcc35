"""Serving without HTTP: what is answered, what is written down before, and which release is in service."""

from __future__ import annotations

import asyncio
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from schemas.served import Action, Impression, Kind, Shown
from schemas.wheel import ServingSettings
from serving.engine import Asked, Engine
from serving.metrics import Metrics
from serving.open_segment import Uncertain
from serving.policy import policy_name
from serving.recent import Recent
from serving.requests import Act, Bodies, Recommend, bodies_of
from serving.scorer import Overloaded, Scorer
from serving.telling import complain

TIMEOUT, MODEL_FAILURE = "timeout", "model failure"
POPULARITY = "popularity"
_TELLS_EVERY_S = 10.0
WRITES_WITHIN_S = 10.0
"""That a request waits for its log at most: a disk may hang instead of failing."""
_PREPARES_EVERY_S = 15.0


class Log(Protocol):
    """What is appended to: `serving.append_log.AppendLog`."""

    broken: str | None

    def append_many(self, lines: Sequence[bytes]) -> Future[None]: ...


class LogFailed(Exception):
    """The log could not take what was to be answered, so nothing is."""

    def __init__(self, reason: str, *, uncertain: bool) -> None:
        super().__init__(reason)
        self.uncertain = uncertain
        """Whether it may have been taken all the same."""


@dataclass(frozen=True)
class InService:
    """A release with the requests that it takes; replaced as one."""

    engine: Engine
    settings: ServingSettings
    bodies: Bodies

    @classmethod
    def of(cls, engine: Engine, settings: ServingSettings | None = None) -> InService:
        release = engine.release
        settings = settings or release.serving
        rules = release.feedback
        made = (*rules.from_item, *rules.labels) if rules is not None else ()
        return cls(engine, settings, bodies_of(release.contract, settings, made))


class Service:
    """Answers requests with the release in service; all its coroutines run on one event loop."""

    def __init__(
        self,
        in_service: InService,
        logs: Mapping[Kind, Log],
        recent: Recent,
        *,
        scorer: Scorer | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.in_service, self.recent = in_service, recent
        self.scorer, self.metrics = scorer or Scorer(), metrics or Metrics()
        self._champion_problem: str | None = None
        self.problems: list[Callable[[], str | None]] = [self._broken_log]
        """What else may be wrong, each asked when somebody asks."""
        self._logs = logs
        self._told_at = -_TELLS_EVERY_S
        self.metrics.watch(
            queue=lambda: self.scorer.waiting,
            users=lambda: self.recent.num_users,
            unreadable=lambda: self.recent.num_unreadable,
        )
        self.metrics.note_generation(in_service.engine.release.id)

    @property
    def problem(self) -> str | None:
        """Why the logs take nothing or are not followed, or the champion is not in service, where that is so."""
        return next((reason for reason in (ask() for ask in self.problems) if reason), self._champion_problem)

    def swap(self, in_service: InService, recent: Recent | None = None) -> None:
        """Answer from now on with another release; requests under way end with theirs.

        `recent` where the release makes other events of what users do.
        """
        self.in_service, self.recent = in_service, recent or self.recent
        self.metrics.swaps.inc()
        self.metrics.note_generation(in_service.engine.release.id)

    def note_problem(self, reason: str | None) -> None:
        """Say why the champion is not in service, or that it is."""
        self._champion_problem = reason
        self.metrics.broken.set(reason is not None)

    async def keep_ready(self) -> None:
        """Have what the next tile of features needs made before it begins; until it is cancelled."""
        while True:
            await asyncio.sleep(_PREPARES_EVERY_S)
            try:
                await asyncio.to_thread(self.in_service.engine.features.prepare, time.time_ns() // 1_000_000)
            except Exception as error:  # then the first request of the tile makes it, or fails by itself
                self._tell(error)

    async def recommend(self, wanted: Recommend, in_service: InService) -> tuple[Impression, list[str]]:
        """What is shown, written down, and the titles. Raises Overloaded, or LogFailed."""
        engine, settings = in_service.engine, in_service.settings
        now_ms = time.time_ns() // 1_000_000
        asked = Asked(
            user_id=wanted.user_id,
            time_ms=now_ms,
            context=wanted.context.model_dump(exclude_none=True),
            since=self.recent.since(wanted.user_id, engine.release.last_event_time_ms),
            blocked=wanted.blocked,
            exclude_seen=bool(wanted.exclude_seen),
        )
        said: dict[str, Any]
        try:
            waiting = asyncio.wrap_future(self.scorer.submit(engine, settings, asked, wanted.k))
            answer = await asyncio.wait_for(waiting, settings.timeout_ms / 1000)
            said = {"items": answer.items, "features": answer.features, "num_candidates": answer.num_candidates}
            said["policy"] = policy_name(settings.exploration)
        except TimeoutError:
            said = self._popular(engine, asked, wanted.k, TIMEOUT)
        except Overloaded:
            raise
        except Exception as error:  # whatever the models did, there is an answer
            self._tell(error)
            said = self._popular(engine, asked, wanted.k, MODEL_FAILURE)
        impression = Impression(
            request_id=uuid.uuid4().hex,
            time_ms=now_ms,
            generation=engine.release.id,
            user_id=wanted.user_id,
            context=dict(asked.context),
            **said,
        )
        await self._write("impressions", [impression.model_dump_json().encode()])
        self.recent.shown(impression)
        self.metrics.note_shown(len(impression.items), sum(item.explored for item in impression.items))
        titles = [engine.items.titles[engine.items.place_of[item.item_id]] for item in impression.items]
        return impression, titles

    async def feedback(self, acts: list[Act]) -> list[Action]:
        """The actions, written down: all of them, or none. Raises LogFailed."""
        now_ms = time.time_ns() // 1_000_000
        actions = [
            Action(**act.model_dump(exclude={"action_id"}), action_id=act.action_id or uuid.uuid4().hex, time_ms=now_ms)
            for act in acts
        ]
        await self._write("actions", [action.model_dump_json().encode() for action in actions])
        for action in actions:
            self.recent.acted(action)
        self.metrics.actions.inc(len(actions))
        return actions

    def _popular(self, engine: Engine, asked: Asked, k: int, reason: str) -> dict[str, Any]:
        places = engine.popular(asked, k).tolist()
        self.metrics.fallbacks.labels(reason).inc()
        items = tuple(
            Shown(item_id=engine.items.ids[p], position=i, score=float(engine.items.counts[p]), propensity=1.0)
            for i, p in enumerate(places)
        )
        return {"items": items, "policy": POPULARITY, "num_candidates": min(1, len(items)), "fallback": reason}

    async def _write(self, kind: Kind, lines: list[bytes]) -> None:
        try:
            written = asyncio.wrap_future(self._logs[kind].append_many(lines))
            await asyncio.wait_for(written, WRITES_WITHIN_S)
        except TimeoutError as error:
            reason = f"the log of {kind} has not written within {WRITES_WITHIN_S:g} s"
            self._tell(OSError(reason))
            raise LogFailed(reason, uncertain=True) from error
        except OSError as error:
            self._tell(error)
            raise LogFailed(str(error), uncertain=isinstance(error, Uncertain)) from error

    def _broken_log(self) -> str | None:
        return next((log.broken for log in self._logs.values() if log.broken), None)

    def _tell(self, error: Exception) -> None:
        """Say on standard error what went wrong, but not for every request."""
        if time.monotonic() - self._told_at < _TELLS_EVERY_S:
            return
        self._told_at = time.monotonic()
        where = "".join(traceback.format_tb(error.__traceback__)[-1:]).strip()
        complain(f"serve: {type(error).__name__}: {error}\n{where}")
