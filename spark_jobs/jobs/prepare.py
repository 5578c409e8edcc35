"""Prepare: checked events, items and users -> a snapshot that ranks can train on, fitted on train and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.errors import UserError
from schemas.feature_set import FeatureSet, read_feature_set
from schemas.features import PADDING_IDX, UNSEEN_IDX, PastFeature
from schemas.ledger import Ledger, SplitLedger
from schemas.manifest import SPLITS, Manifest, Parent, QueryGrain
from schemas.snapshot import Snapshot
from schemas.storage import absolute
from schemas.version import VERSION
from spark_jobs.command_line import moment, parser, positive, run, share, whole
from spark_jobs.datasets import STAGING, write_table
from spark_jobs.fit_tables import fit_tables
from spark_jobs.log import Log, check, read_log
from spark_jobs.publication import Publication, begin, identity, open_published
from spark_jobs.session import size_shuffles, step
from spark_jobs.stock import take_stock
from spark_jobs.training_layout import row_group_rows, training_layout, write_training_layout
from spark_jobs.transforms.encoding import (
    QUERY_COLUMNS,
    FittedTables,
    HistoryShape,
    encoded,
    held_out_rows,
    item_rows,
    look_ups,
    train_rows,
    user_rows,
    with_ids,
)
from spark_jobs.transforms.event_days import DAY_MS
from spark_jobs.transforms.fitting import VocabularyLimits
from spark_jobs.transforms.histories import blocks_by_popularity, with_negatives
from spark_jobs.transforms.past import state_of
from spark_jobs.transforms.splits import SplitPolicy, parse_split
from spark_jobs.transforms.versions import VALID_FROM

Statistics = Mapping[str, dict[str, Any]]
_DRAWS = 1 << 30


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    events: str
    out: str
    features: str | None = None
    split: str
    history_length: int
    seen_length: int
    train_histories: str | None = None
    """`before` or `others`; None: by the split."""
    train_days: float | None = None
    """Of the end of train, whose events are rows of it; None: all."""
    train_since: int | None = None
    """Events after this moment are rows of train too, where `train_days` is shorter; in milliseconds since 1970."""
    past_share: float = 0.0
    """Of the older events of train, which are rows of it as well."""
    negatives: str = "uniform"
    num_negatives: int
    num_train_negatives: int = 0
    min_count: int
    max_values: int
    seed: int
    rows_per_row_group: int = 0
    ranks: int = 1
    batch_size: int = 0
    num_files: int = 0


def prepare(spark: SparkSession, config: PrepareConfig) -> None:
    """Split, fit, encode and write; publish the snapshot `config.out`."""
    policy, alpha = parse_split(config.split), parse_negatives(config.negatives)
    learned = grain_of_train(config.train_histories, policy)
    parent = open_published(spark, config.events, kind="events")
    wanted = read_feature_set(config.features, parent.manifest.contract)
    check(parent.manifest.contract, wanted, policy, learned)
    settings = asdict(config) | {"job": "prepare", "release": VERSION, "parent": parent.manifest.config_digest}
    settings |= {"features": wanted.model_dump(mode="json", exclude_none=True)}
    settings = {key: value for key, value in settings.items() if key not in ("events", "out")}
    publication = begin(spark, config.out, settings)
    if publication is None:
        print(f"prepare: {config.out} stands already, made with these settings from {config.events}.")
        return
    size_shuffles(spark, sum(file.bytes for file in parent.files("events")))

    log = read_log(spark, parent, wanted, policy, config.seed)
    if policy.kind != "time":  # the others sort every user's events to split them
        log.events.persist(StorageLevel.MEMORY_AND_DISK)
    with step(spark, "statistics of the splits"):
        kept = rows_of_train(log, config)
        statistics = statistics_of(log, kept)
    counts = check_splits(statistics, parent)
    with step(spark, "vocabularies and moments"):
        limits = VocabularyLimits(min_count=config.min_count, max_values=config.max_values)
        fitted = fit_tables(log, wanted, statistics["train"]["last_event_time_ms"], publication, limits)
    known = look_ups(log.events, entities_in_rows(log, fitted, wanted), fitted)
    rows = with_ids(log.events, fitted)
    shape = HistoryShape(config.history_length, config.seen_length, wanted.history_gaps) if log.has_histories else None
    columns = columns_of(log, fitted, wanted)
    sizes = {name: size for name, size in fitted.transform(shape).index_sizes.items() if name in columns}
    if shape is not None:
        draw = sampler(fitted, alpha, config.seed)
        asked = train_rows(log.train, fitted, learned, shape, kept=kept)
        train = encoded(asked, fitted, known)
        held_out = encoded(held_out_rows(rows, policy.query_grain, shape), fitted, known)
        columns = [*columns, *shape.columns]
        train_columns = columns
        if config.num_train_negatives:
            train = draw(train, config.num_train_negatives, "history")
            train_columns = [*columns, "negatives"]
        with step(spark, "train"):
            write_splits(publication, train, ["train"], train_columns, sizes, counts, config)
        held_out = draw(held_out, config.num_negatives, "seen")
        with step(spark, "valid and test"):
            held_out_columns = [*columns, *QUERY_COLUMNS]
            write_splits(publication, held_out, ["valid", "test"], held_out_columns, sizes, counts, config)
    else:
        every_row = encoded(rows.where(part_of(kept) != "past"), fitted, known)
        with step(spark, "train, valid and test"):
            write_splits(publication, every_row, SPLITS, columns, sizes, counts, config)
    with step(spark, "items and users"):
        write_entities(publication, log, rows, fitted, shape)
    with step(spark, "check of what was written"):
        publish(publication, parent, fitted, shape, statistics, config, policy.query_grain)


def grain_of_train(histories: str | None, policy: SplitPolicy) -> QueryGrain:
    """Whether a row of train is asked as an event, with what came before it, or as its user, with all other items."""
    if histories is None:
        return policy.query_grain
    if histories == "before" and policy.query_grain == "user":
        raise UserError("--train-histories before: a split by ratio is in no order of time: leave the option out.")
    return "user" if histories == "others" else "event"


def parse_negatives(text: str) -> float:
    """How draws depend on popularity: the alpha of count^alpha, 0 for `uniform`."""
    kind, _, alpha = text.partition(":")
    if text == "uniform":
        return 0.0
    try:
        if kind == "popularity" and 0 < float(alpha or "1") <= 2:
            return float(alpha or "1")
    except ValueError:
        pass
    raise UserError(f"negatives {text!r} are neither uniform nor popularity:ALPHA with an ALPHA up to 2, such as 0.75.")


def rows_of_train(log: Log, config: PrepareConfig) -> Column | None:
    """Which events of train are rows of it; None where all are.

    Of the older ones another sample for each last event: what a wheel goes over again is not the same every turn.
    """
    days, since_ms = config.train_days, config.train_since
    last = log.train.agg(F.max("event_time_ms")).first() if days is not None else None
    if days is None or last is None or last[0] is None:
        return None
    before_ms = last[0] - days * DAY_MS
    kept = F.col("event_time_ms") > (before_ms if since_ms is None else min(before_ms, since_ms))
    drawn = F.pmod(F.xxhash64("row_id", F.lit(last[0])), F.lit(_DRAWS)) < round(config.past_share * _DRAWS)
    return kept | drawn if config.past_share else kept


def part_of(kept: Column | None) -> Column:
    """The split that an event is a row of, or `past`."""
    split = F.col("split")
    return split if kept is None else F.when((split == "train") & ~kept, "past").otherwise(split)


def statistics_of(log: Log, kept: Column | None) -> Statistics:
    """By split, in one pass over a few columns: what a reader asks first of the events."""
    who = [
        F.approx_count_distinct(f"{name}_id").alias(f"{name}s_about") for name in ("user", "item") if name in log.ids
    ]
    labels = [F.avg(F.nanvl(F.col(name), F.lit(None))).alias(f"mean_{name}") for name in log.labels]
    stock = log.events.groupBy(part_of(kept).alias("split")).agg(
        F.count("*").alias("rows"),
        *who,
        F.min("event_time_ms").alias("first_event_time_ms"),
        F.max("event_time_ms").alias("last_event_time_ms"),
        *labels,
    )
    return {row["split"]: {k: v for k, v in row.asDict().items() if k != "split"} for row in stock.collect()}


def check_splits(statistics: Statistics, parent: Snapshot) -> dict[str, int]:
    """Rows by split; UserError for a split without rows."""
    counts = {split: int(statistics[split]["rows"]) if split in statistics else 0 for split in SPLITS}
    for split, count in counts.items():
        if count == 0:
            raise UserError(
                f"the split leaves {split} without rows ({', '.join(f'{k} {v:,}' for k, v in counts.items())}): "
                f"{parent.url} is too small or too uneven for it; choose another --split."
            )
    return counts


def entities_in_rows(log: Log, fitted: FittedTables, wanted: FeatureSet) -> dict[str, DataFrame]:
    """The tables whose features stand in every event's row: users, and items where asked for or changing over time."""
    found = {}
    if log.users is not None and fitted.users.features:
        found["user_id"] = log.users
    if log.items is not None and fitted.items.features and items_in_rows(log, wanted):
        found["item_id"] = log.items
    return found


