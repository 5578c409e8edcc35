"""The tables of a snapshot: events, items and users with all that was fitted on train applied to them."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.contract import Contract
from schemas.features import FeatureTransform, HistoryFeature, IndexFeature
from schemas.manifest import QueryGrain
from spark_jobs.transforms.fitting import Fitted, FittedVocabulary
from spark_jobs.transforms.fitting import with_features as with_fitted_features
from spark_jobs.transforms.histories import items_per_user, left_padded, with_history, with_seen
from spark_jobs.transforms.vocabulary import with_index


@dataclass(frozen=True)
class FittedTables:
    """All that was fitted on train: ids, and the features of the three tables."""

    user_ids: FittedVocabulary
    item_ids: FittedVocabulary
    users: Fitted
    items: Fitted
    events: Fitted

    def vocabularies(self) -> dict[str, FittedVocabulary]:
        ids = {"user": self.user_ids, "item": self.item_ids}
        return ids | self.users.vocabularies | self.items.vocabularies | self.events.vocabularies

    def transform(self, history_length: int) -> FeatureTransform:
        ids = (
            IndexFeature(name="user_idx", source="user_id", owner="users", vocabulary="user"),
            IndexFeature(name="item_idx", source="item_id", owner="items", vocabulary="item"),
            HistoryFeature(length=history_length),
        )
        return FeatureTransform(
            features=(*ids, *self.users.features, *self.items.features, *self.events.features),
            vocabularies={name: fitted.vocabulary for name, fitted in self.vocabularies().items()},
        )


def with_ids(events: DataFrame, fitted: FittedTables) -> DataFrame:
    """Add user_idx, item_idx and the events' own features. In and out: one row per event."""
    events = with_index(events, source="user_id", vocabulary=fitted.user_ids.entries, name="user_idx")
    events = with_index(events, source="item_id", vocabulary=fitted.item_ids.entries, name="item_idx")
    return with_fitted_features(events, fitted.events, key="row_id")


def with_user_features(users: DataFrame | None, events: DataFrame, fitted: FittedTables) -> DataFrame:
    """One row per user of the log or of the user table: user_id, user_idx and features."""
    known = events.select("user_id").distinct()
    if users is not None:
        known = known.unionByName(users.select("user_id")).distinct().join(users, on="user_id", how="left")
    known = with_index(known, source="user_id", vocabulary=fitted.user_ids.entries, name="user_idx")
    featured = with_fitted_features(known, fitted.users, key="user_id")
    return featured.select("user_id", "user_idx", *(feature.name for feature in fitted.users.features)).persist()


def with_user_columns(rows: DataFrame, known_users: DataFrame, fitted: FittedTables) -> DataFrame:
    """Add the users' features. In and out: one row per event."""
    if not fitted.users.features:
        return rows
    return rows.join(known_users.drop("user_idx"), on="user_id", how="left")


def with_histories(rows: DataFrame, grain: QueryGrain, *, history_length: int, seen_length: int) -> DataFrame:
    """Add `history`, and for valid and test `query_id` and `seen` (both empty in train)."""
    nothing = F.array().cast("array<int>")
    if grain == "event":
        with_past = with_history(rows, length=history_length)
        asked = rows.where("split != 'train'").select("user_id").distinct()
        seen = with_seen(rows.join(asked, on="user_id", how="left_semi"), length=seen_length)
        held_out = seen.where("split != 'train'").select("row_id", "seen")
        joined = with_past.join(held_out, on="row_id", how="left")
        return joined.withColumn("query_id", F.col("row_id")).withColumn("seen", F.coalesce("seen", nothing))
    # Of a user's train items all but the row's own: what a random split hides is not in the past but in between.
    trained = items_per_user(rows.where("split = 'train'"), length=seen_length, name="_train")
    known = items_per_user(rows.where("split != 'test'"), length=seen_length, name="_known")
    joined = rows.join(trained, on="user_id", how="left").join(known, on="user_id", how="left")
    train_items = F.coalesce("_train", nothing)
    others = F.when(F.col("split") == "train", F.array_remove(train_items, F.col("item_idx"))).otherwise(train_items)
    earlier = F.when(F.col("split") == "valid", train_items).otherwise(F.coalesce("_known", nothing))
    return (
        joined.withColumn("history", left_padded(others, history_length))
        .withColumn("query_id", F.xxhash64("user_id"))
        .withColumn("seen", F.when(F.col("split") == "train", nothing).otherwise(earlier))
        .drop("_train", "_known")
    )


def item_rows(items: DataFrame | None, fitted: FittedTables, contract: Contract) -> DataFrame:
    """One row per item that can be recommended: item_idx, item_id, title, count in train, features; by item_idx."""
    known = fitted.item_ids.entries.select(F.col("value").alias("item_id"), F.col("idx").alias("item_idx"), "count")
    titles: list[str] = []
    if items is not None and contract.items is not None:
        known = known.join(items, on="item_id", how="left")
        titles = [column.name for column in contract.items.with_role("title")]
    featured = with_fitted_features(
        known.withColumn("title", F.coalesce(*titles, "item_id")), fitted.items, key="item_id"
    )
    names = [feature.name for feature in fitted.items.features]
    return featured.select("item_idx", "item_id", "title", "count", *names).orderBy("item_idx")


def user_rows(known_users: DataFrame, rows: DataFrame, *, history_length: int, seen_length: int) -> DataFrame:
    """One row per user as of the end of the log: what a recommendation made now starts from."""
    now = items_per_user(rows, length=seen_length, name="seen")
    joined = known_users.join(now, on="user_id", how="left")
    seen = F.coalesce("seen", F.array().cast("array<int>"))
    return joined.withColumn("seen", seen).withColumn("history", left_padded(seen, history_length))
