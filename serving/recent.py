"""What users did since the release in service was made: their histories go on with it, and it counts as seen.

An event here is what the feedback rules make one: an item shown, or an item that an action of a label was taken on.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from schemas.feedback import FeedbackRules
from schemas.served import Action, Impression
from serving.features import Done
from serving.log_follow import LogReader, Record, tell_new
from serving.ties import Tie, by_position

MAX_USERS, MAX_ITEMS_PER_USER, MAX_EVENTS = 100_000, 1000, 5_000_000
MAX_REQUESTS, MAX_ITEMS_OF_REQUESTS = 200_000, 5_000_000
MAX_EARLY, MAX_EARLY_EACH = 2000, 100
_HOUR_MS = 3_600_000
_NAMED = 3  # records that cannot be read; the others are counted


@dataclass(slots=True)
class _Request:
    """A response that actions may come to."""

    time_ms: int
    user_id: str
    item_ids: frozenset[str]
    acted_ms: dict[str, int] = field(default_factory=dict)
    """When each item was first acted on."""


class Recent:
    """Events of the users who were here last, within bounds; safe to call from several threads.

    What is told twice counts once. As in the events that Spark makes, an item shown has the time of its response; where
    actions make events, the time of the first one that counts: of the response's user, on an item of it, in time, with
    the value that the labels of its kind take.
    """

    def __init__(
        self,
        rules: FeedbackRules | None,
        tie: Tie = by_position,
        *,
        max_users: int = MAX_USERS,
        max_items_per_user: int = MAX_ITEMS_PER_USER,
        max_events: int = MAX_EVENTS,
        max_requests: int = MAX_REQUESTS,
    ) -> None:
        self._max_users, self._max_items, self._max_events = max_users, max_items_per_user, max_events
        self._max_requests = max_requests
        self._lock = threading.Lock()
        self.num_unreadable = 0
        labels = list(rules.labels.values()) if rules is not None else []
        self._each_shown = rules is not None and rules.event == "impression"
        self._actions = frozenset(label.action for label in labels)
        self._without_value = frozenset(label.action for label in labels if label.take == "happened")
        self._window_ms = round(rules.window_hours * _HOUR_MS) if rules is not None else 0
        self._tie = tie
        self._events: OrderedDict[str, dict[tuple[int, str], int]] = OrderedDict()
        self._num_events = 0
        self._requests: OrderedDict[str, _Request] = OrderedDict()
        self._num_items_of_requests = 0
        self._early: OrderedDict[str, list[tuple[str, str, int]]] = OrderedDict()

    def shown(self, impression: Impression) -> None:
        items = [item.item_id for item in impression.items]
        self._taken(
            impression.request_id,
            lambda: self._shown(impression.request_id, impression.user_id, impression.time_ms, items),
        )

    def acted(self, action: Action) -> None:
        self._record_acted(action.model_dump())

    def since(self, user_id: str, after_ms: int) -> Done:
        """The user's events after a time, oldest first, as Spark orders them."""
        with self._lock:
            events = self._events.get(user_id)
            if events is None:
                return ()
            self._events.move_to_end(user_id)
            later = [(event[0], tie, event) for event, tie in events.items() if event[0] > after_ms]
        return [event for _, _, event in sorted(later, key=lambda one: one[:2])]

    @property
    def num_users(self) -> int:
        return len(self._events)

    @property
    def num_events(self) -> int:
        return self._num_events

    def refill(self, logs: Path, after_ms: int) -> int:
        """Read what the logs hold from after a time on, of all writers; give the number of records."""
        return tell_new(self.readers(logs, after_ms))

    def readers(self, logs: Path, after_ms: int) -> dict[LogReader, Callable[[Record], None]]:
        """Of impressions, then of actions, with what takes their records."""
        # An action makes an event of its own time: its response may be older by the window.
        shown_after_ms = after_ms if self._each_shown else after_ms - self._window_ms
        return {
            LogReader(logs / "impressions", after_ms=shown_after_ms): self._record_shown,
            LogReader(logs / "actions", after_ms=after_ms): self._record_acted,
        }

    def _record_shown(self, record: Record) -> None:
        def tell() -> None:
            items = [item["item_id"] for item in record["items"]]
            self._shown(record["request_id"], record["user_id"], record["time_ms"], items)

        self._taken(record.get("request_id"), tell)

    def _record_acted(self, record: Record) -> None:
        def tell() -> None:
            if self._each_shown or record["action"] not in self._actions:
                return
            if record.get("value") is None and record["action"] not in self._without_value:
                return
            with self._lock:
                self._acted(record["request_id"], record["user_id"], record["item_id"], record["time_ms"])

        self._taken(record.get("request_id"), tell)

    def _taken(self, request_id: object, tell: Callable[[], None]) -> None:
        """A record that cannot be taken is named and passed over: it is in the log, and would end every later start."""
        try:
            tell()
        except Exception as error:  # whatever an older release, or another program, has let into the log
            self.num_unreadable += 1
            if self.num_unreadable <= _NAMED:
                reason = f"{type(error).__name__}: {error}"
                with suppress(OSError):
                    print(f"serve: a record of request {request_id} is passed over: {reason}", file=sys.stderr)

    def _shown(self, request_id: str, user_id: str, time_ms: int, item_ids: list[str]) -> None:
        with self._lock:
            if self._each_shown:
                self._add(user_id, [(time_ms, item_id) for item_id in item_ids])
            elif self._actions and request_id not in self._requests:
                of_items = frozenset(map(sys.intern, item_ids))
                self._requests[request_id] = _Request(time_ms, user_id, of_items)
                self._num_items_of_requests += len(of_items)
                while len(self._requests) > self._max_requests or self._num_items_of_requests > MAX_ITEMS_OF_REQUESTS:
                    _, gone = self._requests.popitem(last=False)
                    self._num_items_of_requests -= len(gone.item_ids)
                for early in self._early.pop(request_id, ()):
                    self._acted(request_id, *early)

    def _acted(self, request_id: str, user_id: str, item_id: str, time_ms: int) -> None:
        request = self._requests.get(request_id)
        if request is None:
            # Another process may have answered, and its log be read later than this one.
            early = self._early.setdefault(request_id, [])
            if len(early) < MAX_EARLY_EACH:
                early.append((user_id, item_id, time_ms))
            if len(self._early) > MAX_EARLY:
                self._early.popitem(last=False)
            return
        if user_id != request.user_id or item_id not in request.item_ids:
            return
        if time_ms > request.time_ms + self._window_ms:
            return
        known_ms = request.acted_ms.get(item_id)
        if known_ms is not None and known_ms <= time_ms:
            return
        if known_ms is not None and self._events.get(user_id, {}).pop((known_ms, item_id), None) is not None:
            self._num_events -= 1
        request.acted_ms[item_id] = time_ms
        self._add(user_id, [(time_ms, item_id)])

    def _add(self, user_id: str, new: list[tuple[int, str]]) -> None:
        with_ties = {(at, sys.intern(item_id)): self._tie(user_id, item_id, at) for at, item_id in new}
        events = self._events.setdefault(user_id, {})
        before = len(events)
        events.update(with_ties)
        if len(events) > self._max_items:
            for oldest in sorted(events)[: len(events) - self._max_items]:
                del events[oldest]
        self._num_events += len(events) - before
        self._events.move_to_end(user_id)
        while len(self._events) > self._max_users or (self._num_events > self._max_events and len(self._events) > 1):
            _, gone = self._events.popitem(last=False)
            self._num_events -= len(gone)
