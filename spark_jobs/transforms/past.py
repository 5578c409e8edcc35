"""Counts and rates over the past: time in tiles, so that the cost is linear however hot a key, however long a window.

An event sees the tiles before its own and never itself; a table of the last tiles is all that serving needs.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from schemas.features import FIELD_SEPARATOR, NULL_TEXT, PastFeature

_EXACT = 1_000_000  # labels are summed as whole millionths: sums of doubles depend on the order of the rows


def past_of(events: DataFrame, feature: PastFeature, *, asked: DataFrame | None = None) -> DataFrame:
    """What is known before each tile of each key: _past_key, _past_tile, _past_rows, _past_labels (in millionths).

    In: one row per event, with row_id, event_time_ms, split, the label and the columns of `by`. Out: one per key and
    tile that holds events, or one of the rows `asked`, which count as no events. A value of null is a value like any
    other.
    """
    counted = events if feature.folds is None else events.where("split = 'train'")
    counted = counted.withColumn("_key", _key(feature)).withColumn("_tile", _tile(feature))
    sums = counted.groupBy("_key", "_tile").agg(F.count("*").alias("_rows"), _labels(feature).alias("_labels"))
    if asked is not None:
        assert feature.folds is None, "out of fold there are no tiles to ask for"
        nothing = {"_rows": F.lit(0).cast("bigint"), "_labels": F.lit(0).cast("bigint")}
        tiles = asked.select(_key(feature).alias("_key"), _tile(feature).alias("_tile")).withColumns(nothing)
        both = sums.unionByName(tiles).groupBy("_key", "_tile")
        sums = both.agg(F.sum("_rows").alias("_rows"), F.sum("_labels").alias("_labels"))
    past = _out_of_fold(sums) if feature.folds is not None else _before(sums, feature)
    return past.select(
        F.col("_key").alias("_past_key"), F.col("_tile").alias("_past_tile"), "_past_rows", "_past_labels"
    )


def with_past(rows: DataFrame, feature: PastFeature, known: DataFrame, *, name: str) -> DataFrame:
    """Add the feature as the column `name`. In and out: the same rows, some of the events of `known` (see past_of)."""
    keyed = rows.withColumn("_key", _key(feature)).withColumn("_tile", _tile(feature))
    same = (F.col("_key") == F.col("_past_key")) & (F.col("_tile") == F.col("_past_tile"))
    joined = keyed.join(known, same, how="left")
    num_rows = F.coalesce("_past_rows", F.lit(0))
    labels = F.coalesce("_past_labels", F.lit(0)) / _EXACT
    dropped = ("_key", "_tile", "_past_key", "_past_tile", "_past_rows", "_past_labels")
    return joined.withColumn(name, _value(feature, num_rows, labels)).drop(*dropped)


def state_of(events: DataFrame, feature: PastFeature) -> DataFrame:
    """What serving goes on from: one row per key with the last tiles: `key`, `tile` (its number), `rows`, `labels`.

    These are the newest tile, which a request within it does not see, and those that such a request sees: of all the
    past one tile. Values of a key of several columns are parted by FIELD_SEPARATOR.
    """
    counted = events if feature.folds is None else events.where("split = 'train'")
    last = events.agg(F.max(_tile_of_time(feature))).first()
    newest = last[0] if last is not None and last[0] is not None else 0
    recent = counted.withColumn("tile", _tile_of_time(feature))
    if feature.tiles is not None:
        recent = recent.where(F.col("tile") >= newest - feature.tiles)
    else:
        recent = recent.withColumn("tile", F.greatest("tile", F.lit(newest - 1)))
    key = _key(feature).alias("key")
    sums = recent.groupBy(key, "tile").agg(F.count("*").alias("rows"), _labels(feature).alias("labels"))
    return sums.withColumn("labels", F.col("labels") / _EXACT)


def past_of_state(state: DataFrame, feature: PastFeature) -> DataFrame:
    """The same of a feature with folds, out of what `state_of` kept of it: for held-out events, all of train."""
    assert feature.folds is not None, "what features of time see goes on after their state was kept"
    labels = F.round(F.col("labels") * _EXACT).cast("bigint").alias("_past_labels")
    fold = F.lit(-1).cast("bigint").alias("_past_tile")
    return state.select(F.col("key").alias("_past_key"), fold, F.col("rows").alias("_past_rows"), labels)


def _before(sums: DataFrame, feature: PastFeature) -> DataFrame:
    """The sums over the tiles before each tile of a key. In and out: one row per key and tile."""
    tiles = Window.partitionBy("_key").orderBy("_tile")
    # All the past is a growing frame, which costs one addition a tile; a window looks at its tiles again for each.
    earlier = tiles.rangeBetween(-feature.tiles if feature.tiles is not None else Window.unboundedPreceding, -1)
    if feature.tiles is not None:
        return sums.withColumns(
            {"_past_rows": F.sum("_rows").over(earlier), "_past_labels": F.sum("_labels").over(earlier)}
        )
    up_to = tiles.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    return sums.withColumns(
        {
            "_past_rows": F.sum("_rows").over(up_to) - F.col("_rows"),
            "_past_labels": F.sum("_labels").over(up_to) - F.col("_labels"),
        }
    )


def _out_of_fold(sums: DataFrame) -> DataFrame:
    """The sums over the other folds of each fold of a key, and over all for the fold -1, that of held-out events."""
    whole = sums.groupBy("_key").agg(F.sum("_rows").alias("_all_rows"), F.sum("_labels").alias("_all_labels"))
    held_out = whole.select(
        "_key",
        F.lit(-1).cast("bigint").alias("_tile"),
        F.col("_all_rows").alias("_past_rows"),
        F.col("_all_labels").alias("_past_labels"),
    )
    others = sums.join(whole, on="_key", how="inner").select(
        "_key",
        "_tile",
        (F.col("_all_rows") - F.col("_rows")).alias("_past_rows"),
        (F.col("_all_labels") - F.col("_labels")).alias("_past_labels"),
    )
    return others.unionByName(held_out)


def _key(feature: PastFeature) -> Column:
    texts = [F.coalesce(F.col(name).cast("string"), F.lit(NULL_TEXT)) for name in feature.by]
    return texts[0] if len(texts) == 1 else F.concat_ws(FIELD_SEPARATOR, *texts)


def _tile(feature: PastFeature) -> Column:
    """The tile of an event, or its fold: a hash of its row for train, -1 for the others."""
    if feature.folds is None:
        return _tile_of_time(feature)
    fold = F.pmod(F.xxhash64("row_id", F.lit(feature.name)), F.lit(feature.folds))
    return F.when(F.col("split") == "train", fold).otherwise(F.lit(-1)).cast("bigint")


def _tile_of_time(feature: PastFeature) -> Column:
    return F.floor(F.col("event_time_ms") / feature.tile_ms)


def _labels(feature: PastFeature) -> Column:
    if feature.what == "count":
        return F.lit(0).cast("bigint")
    return F.coalesce(F.sum(F.round(F.col("label").cast("double") * _EXACT).cast("bigint")), F.lit(0))


def _value(feature: PastFeature, rows: Column, labels: Column) -> Column:
    if feature.what == "count":
        return F.log1p(rows.cast("double")).cast("float")
    prior = F.lit(feature.prior_rows * feature.prior_mean)
    weight = rows + F.lit(feature.prior_rows)
    return F.when(weight == 0, F.lit(0.0)).otherwise((labels + prior) / F.nullif(weight, F.lit(0.0))).cast("float")
