"""What answers in a period: a release by the server's own engine and policy, or the most popular items."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.wheel_parts.people import Response, Taken
from benchmarks.wheel_parts.real_log import RealLog
from schemas.served import Shown
from schemas.wheel import Exploration
from serving.engine import Asked, load_engine
from serving.policy import policy_name
from serving.scorer import Scorer


class ReleaseArm:
    """A release in service. It knows of each user's actions since its last event, as the server does."""

    def __init__(self, release: Path, *, seed: int) -> None:
        self._engine = load_engine(release)
        self._settings = self._engine.release.serving
        self._greedy = self._settings.model_copy(update={"exploration": Exploration(kind="none")})
        self._scorer = Scorer(seed=seed)
        self.generation = self._engine.release.id
        self.policy = policy_name(self._settings.exploration)

    def respond(
        self, user: str, time_ms: int, context: Mapping[str, Any], taken: Taken, blocked: Sequence[str], k: int
    ) -> Response:
        asked = self._asked(user, time_ms, context, taken, blocked)
        answer = greedy = self._scorer.submit(self._engine, self._settings, asked, k).result()
        if self._settings.exploration.kind != "none":
            greedy = self._scorer.submit(self._engine, self._greedy, asked, k).result()
        return Response(answer.items, [one.item_id for one in greedy.items], answer.features, answer.num_candidates)

    def close(self) -> None:
        self._scorer.close()

    def _asked(
        self, user: str, time_ms: int, context: Mapping[str, Any], taken: Taken, blocked: Sequence[str]
    ) -> Asked:
        after_ms = self._engine.release.last_event_time_ms
        since = tuple(sorted((at_ms, item) for at_ms, item in taken.get(user, ()) if after_ms < at_ms < time_ms))
        return Asked(user_id=user, time_ms=time_ms, context=context, since=since, blocked=blocked)


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

    def respond(
        self, user: str, time_ms: int, context: Mapping[str, Any], taken: Taken, blocked: Sequence[str], k: int
    ) -> Response:
        items = self._top(user, taken, blocked, k)
        shown = (Shown(item_id=item, position=place, score=0.0, propensity=1.0) for place, item in enumerate(items))
        return Response(tuple(shown), items)

    def close(self) -> None:
        pass

    def _top(self, user: str, taken: Taken, blocked: Sequence[str], k: int) -> list[str]:
        left_out = self._seen[user] | {item for _, item in taken.get(user, ())} | set(blocked)
        found = []
        for item in self._order:
            if item not in left_out:
                found.append(item)
                if len(found) == k:
                    break
        return found
