"""Who asks in a period, what they are shown, and how they react: as they really did in that period.

A reaction is known only for items that the user met in the log. What they would have made of another item nobody knows:
in what is measured it counts as not taken. That holds for all arms alike, and makes every hit rate here a lower bound.
Items of later periods count as not taken, too: an arm that showed them early could not be right about them a second
time. A log that also tells what was met and left alone says more of what is shown than that it was not taken; there,
only items that the user met go into the served log, as those that were looked at: the others would teach that whatever
is recommended is left alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.wheel_parts.real_log import RealLog
from schemas.served import Action, Encoded, Impression, Shown

TOGETHER = 256
"""Users who ask at once."""
Taken = dict[str, list[tuple[int, str]]]
"""By user: (time_ms, item_id) of what they took of what was shown, oldest first."""


@dataclass(frozen=True)
class Response:
    items: tuple[Shown, ...]
    best: Sequence[str]
    """What it would have been without chance: its quality is measured by this."""
    features: Mapping[str, Encoded] = field(default_factory=dict)
    num_candidates: int = 0


@dataclass(frozen=True)
class Ask:
    """One request of one user."""

    user: str
    time_ms: int
    context: Mapping[str, Any]
    blocked: Sequence[str] = ()
    """What they have been shown in this period."""


class Recommender(Protocol):
    """What an arm answers with in one period."""

    generation: str
    policy: str

    def respond(self, asks: Sequence[Ask], taken: Taken, k: int) -> list[Response]:
        """One a request; those asked together are of different users."""
        ...


@dataclass(frozen=True)
class Replayed:
    """One period: what was logged, and what was measured."""

    impressions: list[Impression]
    actions: list[Action]
    measures: dict[str, float]
    taken: list[tuple[str, int, str]]
    """(user, time_ms, item_id)."""


def replay(
    log: RealLog,
    recommender: Recommender,
    taken: Taken,
    span: tuple[int, int],
    popular: set[str],
    *,
    name: str,
    k: int,
    requests: int,
) -> Replayed:
    """Each user who took something in the span asks `requests` times, spread over their events; adds to `taken`."""
    met_rows = log.rows_in(span)
    in_span = met_rows[log.acted[met_rows]]
    rows_of: dict[str, list[int]] = {}
    for in_row in in_span:
        rows_of.setdefault(str(log.user[in_row]), []).append(int(in_row))
    to_take = {user: {str(log.item[row]): row for row in reversed(rows)} for user, rows in rows_of.items()}
    met = items_by_user(log, met_rows) if log.says_what_was_left else None
    impressions, actions, came = [], [], []
    recalls, gains, first_recalls = [], [], []
    shown_items: Counter[str] = Counter()
    blocked: dict[str, list[str]] = {user: [] for user in rows_of}
    clocks_ms = dict.fromkeys(rows_of, 0)
    # What one user is shown does not depend on the others': a period's model is one, so they may ask together.
    users = sorted(rows_of)
    groups = [users[start : start + TOGETHER] for start in range(0, len(users), TOGETHER)]
    for number, together in product(range(requests), groups):
        asks = []
        for user in together:
            row = rows_of[user][number * len(rows_of[user]) // requests]
            # Many events of one user share a second, and an action comes after what was shown.
            clocks_ms[user] = max(int(log.time_ms[row]), clocks_ms[user] + 1)
            asks.append(Ask(user, clocks_ms[user], log.context[row], blocked[user]))
        for ask, said in zip(asks, recommender.respond(asks, taken, k), strict=True):
            user = ask.user
            if wanted := set(to_take[user]):
                recalls.append(len(wanted & set(said.best)) / min(k, len(wanted)))
                gains.append(ndcg(said.best, wanted))
                if number == 0:
                    first_recalls.append(recalls[-1])
            request_id = f"{name}-{user}-{number}"
            looked_at = said.items if met is None else tuple(one for one in said.items if one.item_id in met[user])
            if looked_at:
                impressions.append(
                    Impression(
                        request_id=request_id,
                        time_ms=ask.time_ms,
                        generation=recommender.generation,
                        user_id=user,
                        policy=recommender.policy,
                        context=dict(ask.context),
                        features=dict(said.features),
                        items=looked_at,
                        num_candidates=said.num_candidates,
                    )
                )
            for one in said.items:
                blocked[user].append(one.item_id)
                shown_items[one.item_id] += 1
                taken_row = to_take[user].pop(one.item_id, None)
                if taken_row is None:
                    continue
                clocks_ms[user] += 1
                for kind, value in log.actions[taken_row].items():
                    actions.append(
                        Action(
                            action_id=f"{request_id}-{one.item_id}-{kind}",
                            request_id=request_id,
                            item_id=one.item_id,
                            user_id=user,
                            action=kind,
                            value=value,
                            time_ms=clocks_ms[user],
                        )
                    )
                came.append((user, clocks_ms[user], one.item_id))
                taken.setdefault(user, []).append((clocks_ms[user], one.item_id))
    shown, in_log = shown_items.total(), [str(log.item[row]) for row in in_span]
    popular_shown = sum(count for item, count in shown_items.items() if item in popular) / max(1, shown)
    popular_taken = sum(item in popular for item in in_log) / max(1, len(in_log))
    measures = {
        f"recall@{k}": float(np.mean(recalls)),
        f"ndcg@{k}": float(np.mean(gains)),
        f"first_recall@{k}": float(np.mean(first_recalls)),
        "hit_rate": len(came) / max(1, shown),
        "users": float(len(rows_of)),
        "shown": float(shown),
        "items_shown": float(len(shown_items)),
        "popular_shown": popular_shown,
        "popular_taken": popular_taken,
        "amplification": popular_shown / popular_taken if popular_taken else 0.0,
    }
    return Replayed(impressions, actions, measures, came)


def items_by_user(log: RealLog, rows: NDArray[np.int64]) -> dict[str, set[str]]:
    items: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        items[str(log.user[row])].add(str(log.item[row]))
    return items


def ndcg(best: Sequence[str], wanted: set[str]) -> float:
    discounts = 1 / np.log2(np.arange(2, len(best) + 2))
    hits = np.array([item in wanted for item in best], dtype=np.float64)
    ideal = discounts[: min(len(best), len(wanted))].sum()
    return float(hits @ discounts / ideal) if len(best) else 0.0
