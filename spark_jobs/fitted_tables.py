"""What a snapshot was fitted to, read back from it: for features of rows that were not there when it was made."""

from __future__ import annotations

from pyspark.sql import SparkSession
from pyspark.sql import types as T

from schemas.contract import TableName
from schemas.features import GapsFeature, HistoryFeature, IndexFeature, IndicesFeature
from schemas.snapshot import Snapshot
from spark_jobs.datasets import read_part
from spark_jobs.transforms.encoding import FittedTables, HistoryShape
from spark_jobs.transforms.fitting import Fitted, FittedVocabulary
from spark_jobs.transforms.vocabulary import ENTRIES

_IDS = {"user_idx": "user", "item_idx": "item"}


def fitted_tables_of(spark: SparkSession, snapshot: Snapshot) -> FittedTables:
    """Vocabularies from the snapshot's parts, moments and edges from its manifest; nothing is fitted."""
    transform = snapshot.transform
    schema = T._parse_datatype_string(ENTRIES)
    assert isinstance(schema, T.StructType)
    known = {
        name: FittedVocabulary(read_part(spark, snapshot.url, snapshot.files(f"vocab/{name}"), schema), vocabulary)
        for name, vocabulary in transform.vocabularies.items()
    }

    def of(owner: TableName) -> Fitted:
        features = tuple(
            feature
            for feature in transform.of(owner)
            if feature.name not in _IDS and not isinstance(feature, HistoryFeature | GapsFeature)
        )
        names = {feature.vocabulary for feature in features if isinstance(feature, IndexFeature | IndicesFeature)}
        return Fitted(features, {name: known[name] for name in sorted(names)})

    ids = {_IDS[feature.name]: known[feature.vocabulary] for feature in transform.features
           if feature.name in _IDS and isinstance(feature, IndexFeature)}  # fmt: skip
    return FittedTables(ids=ids, users=of("users"), items=of("items"), events=of("events"))


def history_shape_of(snapshot: Snapshot) -> HistoryShape | None:
    """How much of a user's past a row of the snapshot holds; None where it has no histories."""
    length = snapshot.transform.history_length
    if not length:
        return None
    gaps = any(isinstance(feature, GapsFeature) for feature in snapshot.transform.features)
    return HistoryShape(length, int(snapshot.manifest.config.get("seen_length", length)), gaps)
