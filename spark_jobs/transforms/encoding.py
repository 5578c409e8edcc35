"""The tables of a snapshot: events, items and users with all that was fitted on train applied to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType

from schemas.contract import Contract
from schemas.features import (
    EncodedFeature,
    Feature,
    FeatureTransform,
    GapsFeature,
    HistoryFeature,
    IndexFeature,
    IndicesFeature,
    PastFeature,
    TokensFeature,
)
from schemas.manifest import QueryGrain
from spark_jobs.transforms.feature_columns import RowFeature, feature_column
from spark_jobs.transforms.fitting import Fitted, FittedVocabulary
from spark_jobs.transforms.histories import items_per_user, left_padded, with_history
from spark_jobs.transforms.past import past_of, with_past
from spark_jobs.transforms.versions import VALID_FROM, latest, with_entity_columns
from spark_jobs.transforms.vocabulary import with_index, with_indices

QUERY_COLUMNS = ("query_id", "seen", "negatives")
"""What held-out rows have beside their history."""
_TIMES = "history_times_ms"
_MADE = "_made_"  # before a feature's name until all are made


@dataclass(frozen=True)
class HistoryShape:
    """How much of a user's past stands in a row."""

    length: int
    seen_length: int
    with_gaps: bool

    @property
    def columns(self) -> list[str]:
        return ["history", *(["history_gaps"] if self.with_gaps else [])]


@dataclass(frozen=True)
class FittedTables:
    """All that was fitted on train: ids of users and items where the log has such, and the features of three tables."""

    ids: dict[str, FittedVocabulary] = field(default_factory=dict)
    """`user` and `item`."""
    users: Fitted = field(default_factory=Fitted)
    items: Fitted = field(default_factory=Fitted)
    events: Fitted = field(default_factory=Fitted)

    def vocabularies(self) -> dict[str, FittedVocabulary]:
        return {**self.ids, **self.users.vocabularies, **self.items.vocabularies, **self.events.vocabularies}

    def transform(self, shape: HistoryShape | None) -> FeatureTransform:
        ids: list[Feature] = []
        if "user" in self.ids:
            ids.append(IndexFeature(name="user_idx", source="user_id", owner="users", vocabulary="user"))
        if "item" in self.ids:
            ids.append(IndexFeature(name="item_idx", source="item_id", owner="items", vocabulary="item"))
        if shape is not None:
            ids.append(HistoryFeature(length=shape.length))
            ids += [GapsFeature(length=shape.length)] if shape.with_gaps else []
        return FeatureTransform(
            features=(*ids, *self.users.features, *self.items.features, *self.events.features),
            vocabularies={name: fitted.vocabulary for name, fitted in self.vocabularies().items()},
        )


def with_ids(rows: DataFrame, fitted: FittedTables) -> DataFrame:
    """Add user_idx and item_idx. In and out: the same rows, with user_id and item_id."""
    for name, ids in fitted.ids.items():
        rows = with_index(
            rows, source=f"{name}_id", vocabulary=ids.entries, name=f"{name}_idx", num_values=ids.num_values
        )
    return rows


def with_features(
    rows: DataFrame, fitted: Fitted, *, key: str, past: Mapping[str, DataFrame] | None = None
) -> DataFrame:
    """Add every fitted feature's column. In and out: the same rows, which `key` must name.

    `past` holds what features of the past look up, by name. A feature may have the name of its source.
    """
    plain = rows.columns
    own: dict[str, Column] = {}
    for feature in fitted.features:
        made = _MADE + feature.name
        if isinstance(feature, IndexFeature):
            known = fitted.vocabularies[feature.vocabulary]
            rows = with_index(
                rows, source=feature.source, vocabulary=known.entries, name=made, num_values=known.num_values
            )
        elif isinstance(feature, IndicesFeature):
            entries = fitted.vocabularies[feature.vocabulary].entries
            rows = with_indices(
                rows, source=feature.source, vocabulary=entries, name=made, length=feature.length, key=key
            )
        elif isinstance(feature, PastFeature):
            assert past is not None
            rows = with_past(rows, feature, past[feature.name], name=made)
        elif isinstance(feature, RowFeature):
            of_list = isinstance(feature, TokensFeature) and isinstance(rows.schema[feature.source].dataType, ArrayType)
            own[feature.name] = feature_column(feature, is_list=of_list)
    names = [feature.name for feature in fitted.features]
    features = [own[name].alias(name) if name in own else F.col(_MADE + name).alias(name) for name in names]
    return rows.select(*(name for name in plain if name not in names), *features)


