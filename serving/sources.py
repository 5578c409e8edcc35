"""What decides a feature of events, the request, the item, or both: when a server can make it, and how often.

`items__x` and `users__x` are columns that a feature of events borrows from the item's or the user's row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from schemas.features import AnyFeature, FeatureTransform, GapsFeature, HashFeature, HistoryFeature, PastFeature

Decides = Literal["request", "item", "both"]


def sources_of(feature: AnyFeature) -> tuple[str, ...]:
    """Columns that the feature is made of; none for histories, which are made of events."""
    if isinstance(feature, HistoryFeature | GapsFeature):
        return ()
    if isinstance(feature, PastFeature):
        return feature.by
    return feature.sources if isinstance(feature, HashFeature) else (feature.source,)


def decides(feature: AnyFeature, from_item: Iterable[str]) -> Decides:
    """Who decides a feature of events, where the columns `from_item` are copied from the item's row."""
    of_item = [name == "item_id" or name in from_item or name.startswith("items__") for name in sources_of(feature)]
    if not any(of_item):
        return "request"
    return "item" if all(of_item) else "both"


def made_of_events(transform: FeatureTransform) -> tuple[AnyFeature, ...]:
    """Features of events but for histories."""
    return tuple(f for f in transform.of("events") if not isinstance(f, HistoryFeature | GapsFeature))


def item_columns(transform: FeatureTransform, from_item: Iterable[str]) -> set[str]:
    """Columns, by the names of events, that features take from the item's row."""
    used = {source for feature in made_of_events(transform) for source in sources_of(feature)}
    return {source for source in used if source in from_item or source.startswith("items__")}


def user_columns(transform: FeatureTransform) -> set[str]:
    used = {source for feature in made_of_events(transform) for source in sources_of(feature)}
    return {source for source in used if source.startswith("users__")}