def items_in_rows(log: Log, wanted: FeatureSet) -> bool:
    """Where items change over time, only an event's row can say how its item was then."""
    return wanted.item_features_in_rows or (log.items is not None and VALID_FROM in log.items.columns)


def columns_of(log: Log, fitted: FittedTables, wanted: FeatureSet) -> list[str]:
    """The columns that every split has, in order, but for histories."""
    items = fitted.items.features if items_in_rows(log, wanted) else ()
    features = [feature.name for feature in (*fitted.users.features, *items, *fitted.events.features)]
    return ["row_id", *(f"{name}_idx" for name in log.ids), "event_time_ms", *log.measures, *features]


def sampler(fitted: FittedTables, alpha: float, seed: int) -> Callable[[DataFrame, int, str], DataFrame]:
    """A function that adds negatives: so many, drawn with count^alpha, none of a list that the row has."""
    ends = None
    if alpha:
        counts = fitted.ids["item"].entries.groupBy("count").agg(F.count("*").alias("items"))
        # Collected: a row per count that occurs, of which a log of n events has at most sqrt(2 n).
        ends = blocks_by_popularity({row["count"]: row["items"] for row in counts.collect()}, alpha)

    def draw(rows: DataFrame, count: int, leave_out: str) -> DataFrame:
        num_items = fitted.ids["item"].num_values
        return with_negatives(rows, count=count, num_items=num_items, seed=seed, leave_out=leave_out, ends=ends)

    return draw


