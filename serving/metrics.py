"""What a server says of itself to Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class Metrics:
    """Of one process; `outcome` is ok, fallback, shed, invalid, refused or log_failed."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "headrace_request_seconds", "From request to answer", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.requests = Counter("headrace_requests", "By outcome", ["route", "outcome"], registry=self.registry)
        self.fallbacks = Counter(
            "headrace_fallbacks", "Answers with popular items, by reason", ["reason"], registry=self.registry
        )
        self.shown = Counter("headrace_items_shown", "Items shown", registry=self.registry)
        self.explored = Counter("headrace_items_explored", "Of these, by chance", registry=self.registry)
        self.actions = Counter("headrace_actions", "Actions taken", registry=self.registry)
        self.refused = Counter(
            "headrace_refused", "Requests that the app never saw", ["reason", "key"], registry=self.registry
        )
        self.generation = Gauge("headrace_generation", "1 for the release in service", ["id"], registry=self.registry)
        self.swaps = Counter("headrace_swaps", "Releases that took the place of another", registry=self.registry)
        self.broken = Gauge("headrace_broken_release", "1 while the champion cannot be loaded", registry=self.registry)
        self._queue = Gauge("headrace_queue", "Requests that wait for the models", registry=self.registry)
        self._users = Gauge("headrace_recent_users", "Users with events since the release", registry=self.registry)
        self._unreadable = Gauge(
            "headrace_unreadable_records", "Records of logs that were passed over", registry=self.registry
        )
        self._share = Gauge("headrace_exploration_share", "Items explored of items shown", registry=self.registry)
        self._num_shown = self._num_explored = 0

    def watch(self, *, queue: Callable[[], int], users: Callable[[], int], unreadable: Callable[[], int]) -> None:
        self._queue.set_function(queue)
        self._users.set_function(users)
        self._unreadable.set_function(unreadable)
        self._share.set_function(lambda: self._num_explored / self._num_shown if self._num_shown else 0.0)

    def note_shown(self, items: int, explored: int) -> None:
        self._num_shown += items
        self._num_explored += explored
        self.shown.inc(items)
        self.explored.inc(explored)

    def note_generation(self, generation: str) -> None:
        self.generation.clear()
        self.generation.labels(generation).set(1)

    def text(self) -> bytes:
        return generate_latest(self.registry)