def all_users(users: DataFrame | None, events: DataFrame, fitted: FittedTables) -> DataFrame:
    """One row per user of the log or of the user table: user_id, user_idx and features as of the end."""
    known = events.select("user_id").distinct()
    if users is not None:
        now = latest(users, key="user_id") if VALID_FROM in users.columns else users
        known = known.unionByName(now.select("user_id")).distinct().join(now, on="user_id", how="left")
    ids = fitted.ids["user"]
    known = with_index(known, source="user_id", vocabulary=ids.entries, name="user_idx", num_values=ids.num_values)
    featured = with_features(known, fitted.users, key="user_id")
    return featured.select("user_id", "user_idx", *(feature.name for feature in fitted.users.features))


@dataclass(frozen=True)
class LookUps:
    """What rows of events are joined with, made once for all splits."""

    past: Mapping[str, DataFrame]
    """By feature of the past."""
    entities: Mapping[str, tuple[DataFrame, Fitted]]
    """By `user_id` and `item_id`: the features of each user or item, or of each version of one."""


def look_ups(
    events: DataFrame,
    entities: Mapping[str, DataFrame],
    fitted: FittedTables,
    *,
    past: Mapping[str, DataFrame] | None = None,
) -> LookUps:
    """In: the events, and by `user_id` and `item_id` the tables whose features rows are to have. All are persisted.

    `past` is what features of the past look up, where it is not that of every event.
    """
    if past is None:
        past = {f.name: past_of(events, f) for f in fitted.events.features if isinstance(f, PastFeature)}
    past = {name: known.persist() for name, known in past.items()}
    of_key = {"user_id": fitted.users, "item_id": fitted.items}
    encoded = {key: (_encoded(table, of_key[key], key).persist(), of_key[key]) for key, table in entities.items()}
    return LookUps(past, encoded)


def encoded(rows: DataFrame, fitted: FittedTables, known: LookUps) -> DataFrame:
    """Add the features of events and of their users and items. In and out: one row per event, of all splits or some."""
    rows = with_features(rows, fitted.events, key="row_id", past=known.past)
    for key, (entities, features) in known.entities.items():
        joined = with_entity_columns(rows, entities, key=key)
        rows = joined.withColumns({f.name: F.coalesce(F.col(f.name), _of_nothing(f)) for f in features.features})
    return rows


def _encoded(entities: DataFrame, fitted: Fitted, key: str) -> DataFrame:
    """The features of a table of users or items: `key`, valid_from_ms where rows are versions, and features."""
    kept = [key, *([VALID_FROM] if VALID_FROM in entities.columns else [])]
    named = entities.withColumn("_row", F.xxhash64(*kept))
    return with_features(named, fitted, key="_row").select(*kept, *(feature.name for feature in fitted.features))


def _of_nothing(feature: Feature) -> Column:
    """What a feature is for a row of nulls: for users and items that their table does not know (yet)."""
    assert isinstance(feature, EncodedFeature)
    empty: dict[str, dict[str, int]] = {getattr(feature, "vocabulary", ""): {}}
    value = feature.encode({}, empty)
    return F.array(*map(F.lit, value)) if isinstance(value, list) else F.lit(value).cast(feature.dtype[:-2])


