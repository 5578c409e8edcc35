"""Fitting all that a snapshot holds of fitted things, on train and nothing else; vocabularies are written at once."""

from __future__ import annotations

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.contract import TableName
from schemas.errors import UserError
from schemas.feature_set import FeatureSet, Wanted, owner
from schemas.features import NUM_RESERVED, Vocabulary
from schemas.storage import join
from spark_jobs.datasets import STAGING, write_table, write_tables
from spark_jobs.log import Log
from spark_jobs.publication import Publication
from spark_jobs.transforms.encoding import FittedTables
from spark_jobs.transforms.fitting import FittedVocabulary, VocabularyLimits, fit_features, vocabulary_requests
from spark_jobs.transforms.versions import VALID_FROM
from spark_jobs.transforms.vocabulary import ENTRIES, BuiltVocabularies, VocabularyRequest, build_vocabularies


def fit_tables(
    log: Log, wanted: FeatureSet, last_train_ms: int, publication: Publication, limits: VocabularyLimits
) -> FittedTables:
    """Fit every vocabulary and moment on train: on its events, its users and its items; write the vocabularies."""
    train = log.train
    known: dict[TableName, DataFrame] = {"events": train}
    others: list[tuple[TableName, DataFrame | None, str]]
    others = [("users", log.users, "user_id"), ("items", log.items, "item_id")]
    for table, entities, key in others:
        if entities is not None:
            rows = entities.join(train.select(key).distinct(), on=key, how="left_semi")
            known[table] = rows.where(F.col(VALID_FROM) <= last_train_ms) if VALID_FROM in rows.columns else rows
            known[table].persist(StorageLevel.MEMORY_AND_DISK)
    requests = {
        name: VocabularyRequest(train.select(F.col(f"{name}_id").alias("value")), limits.min_count, limits.max_values)
        for name in log.ids
    }
    for table, rows in known.items():
        requests |= vocabulary_requests(rows, wanted_of(wanted, table), log.columns[table], limits)
    vocabularies = write_vocabularies(publication, build_vocabularies(requests))
    if "item" in vocabularies and vocabularies["item"].num_values == 0:
        raise UserError(
            f"no item was seen {limits.min_count:,} times in train, so none can be recommended: lower --min-count."
        )
    fitted = {
        table: fit_features(rows, wanted_of(wanted, table), log.columns[table], vocabularies)
        for table, rows in known.items()
    }
    return FittedTables(ids={name: vocabularies[name] for name in log.ids}, **fitted)


def write_vocabularies(publication: Publication, built: BuiltVocabularies) -> dict[str, FittedVocabulary]:
    """Write every vocabulary; give them as they are read back, so that nothing is numbered twice."""
    root, part = publication.url, {name: f"vocab/{name}" for name in built.by_name}
    for name, one in built.by_name.items():
        if name not in built.together:
            write_table(one.entries, publication.part(part[name]))
    if built.entries is not None:
        publication.part(STAGING)  # raises where another job took the folder over
        write_tables(built.entries, publication.files, root, [part[name] for name in built.together])
    fitted = {}
    for name, one in built.by_name.items():
        if one.num_values == 0:  # a folder without a file has no columns
            publication.files.delete_folder(join(root, part[name]))
            write_table(one.entries.limit(0), publication.part(part[name]))
        entries = publication.spark.read.schema(ENTRIES).parquet(join(root, part[name]))
        description = Vocabulary(name=name, size=one.num_values + NUM_RESERVED, dropped_values=one.num_dropped)
        fitted[name] = FittedVocabulary(entries, description)
    built.release()
    return fitted


def wanted_of(wanted: FeatureSet, table: TableName) -> list[Wanted]:
    return [feature for feature in wanted.features if owner(feature) == table]
