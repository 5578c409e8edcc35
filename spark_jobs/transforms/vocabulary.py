"""Vocabularies: fitted on train, ordered by falling frequency, applied by a join; they stay distributed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.features import NULL_IDX, NUM_RESERVED, UNSEEN_IDX

_ROWS_PER_PARTITION_BITS = 33  # monotonically_increasing_id: partition above, row in the partition below
SORTED_AT_ONCE = 2_000_000  # values; more are sorted in several partitions
ENTRIES = "value string, idx int, count bigint"
"""The columns of a vocabulary's table."""
BROADCAST_VALUES = 2_000_000
"""Values of a vocabulary that are sent to every task, about 100 MB; of a larger one only the most frequent so many."""


@dataclass(frozen=True)
class VocabularyRequest:
    """What a vocabulary is to hold: `values` has one row per occurrence in train, in the column `value`."""

    values: DataFrame
    min_count: int
    max_values: int


@dataclass(frozen=True)
class BuiltVocabulary:
    """`entries` has one row per value kept: `value` (text), `idx` (int32, from 3 on) and `count`."""

    entries: DataFrame
    num_values: int
    num_dropped: int


@dataclass(frozen=True)
class BuiltVocabularies:
    """Vocabularies by name; those of `together` are one table whose partition i holds the i-th of them, sorted."""

    by_name: dict[str, BuiltVocabulary]
    together: tuple[str, ...]
    entries: DataFrame | None
    """value, idx and count of all of `together`."""
    persisted: tuple[DataFrame, ...] = ()

    def release(self) -> None:
        """Give back the memory of what was counted, once the entries are written."""
        for rows in self.persisted:
            rows.unpersist()


def build_vocabularies(requests: Mapping[str, VocabularyRequest]) -> BuiltVocabularies:
    """Number the values of train by falling count, ties by value; nulls are left out, for they are index 1.

    Values seen fewer than `min_count` times, and all after the first `max_values`, are dropped. All vocabularies are
    counted in one query, each from its own column. The counts of the values kept are persisted, those of the long
    tail are not.
    """
    if not requests:
        return BuiltVocabularies({}, (), None)
    kept = reduce(DataFrame.unionByName, (_counted(name, one) for name, one in requests.items()))
    # The rare values, most of a log's, are one row a vocabulary that says how many they are.
    kept = kept.groupBy("vocabulary", "value").agg(F.sum("count").alias("count"), F.sum("values").alias("values"))
    kept.persist(StorageLevel.MEMORY_AND_DISK)
    is_rare = F.col("value").isNull()
    found = kept.groupBy("vocabulary").agg(
        F.count_if(~is_rare).alias("frequent"), F.sum(F.when(is_rare, F.col("values"))).alias("rare")
    )
    sizes = {row["vocabulary"]: (row["frequent"], row["rare"] or 0) for row in found.collect()}
    frequent = kept.where(~is_rare).select("vocabulary", "value", "count")
    small = [name for name in requests if sizes.get(name, (0, 0))[0] <= SORTED_AT_ONCE]
    together = _numbered_together(frequent, small) if small else None
    apart = {name: _numbered_apart(frequent, name) for name in requests if name not in small}
    built = {}
    for name, request in requests.items():
        num_frequent, num_rare = sizes.get(name, (0, 0))
        num_values = min(request.max_values, num_frequent)
        of_it = together if together is not None and name in small else apart[name][0]
        entries = of_it.where((F.col("vocabulary") == name) & (F.col("idx") < num_values + NUM_RESERVED))
        built[name] = BuiltVocabulary(
            entries.select("value", "idx", "count"), num_values, num_frequent - num_values + num_rare
        )
    if together is not None:
        most = F.lit(0)
        for name in small:
            most = F.when(F.col("vocabulary") == name, built[name].num_values).otherwise(most)
        together = together.where(F.col("idx") < most + NUM_RESERVED).select("value", "idx", "count")
    return BuiltVocabularies(built, tuple(small), together, (kept, *(sorting for _, sorting in apart.values())))


def _counted(name: str, request: VocabularyRequest) -> DataFrame:
    """One row per frequent value (as text) and one for all rare ones: vocabulary, value, count, values.

    The vocabulary is told by its name, not by a number: numbers stand in the code that Spark generates and compiles,
    texts beside it, so that columns of a kind share theirs.
    """
    counts = request.values.where(F.col("value").isNotNull()).groupBy("value").agg(F.count("*").alias("count"))
    frequent = F.when(F.col("count") >= request.min_count, F.col("value").cast("string"))
    return counts.select(F.lit(name).alias("vocabulary"), frequent.alias("value"), "count", F.lit(1).alias("values"))


