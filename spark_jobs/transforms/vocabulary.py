"""Vocabularies: fitted on train, ordered by falling frequency, applied by a join; they stay distributed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.features import NULL_IDX, NUM_RESERVED, UNSEEN_IDX

_ROWS_PER_PARTITION_BITS = 33  # monotonically_increasing_id: partition above, row in the partition below


@dataclass(frozen=True)
class BuiltVocabulary:
    """`entries` has one row per value kept: `value` (text), `idx` (int32, from 3 on) and `count`."""

    entries: DataFrame
    num_values: int
    num_dropped: int


def build_vocabulary(values: DataFrame, *, min_count: int, max_values: int) -> BuiltVocabulary:
    """Number the values of train by falling count, ties by value; nulls are left out, for they are index 1.

    In: one row per occurrence, in the column `value`. Values seen fewer than `min_count` times, and all after the
    first `max_values`, are dropped. The entries are persisted.
    """
    counts = values.where(F.col("value").isNotNull()).groupBy(F.col("value").cast("string").alias("value")).count()
    ordered = counts.orderBy(F.desc("count"), "value").withColumn("_place", F.monotonically_increasing_id())
    # Persisted before the partitions are counted: the numbering holds for this one sorting only.
    ordered.persist(StorageLevel.MEMORY_AND_DISK)
    partition = F.shiftright("_place", _ROWS_PER_PARTITION_BITS)
    # Collected: two numbers a partition.
    sizes = (
        ordered.groupBy(partition.alias("part"))
        .agg(F.count("*").alias("values"), F.count_if(F.col("count") >= min_count).alias("frequent"))
        .orderBy("part")
        .collect()
    )
    offsets = accumulate((size["values"] for size in sizes), initial=0)
    starts = [F.lit(number) for size, start in zip(sizes, offsets, strict=False) for number in (size["part"], start)]
    start = F.element_at(F.create_map(*starts), partition) if starts else F.lit(0)
    place = F.col("_place").bitwiseAND((1 << _ROWS_PER_PARTITION_BITS) - 1) + start
    kept = min(max_values, sum(size["frequent"] for size in sizes))  # a prefix, for the order is by count
    entries = ordered.where(place < kept).select("value", (place + NUM_RESERVED).cast("int").alias("idx"), "count")
    return BuiltVocabulary(entries, kept, sum(size["values"] for size in sizes) - kept)


def with_index(rows: DataFrame, *, source: str, vocabulary: DataFrame, name: str) -> DataFrame:
    """Add `name`: the vocabulary's index of the column `source`; 1 for null, 2 for a value it does not hold.

    In and out: the same rows.
    """
    entries = vocabulary.select(F.col("value").alias("_entry"), F.col("idx").alias("_idx"))
    joined = rows.join(entries, F.col(source).cast("string") == F.col("_entry"), how="left")
    missing = F.when(F.col(source).isNull(), NULL_IDX).otherwise(UNSEEN_IDX)
    return joined.withColumn(name, F.coalesce("_idx", missing)).drop("_entry", "_idx")


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
