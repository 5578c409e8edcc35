"""Assigning every event to train, valid or test: by time, by each user's last events, or by a seeded ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from schemas.errors import UserError
from schemas.manifest import QueryGrain
from spark_jobs.transforms.event_days import DAY_MS

_HISTOGRAM_BUCKETS = 65_536


@dataclass(frozen=True, kw_only=True)
class SplitPolicy:
    """How to split; `shares` are of train, valid and test, `cuts_ms` are the first moments of valid and of test."""

    kind: Literal["time", "leave_last_out", "ratio"]
    shares: tuple[float, float, float] | None = None
    cuts_ms: tuple[int, int] | None = None

    @property
    def query_grain(self) -> QueryGrain:
        """A random split hides items out of the middle of a history: there the user is asked about, not an event."""
        return "user" if self.kind == "ratio" else "event"


def parse_split(text: str) -> SplitPolicy:
    """`time:0.8,0.1,0.1`, `time:2024-05-01,2024-05-08`, `leave_last_out` or `ratio:0.8,0.1,0.1`."""
    kind, _, rest = text.partition(":")
    parts = [part.strip() for part in rest.split(",")] if rest else []
    try:
        if kind == "leave_last_out" and not parts:
            return SplitPolicy(kind="leave_last_out")
        if kind == "time" and len(parts) == 2:
            first, second = (_utc_ms(part) for part in parts)
            if first < second:
                return SplitPolicy(kind="time", cuts_ms=(first, second))
        if kind in ("time", "ratio") and len(parts) == 3:
            train, valid, test = (float(part) for part in parts)
            if min(train, valid, test) > 0 and abs(train + valid + test - 1) < 1e-9:
                return SplitPolicy(kind="time" if kind == "time" else "ratio", shares=(train, valid, test))
    except ValueError:
        pass
    raise UserError(
        f"split {text!r} is none of time:0.8,0.1,0.1 (shares above 0 that sum to 1), time:2024-05-01,2024-05-08 "
        "(first day of valid, first day of test), leave_last_out, ratio:0.8,0.1,0.1."
    )


def settled(policy: SplitPolicy, events: DataFrame, rows_by_day: Mapping[int, int]) -> SplitPolicy:
    """The policy with its cut times found, where it splits by shares of time. See `times_at_shares`."""
    if policy.kind != "time" or policy.cuts_ms is not None:
        return policy
    return replace(policy, cuts_ms=times_at_shares(events, policy.shares, rows_by_day))


def with_split(events: DataFrame, policy: SplitPolicy, *, seed: int) -> DataFrame:
    """Add `split`: train, valid or test. In and out: one row per event, with row_id, user_id and event_time_ms."""
    if policy.kind == "time":
        cuts = settled(policy, events, {}).cuts_ms
        assert cuts is not None
        return events.withColumn("split", _by_time(cuts))
    if policy.kind == "leave_last_out":
        return events.withColumn("split", _by_last_events())
    assert policy.shares is not None
    return events.withColumn("split", _by_ratio(policy.shares, seed))


def times_at_shares(
    events: DataFrame, shares: tuple[float, float, float] | None, rows_by_day: Mapping[int, int] | None = None
) -> tuple[int, int]:
    """The first moments of valid and of test: as few events as possible, but at least the share, lie before each.

    Exact and the same on every run, by histograms of 65,536 buckets around the wanted moments, each finer than the
    last; both moments are looked for in the same passes. Where `rows_by_day` says how many events each day has (by
    its number since 1970, UTC), the search begins inside the days that hold the moments.
    """
    assert shares is not None
    spans = _spans(events, rows_by_day or {})
    total = sum(rows for _, _, rows in spans)
    valid, test = (_search(spans, share * total - 1e-6) for share in (shares[0], shares[0] + shares[1]))
    while searches := [search for search in (valid, test) if search.low < search.high]:
        places = [F.when(search.holds(), search.bucket()) for search in searches]
        each = events.select(F.posexplode(F.array(*places)).alias("search", "bucket")).where("bucket is not null")
        # Collected: a row a bucket that holds events.
        counts = each.groupBy("search", "bucket").count().collect()
        for number, search in enumerate(searches):
            search.narrow(sorted((row["bucket"], row["count"]) for row in counts if row["search"] == number))
    return valid.low + 1, test.low + 1


def _spans(events: DataFrame, rows_by_day: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """Stretches of time in order, with their first and last millisecond and their events: the days, or one for all."""
    if rows_by_day:
        return [(day * DAY_MS, (day + 1) * DAY_MS - 1, rows) for day, rows in sorted(rows_by_day.items())]
    bounds = events.agg(F.min("event_time_ms"), F.max("event_time_ms"), F.count("*")).first()
    assert bounds is not None
    return [(bounds[0], bounds[1], bounds[2])]


def _search(spans: Sequence[tuple[int, int, int]], wanted: float) -> _Search:
    before = 0
    for first, last, rows in spans:
        if before + rows >= wanted:
            return _Search(wanted, first, last, before)
        before += rows
    raise AssertionError("a share of the events lies within them")


@dataclass
class _Search:
    """For the moment with `wanted` events before it: it lies in low to high, in milliseconds, `before` events below."""

    wanted: float  # a little less than asked for, since shares such as 0.8 + 0.1 are not exact
    low: int
    high: int
    before: int = 0

    @property
    def width(self) -> int:
        return max(1, -(-(self.high - self.low + 1) // _HISTOGRAM_BUCKETS))

    def holds(self) -> Column:
        return F.col("event_time_ms").between(self.low, self.high)

    def bucket(self) -> Column:
        return F.floor((F.col("event_time_ms") - self.low) / self.width)

    def narrow(self, counts: list[tuple[int, int]]) -> None:
        """Go on inside the bucket that holds the moment."""
        place = 0
        while self.before + counts[place][1] < self.wanted:
            self.before += counts[place][1]
            place += 1
        low, width = self.low + counts[place][0] * self.width, self.width
        self.low, self.high = low, min(self.high, low + width - 1)


def _by_time(cuts_ms: tuple[int, int]) -> Column:
    time = F.col("event_time_ms")
    return F.when(time < cuts_ms[0], "train").when(time < cuts_ms[1], "valid").otherwise("test")


def _by_last_events() -> Column:
    """Each user's last event is test, the one before valid; users with fewer than three events are all train."""
    from_last = Window.partitionBy("user_id").orderBy(F.desc("event_time_ms"), "row_id")
    position = F.row_number().over(from_last)
    enough = F.count("*").over(Window.partitionBy("user_id")) >= 3
    return F.when(enough & (position == 1), "test").when(enough & (position == 2), "valid").otherwise("train")


def _by_ratio(shares: tuple[float, float, float], seed: int) -> Column:
    """Of each user's events in a seeded order, floor(share x n) are test and valid, but at least one of three."""
    user = Window.partitionBy("user_id")
    count = F.count("*").over(user)
    position = F.row_number().over(user.orderBy(F.xxhash64("row_id", F.lit(seed)), "row_id"))
    least = F.when(count >= 3, 1).otherwise(0)
    # 1e-9: 0.1 x 30 is a little less than 3 in binary
    test = F.greatest(F.floor(count * shares[2] + 1e-9), least)
    valid = F.greatest(F.floor(count * shares[1] + 1e-9), least)
    return F.when(position <= test, "test").when(position <= test + valid, "valid").otherwise("train")


def _utc_ms(text: str) -> int:
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
