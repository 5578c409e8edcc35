"""What a release would have shown at requests that another one answered: the propensity of each item shown.

Each request is asked again as it was: its user as of then, its context, its time. A release knows its users as of its
snapshot's end; where a request is older, what the log says of the user from then on is taken off again, or a release
would leave out the very items that were shown, as seen, and know from the history what was clicked.

Legend: N rows, K positions of a request, P candidates of the pool, A items shown in the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from schemas.features import UNSEEN_IDX
from serving.engine import Asked, Engine, Scored, load_engine
from serving.features import Done
from serving.inclusion import inclusion, is_known
from serving.items import Items
from serving.logged_requests import Requests, UserEvents
from serving.policy import next_propensities, policy_name, pool_of, propensities
from serving.reward_model import ItemRates
from serving.users import User

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_REQUESTS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A release's policy on the rows of a log."""

    release_id: str
    policy: str
    target: Floats
    """Of the item shown, given those above it; 0 where it is no candidate. Shape (N,)."""
    expected: Floats
    """The reward model's mean over what the policy would have shown there, shape (N,)."""
    included: Floats
    """That the item is anywhere in the list, shape (N,); all 0 of a policy of which that is not known."""
    expected_of_list: Floats
    """The reward model's mean over the list that the policy would have shown, wherever an item stands, shape (N,)."""


@dataclass(frozen=True, kw_only=True)
class LoggedItems:
    """The items of a log by number, and what they earn."""

    codes: dict[str, int]
    rates: ItemRates
    fold: Ints
    """Of each request."""


def replay(
    folder: Path, landed: Path, requests: Requests, logged: LoggedItems, progress: Callable[[int], None]
) -> Replayed:
    """Ask the release in `folder` all requests again, some at a time."""
    engine = load_engine(folder)
    settings = engine.release.serving
    events = UserEvents(landed, engine.release.feedback, requests.user_id)
    code_of_place = np.array([logged.codes.get(item_id, -1) for item_id in engine.items.ids], dtype=np.int64)
    target, expected, included, expected_of_list = np.zeros((4, len(requests.item_id)))
    for start in range(0, len(requests), _REQUESTS_AT_ONCE):
        some = range(start, min(start + _REQUESTS_AT_ONCE, len(requests)))
        shown = [int(requests.starts[r + 1] - requests.starts[r]) for r in some]
        candidates = [max(settings.candidates, settings.exploration.pool, count) for count in shown]
        answers = engine.score([asked_then(engine, events, requests, r) for r in some], candidates)
        for request, scored in zip(some, answers, strict=True):
            rows = requests.rows_of(request)
            ranks_K = _ranks(engine.items, scored, requests.item_id[rows])
            target[rows] = propensities(scored.scores, ranks_K, settings.exploration)
            pool_P = pool_of(scored.scores, len(ranks_K), settings.exploration)
            next_KP = next_propensities(scored.scores, ranks_K, settings.exploration)
            codes_P = code_of_place[scored.places[pool_P]]
            earned_KP = logged.rates.at(int(logged.fold[request]), requests.position[rows], codes_P)
            expected[rows] = (next_KP * earned_KP).sum(axis=1)
            if is_known(settings.exploration):
                included_P = inclusion(len(pool_P), len(ranks_K), settings.exploration)
                in_pool_K = (ranks_K >= 0) & (ranks_K < len(pool_P))
                included[rows] = np.where(in_pool_K, included_P[np.where(in_pool_K, ranks_K, 0)], 0.0)
                expected_of_list[rows] = (included_P * earned_KP.mean(axis=0)).sum() / len(ranks_K)
        progress(some.stop)
    release = engine.release
    return Replayed(
        release_id=release.id,
        policy=policy_name(settings.exploration),
        target=target,
        expected=expected,
        included=included,
        expected_of_list=expected_of_list,
    )


def asked_then(engine: Engine, events: UserEvents, requests: Requests, request: int) -> Asked:
    """The request as it was, with what was known of its user by then."""
    user_id, time_ms = requests.user_id[request], int(requests.time_ms[request])
    end_ms = engine.release.last_event_time_ms
    user = engine.users.find(user_id)
    later = events.between(user_id, time_ms - 1, end_ms + 1)
    if user is not None and later:
        user = rewound(user, time_ms, later, events.between(user_id, -1, time_ms), engine.items)
    return Asked(
        user_id=user_id,
        time_ms=time_ms,
        context=requests.context[request],
        since=events.between(user_id, end_ms, time_ms),
        exclude_seen=engine.release.serving.exclude_seen,
        user=user,
    )


def rewound(user: User, time_ms: int, later: Done, earlier: Done, items: Items) -> User:
    """The user without what the log says happened from `time_ms` on.

    Exact where the snapshot keeps the history's times. Elsewhere the newest entries of the same items are taken off;
    what the history's length had pushed out does not come back.
    """
    later_idx, earlier_idx = (items.idx_of([item_id for _, item_id in done], UNSEEN_IDX) for done in (later, earlier))
    seen = user.seen[~np.isin(user.seen, later_idx) | np.isin(user.seen, earlier_idx)]
    if user.times_ms is not None:
        before = user.times_ms < time_ms
        return replace(user, seen=seen, history=user.history[before], times_ms=user.times_ms[before])
    left, kept = Counter(later_idx.tolist()), []
    for idx in reversed(user.history.tolist()):
        if left[idx] > 0:
            left[idx] -= 1
        else:
            kept.append(idx)
    return replace(user, seen=seen, history=np.array(kept[::-1], dtype=user.history.dtype))


def _ranks(items: Items, scored: Scored, item_ids: list[str]) -> Ints:
    """Where each item stands among the candidates; -1 for one that is none of them."""
    rank_of = {place: rank for rank, place in enumerate(scored.places.tolist())}
    return np.array([rank_of.get(items.place_of.get(item_id, -1), -1) for item_id in item_ids], dtype=np.int64)