def write_splits(
    publication: Publication,
    rows: DataFrame,
    splits: Sequence[str],
    columns: list[str],
    sizes: Mapping[str, int],
    counts: Mapping[str, int],
    config: PrepareConfig,
) -> None:
    """Write the splits that `rows` hold in the training layout, in one job."""
    asked = {split: counts[split] for split in splits}
    rows_per_row_group = config.rows_per_row_group or row_group_rows(
        max(asked.values()), ranks=config.ranks, batch_size=config.batch_size
    )
    layout = training_layout(asked, rows_per_row_group=rows_per_row_group, num_files=config.num_files)
    publication.part(STAGING)  # raises where another job took the folder over
    write_training_layout(
        rows.select("split", *columns), publication.files, publication.url, seed=config.seed, layout=layout, sizes=sizes
    )


def write_entities(
    publication: Publication, log: Log, rows: DataFrame, fitted: FittedTables, shape: HistoryShape | None
) -> None:
    """Write what is recommended, whom to, and what features of the past go on from."""
    if "item" in log.ids:
        write_table(item_rows(log.items, fitted, log.contract), publication.part("items"))
    if "user" in log.ids:
        write_table(user_rows(log.users, rows, fitted, shape), publication.part("users"))
    for feature in past_features(fitted):
        write_table(state_of(log.events, feature), publication.part(f"state/{feature.name}"))


def past_features(fitted: FittedTables) -> list[PastFeature]:
    return [feature for feature in fitted.events.features if isinstance(feature, PastFeature)]


def figures(written: DataFrame) -> list[Column]:
    """What a split's statistics say of what was made of its rows: shares of unseen ids, lengths of histories."""
    unseen = [
        F.avg((F.col(f"{name}_idx") == UNSEEN_IDX).cast("double")).alias(f"share_unseen_{name}s")
        for name in ("user", "item")
        if f"{name}_idx" in written.columns
    ]
    length = F.avg(F.size(F.array_remove("history", PADDING_IDX))).alias("mean_history_length")
    return [*unseen, *([length] if "history" in written.columns else [])]