def _numbered_together(counts: DataFrame, names: Sequence[str]) -> DataFrame:
    """Add `idx` to vocabularies that one task can sort each: partition i holds the i-th of them."""
    place = F.lit(None).cast("int")
    for i, name in enumerate(names):
        place = F.when(F.col("vocabulary") == name, i).otherwise(place)
    chosen = counts.where(F.col("vocabulary").isin(list(names))).withColumn("_place", place)
    ordered = chosen.repartitionById(len(names), F.col("_place")).sortWithinPartitions(F.desc("count"), "value")
    row = F.monotonically_increasing_id().bitwiseAND((1 << _ROWS_PER_PARTITION_BITS) - 1)
    return ordered.withColumn("idx", (row + NUM_RESERVED).cast("int")).drop("_place")


def _numbered_apart(counts: DataFrame, name: str) -> tuple[DataFrame, DataFrame]:
    """Add `idx` to one vocabulary that takes many tasks to sort; beside it what is persisted of it."""
    counts = counts.where(F.col("vocabulary") == name)
    ordered = counts.orderBy(F.desc("count"), "value").withColumn("_place", F.monotonically_increasing_id())
    # Persisted before the partitions are counted: the numbering holds for this one sorting only.
    ordered.persist(StorageLevel.MEMORY_AND_DISK)
    partition = F.shiftright("_place", _ROWS_PER_PARTITION_BITS)
    # Collected: two numbers a partition.
    sizes = ordered.groupBy(partition.alias("part")).count().orderBy("part").collect()
    offsets = accumulate((size["count"] for size in sizes), initial=0)
    starts = [F.lit(number) for size, start in zip(sizes, offsets, strict=False) for number in (size["part"], start)]
    start = F.element_at(F.create_map(*starts), partition) if starts else F.lit(0)
    place = F.col("_place").bitwiseAND((1 << _ROWS_PER_PARTITION_BITS) - 1) + start + NUM_RESERVED
    return ordered.withColumn("idx", place.cast("int")), ordered


def with_index(
    rows: DataFrame, *, source: str, vocabulary: DataFrame, name: str, num_values: int | None = None
) -> DataFrame:
    """Add `name`: the vocabulary's index of the column `source`; 1 for null, 2 for a value it does not hold.

    In and out: the same rows. `num_values` is the vocabulary's size: a small one is sent to every task, of a large
    one the most frequent values are, and rows with others travel to them, all else evenly: no partition gets a hot one.
    """
    kind = rows.schema[source].dataType
    entries = vocabulary.select(F.col("value").try_cast(kind).alias("_entry"), F.col("idx").alias("_idx"))
    missing = F.when(F.col(source).isNull(), NULL_IDX).otherwise(UNSEEN_IDX)
    if num_values is None or num_values <= BROADCAST_VALUES:
        entries = F.broadcast(entries) if num_values is not None else entries
        joined = rows.join(entries, F.col(source) == F.col("_entry"), how="left")
        return joined.withColumn(name, F.coalesce("_idx", missing)).drop("_entry", "_idx")
    is_head = F.col("_idx") < BROADCAST_VALUES + NUM_RESERVED
    head = F.broadcast(entries.where(is_head).toDF("_head", "_head_idx"))
    tail = entries.where(~is_head).withColumn("_salt", F.lit(0))
    found = rows.join(head, F.col(source) == F.col("_head"), how="left")
    # What needs no look-up is spread by a salt that no entry has; else all of it would meet in one partition.
    settled = F.col("_head_idx").isNotNull() | F.col(source).isNull()
    salt = F.when(settled, 1 + F.pmod(F.xxhash64(*(rows.columns)), F.lit(1 << 16))).otherwise(0)
    rare = F.when(~settled, F.col(source))
    salted = found.withColumn("_rare", rare).withColumn("_row_salt", salt)
    meet = (F.col("_rare") == F.col("_entry")) & (F.col("_row_salt") == F.col("_salt"))
    joined = salted.join(tail, meet, how="left")
    idx = F.coalesce("_head_idx", "_idx", missing)
    return joined.withColumn(name, idx).drop("_head", "_head_idx", "_entry", "_idx", "_salt", "_rare", "_row_salt")


def with_indices(rows: DataFrame, *, source: str, vocabulary: DataFrame, name: str, length: int, key: str) -> DataFrame:
    """Add `name`: the indices of the values in the list `source`, right-padded with 0 to `length`.

    In and out: the same rows, which `key` must name. A null list is (1, 0, ...), an empty one all 0; values beyond
    `length` are left out, those of the list's front kept.
    """
    each = rows.select(key, F.posexplode(source).alias("_position", "_value"))
    indexed = with_index(each, source="_value", vocabulary=vocabulary, name="_i")
    in_order = F.transform(F.sort_array(F.collect_list(F.struct("_position", "_i"))), lambda entry: entry["_i"])
    lists = indexed.groupBy(F.col(key).alias("_key")).agg(in_order.alias("_list"))
    joined = rows.join(lists, F.col(key) == F.col("_key"), how="left")
    nothing = F.when(F.col(source).isNull(), F.array(F.lit(NULL_IDX))).otherwise(F.array().cast("array<int>"))
    padded = F.concat(F.coalesce("_list", nothing), F.array_repeat(F.lit(0), length))
    return joined.withColumn(name, F.slice(padded, 1, length)).drop("_key", "_list")
