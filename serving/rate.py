"""Token buckets: each name gets so many requests a second, and a burst after a rest."""

from __future__ import annotations

import math
from collections import OrderedDict


class TokenBuckets:
    """A bucket a name, at most `names` of them; a name that was forgotten begins with a full bucket again."""

    def __init__(self, *, names: int) -> None:
        self._names = names
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, name: str, *, per_s: float, burst: float, now: float) -> int:
        """0 where a request may pass, which takes a token; else whole seconds until there is one again."""
        tokens, last = self._buckets.pop(name, (burst, now))
        tokens = min(burst, tokens + (now - last) * per_s)
        passes = tokens >= 1
        self._buckets[name] = (tokens - 1 if passes else tokens, now)
        if len(self._buckets) > self._names:
            self._buckets.popitem(last=False)
        return 0 if passes else max(1, math.ceil((1 - tokens) / per_s))

    def __len__(self) -> int:
        return len(self._buckets)
