"""What answers in a period: a release by the server's own engine and policy, or the most popular items."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.wheel_parts.people import Ask, Response, Taken
from benchmarks.wheel_parts.real_log import RealLog
from schemas.served import Shown
from serving.engine import Asked, load_engine
from serving.policy import policy_name
from serving.scorer import candidates, shown


class ReleaseArm:
    """A release in service. It knows of each user's actions since its last event, as the server does."""

    def __init__(self, release: Path, *, seed: int) -> None:
        self._engine = load_engine(release)
        self._settings = self._engine.release.serving
        self._random = np.random.default_rng(seed)
        self.generation = self._engine.release.id
        self.policy = policy_name(self._settings.exploration)

    def respond(self, asks: Sequence[Ask], taken: Taken, k: int) -> list[Response]:
        asked = [self._asked(one, taken) for one in asks]
        responses = []
        for scored in self._engine.score(asked, candidates(self._settings, k)):
            answer = shown(self._engine, self._settings.exploration, scored, k, self._random)
            best = [self._engine.items.ids[place] for place in scored.places[:k]]  # which come by score
            responses.append(Response(answer.items, best, answer.features, answer.num_candidates))
        return responses

    def _asked(self, one: Ask, taken: Taken) -> Asked:
        after_ms = self._engine.release.last_event_time_ms
        since = sorted((at_ms, item) for at_ms, item in taken.get(one.user, ()) if after_ms < at_ms < one.time_ms)
        return Asked(
            user_id=one.user, time_ms=one.time_ms, context=one.context, since=tuple(since), blocked=one.blocked
        )


class PopularArm:
    """The items taken most often until the period began, without what a user met in the seed or has taken since."""

    generation, policy = "popularity", "greedy"

    def __init__(self, log: RealLog, seed_end_ms: int, taken: Taken) -> None:
        rows = log.time_ms < seed_end_ms
        counts = Counter(log.item[rows & log.acted].tolist())
        counts.update(item for some in taken.values() for _, item in some)
        self._order = [item for item, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0]))]
        self._seen: dict[str, set[str]] = defaultdict(set)
        for user, item in zip(log.user[rows].tolist(), log.item[rows].tolist(), strict=True):
            self._seen[user].add(item)

    def respond(self, asks: Sequence[Ask], taken: Taken, k: int) -> list[Response]:
        return [self._response(self._top(one.user, taken, one.blocked, k)) for one in asks]

    def _response(self, items: list[str]) -> Response:
        shown = (Shown(item_id=item, position=place, score=0.0, propensity=1.0) for place, item in enumerate(items))
        return Response(tuple(shown), items)

    def _top(self, user: str, taken: Taken, blocked: Sequence[str], k: int) -> list[str]:
        left_out = self._seen[user] | {item for _, item in taken.get(user, ())} | set(blocked)
        found = []
        for item in self._order:
            if item not in left_out:
                found.append(item)
                if len(found) == k:
                    break
        return found