def train_rows(
    train: DataFrame, fitted: FittedTables, grain: QueryGrain, shape: HistoryShape, *, kept: Column | None = None
) -> DataFrame:
    """Add user_idx, item_idx and `history` to train's events. In: one row per event; out: one per event `kept`."""
    if kept is None:
        kept = F.lit(True)
    else:  # histories of all other users are not asked for
        train = train.join(train.where(kept).select("user_id").distinct(), on="user_id", how="left_semi")
    train = with_ids(train, fitted)
    if grain == "event":  # what came before an event of train is train too
        return with_history(train, length=shape.length, with_gaps=shape.with_gaps).where(kept)
    # All of a user's train items but the row's own: a random split hides items in between, not in the past.
    known = items_per_user(train, length=shape.seen_length, name="_train")
    joined = train.where(kept).join(known, on="user_id", how="left")
    others = F.array_remove(F.coalesce("_train", _nothing()), F.col("item_idx"))
    return joined.withColumn("history", left_padded(others, shape.length)).drop("_train")


def held_out_rows(rows: DataFrame, grain: QueryGrain, shape: HistoryShape) -> DataFrame:
    """Events of valid and test with `history`, `query_id` and `seen`. In: one row per event of all splits."""
    held_out = rows.where("split != 'train'")
    if grain == "event":
        asked = held_out.select("user_id").distinct()
        of_asked = rows.join(asked, on="user_id", how="left_semi")
        whole = with_history(of_asked, length=shape.length, seen_length=shape.seen_length, with_gaps=shape.with_gaps)
        return whole.where("split != 'train'").withColumn("query_id", F.col("row_id"))
    trained = items_per_user(rows.where("split = 'train'"), length=shape.seen_length, name="_train")
    known = items_per_user(rows.where("split != 'test'"), length=shape.seen_length, name="_known")
    joined = held_out.join(trained, on="user_id", how="left").join(known, on="user_id", how="left")
    train_items = F.coalesce("_train", _nothing())
    earlier = F.when(F.col("split") == "valid", train_items).otherwise(F.coalesce("_known", _nothing()))
    return (
        joined.withColumn("history", left_padded(train_items, shape.length))
        .withColumn("query_id", F.xxhash64("user_id"))
        .withColumn("seen", earlier)
        .drop("_train", "_known")
    )


def item_rows(items: DataFrame | None, fitted: FittedTables, contract: Contract) -> DataFrame:
    """One row per item that can be recommended: item_idx, item_id, title, count in train, features; by item_idx."""
    known = fitted.ids["item"].entries.select(F.col("value").alias("item_id"), F.col("idx").alias("item_idx"), "count")
    titles: list[str] = []
    if items is not None and contract.items is not None:
        now = latest(items, key="item_id") if VALID_FROM in items.columns else items
        known = known.join(now, on="item_id", how="left")
        titles = [column.name for column in contract.items.with_role("title")]
    featured = with_features(known.withColumn("title", F.coalesce(*titles, "item_id")), fitted.items, key="item_id")
    names = [feature.name for feature in fitted.items.features]
    return featured.select("item_idx", "item_id", "title", "count", *names).orderBy("item_idx")


def user_rows(
    users: DataFrame | None, events: DataFrame, fitted: FittedTables, shape: HistoryShape | None
) -> DataFrame:
    """One row per user as of the end of the log: what a recommendation made now starts from."""
    known = all_users(users, events, fitted)
    if shape is None:
        return known
    now = items_per_user(events, length=shape.seen_length, name="seen", times=_TIMES if shape.with_gaps else None)
    joined = known.join(now, on="user_id", how="left")
    seen = F.coalesce("seen", _nothing())
    if shape.with_gaps:  # what the gaps of a later event are counted from
        times = F.coalesce(_TIMES, F.array().cast("array<bigint>"))
        joined = joined.withColumn(_TIMES, left_padded(times, shape.length))
    return joined.withColumn("seen", seen).withColumn("history", left_padded(seen, shape.length))


def _nothing() -> Column:
    return F.array().cast("array<int>")