def publish(
    publication: Publication,
    parent: Snapshot,
    fitted: FittedTables,
    shape: HistoryShape | None,
    statistics: Statistics,
    config: PrepareConfig,
    grain: QueryGrain,
) -> None:
    """Take stock of what was written, let the ledger prove it, and publish."""
    vocabularies = [f"vocab/{name}" for name in fitted.vocabularies()]
    states = [f"state/{feature.name}" for feature in past_features(fitted)]
    entities = [f"{name}s" for name in ("item", "user") if name in fitted.ids]
    parts = publication.data_files([*SPLITS, *entities, *vocabularies, *states])
    written = {split: sum(file.rows for file in parts[split]) for split in SPLITS}
    past = int(statistics["past"]["rows"]) if "past" in statistics else 0
    splits = SplitLedger(accepted=parent.manifest.ledger.tables["events"].accepted, past=past, **written)
    stock = take_stock(publication.spark, publication.url, {split: parts[split] for split in SPLITS}, figures)
    publication.commit(
        Manifest(
            **identity(config.out, publication.config),
            kind="snapshot",
            contract=parent.manifest.contract,
            parents=(Parent(url=parent.url, id=parent.manifest.id, digest=parent.manifest.digest()),),
            ledger=Ledger(tables=parent.manifest.ledger.tables, splits=splits),
            parts=parts,
            transform=fitted.transform(shape),
            query_grain=grain,
            row_id_sums=stock.row_ids,
            content_sums=stock.content,
            statistics={split: {**statistics[split], **stock.figures[split]} for split in SPLITS},
        )
    )
    shown = " + ".join(f"{count:,} {name}" for name, count in splits.parts().items())
    print(f"prepare: {splits.accepted:,} events = {shown}")
    print(f"prepare: published {config.out}")


def main(arguments: list[str] | None = None) -> int:
    command = parser("prepare", __doc__ or "")
    add = command.add_argument
    add("--events", required=True, help="folder or URL that ingest published")
    add("--out", required=True, help="snapshot to publish, a folder or URL")
    add("--features", help="feature set: built-in name, or a path ending in .yaml; else what the contract's roles say")
    add("--split", default="time:0.8,0.1,0.1", help="time:SHARES, time:DATE,DATE, leave_last_out or ratio:SHARES")
    add("--history-length", type=int, default=50, help="items of a user's past that the model sees")
    add(
        "--train-histories",
        choices=("before", "others"),
        help="rows of train hold what their user did before, or all else in train (before; split by ratio: others)",
    )
    add(
        "--train-days",
        type=positive,
        help="rows of train are its events of its last so many days; what is older is in histories, vocabularies and "
        "counts alone (all)",
    )
    add("--train-since", type=moment, help="beside --train-days: all events after this moment, too, as ISO 8601")
    add("--past-share", type=share, default=0.0, help="of the events before --train-days, which are rows of train too")
    add("--seen-length", type=int, default=1000, help="items of a user's past that a ranking leaves out, at most")
    add("--negatives", default="uniform", help="how negatives are drawn: uniform, or popularity:ALPHA")
    add("--num-negatives", type=int, default=100, help="sampled negatives a held-out row")
    add("--num-train-negatives", type=int, default=0, help="sampled negatives a row of train")
    add("--min-count", type=int, default=1, help="values seen less often in train are encoded as unseen")
    add("--max-values", type=int, default=10_000_000, help="values of one vocabulary, at most")
    add("--seed", type=int, default=0, help="of the ratio split, the order of rows and the negatives")
    add("--rows-per-row-group", type=int, default=0, help="0: fitted to the number of rows, ranks and batch")
    add("--ranks", type=whole(1, 1 << 20), default=1, help="of the training that row groups are fitted to")
    add("--batch-size", type=whole(0, 1 << 17), default=0, help="of a rank, which row groups hold whole; 0: any")
    add("--num-files", type=int, default=0, help="files a split; 0: fitted to the number of rows")
    given = vars(command.parse_args(arguments))
    if given["train_days"] is None and (given["past_share"] or given["train_since"] is not None):
        command.error("--past-share and --train-since go with --train-days")
    config = PrepareConfig(**given | {"events": absolute(given["events"]), "out": absolute(given["out"])})
    return run("prepare", lambda spark: prepare(spark, config))


if __name__ == "__main__":
    sys.exit(main())
