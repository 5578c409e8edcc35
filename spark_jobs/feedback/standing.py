"""Where the last run of the feedback job left off: what came since, and what time alone has changed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from pyspark.sql import SparkSession

from schemas.contract import Contract
from schemas.errors import UserError
from schemas.event_store import SourceFile
from schemas.feedback import FeedbackRules
from schemas.feedback_state import FeedbackState, ShownFile
from schemas.manifest import Manifest
from schemas.settings import digest_of
from spark_jobs.day_plan import Arrivals, arrivals
from spark_jobs.feedback.landed import count_actions, count_impressions
from spark_jobs.feedback.report import HOUR_MS
from spark_jobs.hadoop_files import FileStatus
from spark_jobs.session import step

Found = tuple[list[FileStatus], list[FileStatus]]
"""Landed files of impressions and of actions."""
_ITEMS = "seed's items"
_NAMED = {"rules": "rules", "contract": "base", _ITEMS: "items"}
"""What may have changed, in words, by its name in the manifest's settings."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """Landed files as they are now, and what came; pairs are of impressions and actions."""

    came: tuple[Arrivals, Arrivals]
    impressions: tuple[ShownFile, ...]
    actions: tuple[SourceFile, ...]
    landed_until_ms: int
    """Time of the latest response or action of all."""

    @property
    def gone(self) -> frozenset[str]:
        return frozenset(file.url for came in self.came for file in came.gone)

    @property
    def unread(self) -> bool:
        return any(came.unread for came in self.came)


def settings_of(base: Contract, rules: FeedbackRules, seed: Manifest) -> dict[str, str | None]:
    """By what the events are made, beside what was landed; `items` of the seed's, where events copy from them."""
    items = seed.store.tables["items"].total() if rules.from_item and seed.store is not None else None
    return {
        "base": base.digest(),
        "rules": digest_of(rules.model_dump(mode="json")),
        "items": digest_of([items.accepted, items.checksum]) if items is not None else None,
    }


def standing_state(
    standing: Manifest | None, settings: dict[str, str | None], found: Found, *, rebuild: bool
) -> FeedbackState | None:
    """What the last run left; None where everything is to be built.

    Raises UserError where another contract or other rules ask for files that are gone. Other items do not: what
    stands was copied from the items of its time.
    """
    if standing is None or standing.feedback is None or rebuild:
        return None
    changed = [what for what, key in _NAMED.items() if standing.config.get(key) != settings[key]]
    if not changed:
        return standing.feedback
    stood = (standing.feedback.impressions, standing.feedback.actions)
    gone = [file for files, there in zip(stood, found, strict=True) for file in arrivals(files, there).gone]
    if gone and changed == [_ITEMS]:
        print(f"feedback: the seed's items changed; {gone[0].url} is gone, so days that stand keep what they copied.")
        return standing.feedback
    if gone:
        raise UserError(
            f"all days must be built again (the {changed[0]} changed), and {gone[0].url} is gone: bring it back, or "
            "give --rebuild to make the events of the files that are there."
        )
    print(f"feedback: all days are built again: the {changed[0]} changed.")
    return None


def settled_as_of(given_ms: int | None, before: FeedbackState | None, out: str) -> int:
    """The moment given, or now. UserError where it is before that of the last run."""
    moment_ms = given_ms if given_ms is not None else int(datetime.now(UTC).timestamp() * 1000)
    if before is not None and moment_ms < before.as_of_ms:
        stood = datetime.fromtimestamp(before.as_of_ms / 1000, UTC).isoformat(timespec="seconds")
        raise UserError(f"{out} was judged as of {stood}, and --as-of is before that: give a later one, or --rebuild.")
    return moment_ms


def count_files(spark: SparkSession, found: Found, before: FeedbackState | None) -> Files:
    """Which files are new, and what they hold; the others are known. Gone ones stay known."""
    stood = (before.impressions, before.actions) if before is not None else ((), ())
    came = (arrivals(stood[0], found[0]), arrivals(stood[1], found[1]))
    with step(spark, "feedback: what the files hold"):
        impressions, shown_until_ms = count_impressions(spark, came[0].unread)
        actions, done_until_ms = count_actions(spark, came[1].unread)
    new = ({file.url for file in impressions}, {file.url for file in actions})
    return Files(
        came=came,
        impressions=(*(file for file in stood[0] if file.url not in new[0]), *impressions),
        actions=(*(file for file in stood[1] if file.url not in new[1]), *actions),
        landed_until_ms=max(before.landed_until_ms if before is not None else 0, shown_until_ms, done_until_ms),
    )


def due(before: FeedbackState | None, rules: FeedbackRules, as_of_ms: int, *, came: bool) -> list[str]:
    """Days in which time alone changes something: a window has closed, or a weight is another now.

    What came may say more of delays, by which all weights go.
    """
    if before is None or (as_of_ms == before.as_of_ms and not came):
        return []
    if rules.young == "weight":
        # Nothing landed since: more is seen only where the last run looked at a moment before its last landed row.
        more = came or before.seen_until_ms(as_of_ms) != before.seen_until_ms(before.as_of_ms)
        return [day for day, of in before.days.items() if (more and of.young) or of.first_waiting_ms is not None]
    closed_ms = as_of_ms - round(rules.window_hours * HOUR_MS)
    return [
        day
        for day, of_day in before.days.items()
        if of_day.first_waiting_ms is not None and of_day.first_waiting_ms <= closed_ms
    ]
