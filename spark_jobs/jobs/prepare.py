"""Prepare: checked events, items and users -> a snapshot that ranks can train on, fitted on train and nothing else."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.contract import Contract, Table, TableName
from schemas.errors import UserError
from schemas.features import (
    NUM_RESERVED,
    PADDING_IDX,
    UNSEEN_IDX,
    Owner,
)
from schemas.ledger import ROW_ID_MODULUS, Ledger, SplitLedger
from schemas.manifest import SPLITS, Manifest, Parent
from schemas.snapshot import Snapshot
from schemas.storage import absolute
from schemas.version import VERSION, code_version, now_utc
from spark_jobs.command_line import parser, run
from spark_jobs.datasets import read_part, row_group_rows, write_table, write_training_layout
from spark_jobs.publication import Publication, begin, open_published
from spark_jobs.session import size_shuffles
from spark_jobs.spark_types import spark_schema
from spark_jobs.transforms.encoding import (
    FittedTables,
    item_rows,
    user_rows,
    with_histories,
    with_ids,
    with_user_columns,
    with_user_features,
)
from spark_jobs.transforms.fitting import Fitted, FittedVocabulary, VocabularyLimits, fit_table, fit_vocabulary
from spark_jobs.transforms.histories import with_negatives
from spark_jobs.transforms.splits import SplitPolicy, parse_split, with_split

_FILES_HOLD_ROW_GROUPS = 16
# Names that this job gives to columns of its own beside those of each table.
_TAKEN: dict[TableName, set[str]] = {
    "events": {"row_id", "user_id", "item_id", "event_time_ms", "label", "weight", "propensity", "split"}
    | {"user_idx", "item_idx", "query_id", "seen", "history", "negatives"},
    "items": {"item_id", "item_idx", "title", "count"},
    "users": {"user_id", "user_idx"},
}


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    events: str
    out: str
    split: str
    history_length: int
    seen_length: int
    num_negatives: int
    min_count: int
    max_values: int
    seed: int
    rows_per_row_group: int
    num_files: int


def prepare(spark: SparkSession, config: PrepareConfig) -> None:
    """Split, fit, encode and write; publish the snapshot `config.out`."""
    policy = parse_split(config.split)
    parent = open_published(spark, config.events, kind="events")
    check_names(parent.manifest.contract)
    settings = asdict(config) | {"job": "prepare", "release": VERSION, "parent": parent.manifest.config_digest}
    settings = {key: value for key, value in settings.items() if key not in ("events", "out")}
    publication = begin(spark, config.out, settings)
    if publication is None:
        print(f"prepare: {config.out} stands already, made with these settings from {config.events}.")
        return
    size_shuffles(spark, sum(file.bytes for file in parent.files("events")))

    contract = parent.manifest.contract
    lengths = {"history_length": config.history_length, "seen_length": config.seen_length}
    events = with_split(read_events(spark, parent), policy, seed=config.seed).persist(StorageLevel.MEMORY_AND_DISK)
    counts = check_splits(events, parent)
    users, items = read_entities(spark, parent, "users", "user_id"), read_entities(spark, parent, "items", "item_id")
    fitted = fit(events.where("split = 'train'"), users, items, contract, config)
    known_users = with_user_features(users, events, fitted)
    rows = with_ids(events, fitted).persist(StorageLevel.MEMORY_AND_DISK)
    whole = with_user_columns(with_histories(rows, policy.query_grain, **lengths), known_users, fitted)
    whole.persist(StorageLevel.MEMORY_AND_DISK)

    write_vocabularies(publication, fitted)
    write_table(item_rows(items, fitted, contract), publication.part("items"))
    write_table(user_rows(known_users, rows, **lengths), publication.part("users"))
    for split, count in counts.items():
        write_split(publication, whole.where(F.col("split") == split), split, count, fitted, contract, config)
    publish(publication, parent, fitted, whole, policy, config)


def check_names(contract: Contract) -> None:
    """Raise UserError for a feature's column that has the name of a column of ours."""
    for name, table in contract.tables().items():
        for column in table.with_role("categorical", "numeric"):
            if column.name in _TAKEN[name]:
                raise UserError(
                    f"contract {contract.name}: {name}.{column.name}: a snapshot has a column of this name already. "
                    f"Name it otherwise, with `source: {column.raw_name}`, and ingest again."
                )


def read_events(spark: SparkSession, parent: Snapshot) -> DataFrame:
    """The accepted events with Headrace's own names: row_id, user_id, item_id, event_time_ms, label ..., features.

    row_id is a hash of the contract's key, so a row keeps its name from one snapshot to the next.
    """
    table = parent.manifest.contract.events
    events = read_part(spark, parent.url, parent.files("events"), spark_schema(table))
    if parent.manifest.rows("events") == 0:
        raise UserError(f"{parent.url} holds no accepted events.")
    measures = [
        F.col(column.name).cast("float").alias(role)
        for role in ("label", "weight", "propensity")
        for column in table.with_role(role)[:1]
    ]
    return events.select(
        F.xxhash64(*table.key).alias("row_id"),
        F.col(table.the("user").name).cast("string").alias("user_id"),
        F.col(table.the("item").name).cast("string").alias("item_id"),
        F.col(table.the("event_time").name).alias("event_time_ms"),
        *measures,
        *(column.name for column in table.with_role("categorical", "numeric")),
    )


def read_entities(spark: SparkSession, parent: Snapshot, part: str, id_name: str) -> DataFrame | None:
    """The items or the users of the contract, with their id as text; None where the contract has no such table."""
    table: Table | None = getattr(parent.manifest.contract, part)
    if table is None:
        return None
    entities = read_part(spark, parent.url, parent.files(part), spark_schema(table))
    used = [column.name for column in table.with_role("categorical", "numeric", "title")]
    return entities.select(F.col(table.key[0]).cast("string").alias(id_name), *used)


def check_splits(events: DataFrame, parent: Snapshot) -> dict[str, int]:
    """Rows by split; UserError for a split without rows."""
    counted = {row["split"]: row["count"] for row in events.groupBy("split").count().collect()}
    counts = {split: counted.get(split, 0) for split in SPLITS}
    for split, count in counts.items():
        if count == 0:
            raise UserError(
                f"the split leaves {split} without rows ({', '.join(f'{k} {v:,}' for k, v in counts.items())}): "
                f"{parent.url} is too small or too uneven for it; choose another --split."
            )
    return counts


def fit(
    train: DataFrame, users: DataFrame | None, items: DataFrame | None, contract: Contract, config: PrepareConfig
) -> FittedTables:
    """Fit every vocabulary and moment on train: on its events, its users and its items."""
    limits = VocabularyLimits(min_count=config.min_count, max_values=config.max_values)

    def fit_ids(name: str) -> FittedVocabulary:
        return fit_vocabulary(train.select(F.col(f"{name}_id").alias("value")), name, limits)

    def fit_entities(entities: DataFrame | None, table: Table | None, owner: Owner, id_name: str) -> Fitted:
        if entities is None or table is None:
            return Fitted((), {})
        known = entities.join(train.select(id_name).distinct(), on=id_name, how="left_semi")
        return fit_table(known, table, owner, limits)

    item_ids = fit_ids("item")
    if item_ids.vocabulary.size == NUM_RESERVED:
        raise UserError(
            f"no item was seen {config.min_count:,} times in train, so none can be recommended: lower --min-count."
        )
    return FittedTables(
        user_ids=fit_ids("user"),
        item_ids=item_ids,
        users=fit_entities(users, contract.users, "users", "user_id"),
        items=fit_entities(items, contract.items, "items", "item_id"),
        events=fit_table(train, contract.events, "events", limits),
    )


def training_columns(fitted: FittedTables, contract: Contract) -> list[str]:
    """The columns of every split, in order."""
    measures = [role for role in ("label", "weight", "propensity") if contract.events.with_role(role)]
    features = [feature.name for feature in (*fitted.users.features, *fitted.events.features)]
    return ["row_id", "user_idx", "item_idx", "event_time_ms", *measures, *features, "history"]


def write_split(
    publication: Publication,
    rows: DataFrame,
    split: str,
    count: int,
    fitted: FittedTables,
    contract: Contract,
    config: PrepareConfig,
) -> None:
    """Write one split in the training layout; valid and test with what their queries need."""
    columns = training_columns(fitted, contract)
    if split != "train":
        num_items = fitted.item_ids.vocabulary.size - NUM_RESERVED
        rows = with_negatives(rows, count=config.num_negatives, num_items=num_items, seed=config.seed)
        columns = [*columns, "query_id", "seen", "negatives"]
    rows_per_group = config.rows_per_row_group or row_group_rows(count)
    write_training_layout(
        rows.select(*columns),
        publication.part(split),
        order=F.xxhash64("row_id", F.lit(config.seed)),
        num_files=config.num_files or max(1, round(count / (rows_per_group * _FILES_HOLD_ROW_GROUPS))),
        rows_per_row_group=rows_per_group,
    )


def write_vocabularies(publication: Publication, fitted: FittedTables) -> None:
    for name, vocabulary in fitted.vocabularies().items():
        write_table(vocabulary.entries.orderBy("idx"), publication.part(f"vocab/{name}"))


def take_stock(rows: DataFrame) -> tuple[dict[str, int], dict[str, dict[str, float]]]:
    """By split, in one pass: the sum of row ids that an epoch must come to, and what a reader asks first."""
    label = [F.avg("label").alias("mean_label")] if "label" in rows.columns else []
    stock = rows.groupBy("split").agg(
        F.sum(F.pmod("row_id", F.lit(ROW_ID_MODULUS))).alias("row_ids"),
        F.count("*").alias("rows"),
        F.approx_count_distinct("user_id").alias("users_about"),
        F.approx_count_distinct("item_id").alias("items_about"),
        F.min("event_time_ms").alias("first_event_time_ms"),
        F.max("event_time_ms").alias("last_event_time_ms"),
        F.avg((F.col("user_idx") == UNSEEN_IDX).cast("double")).alias("share_unseen_users"),
        F.avg((F.col("item_idx") == UNSEEN_IDX).cast("double")).alias("share_unseen_items"),
        F.avg(F.size(F.array_remove("history", PADDING_IDX))).alias("mean_history_length"),
        *label,
    )
    found = {row["split"]: row.asDict() for row in stock.collect()}
    sums = {split: int(row.pop("row_ids")) % ROW_ID_MODULUS for split, row in found.items()}
    return sums, {split: {name: row[name] for name in row if name != "split"} for split, row in found.items()}


def publish(
    publication: Publication,
    parent: Snapshot,
    fitted: FittedTables,
    rows: DataFrame,
    policy: SplitPolicy,
    config: PrepareConfig,
) -> None:
    """Take stock of what was written, let the ledger prove it, and publish."""
    names = [*SPLITS, "items", "users", *(f"vocab/{name}" for name in fitted.vocabularies())]
    parts = {name: publication.data_files(name) for name in names}
    written = {split: sum(file.rows for file in parts[split]) for split in SPLITS}
    accepted = parent.manifest.ledger.tables["events"].accepted
    row_id_sums, statistics = take_stock(rows)
    publication.commit(
        Manifest(
            kind="snapshot",
            id=config.out.rstrip("/").rsplit("/", 1)[-1],
            created_at=now_utc(),
            code_version=code_version(),
            contract=parent.manifest.contract,
            config=publication.config,
            config_digest=publication.config_digest,
            parents=(Parent(url=parent.url, id=parent.manifest.id, digest=parent.manifest.digest()),),
            ledger=Ledger(tables=parent.manifest.ledger.tables, splits=SplitLedger(accepted=accepted, **written)),
            parts=parts,
            transform=fitted.transform(config.history_length),
            query_grain=policy.query_grain,
            row_id_sums=row_id_sums,
            statistics=statistics,
        )
    )
    shown = " + ".join(f"{count:,} {split}" for split, count in written.items())
    print(f"prepare: {accepted:,} events = {shown}")
    print(f"prepare: published {config.out}")


def main(arguments: list[str] | None = None) -> int:
    command = parser("prepare", __doc__ or "")
    add = command.add_argument
    add("--events", required=True, help="folder or URL that ingest published")
    add("--out", required=True, help="snapshot to publish, a folder or URL")
    add("--split", default="time:0.8,0.1,0.1", help="time:SHARES, time:DATE,DATE, leave_last_out or ratio:SHARES")
    add("--history-length", type=int, default=50, help="items of a user's past that the model sees")
    add("--seen-length", type=int, default=1000, help="items of a user's past that a ranking leaves out, at most")
    add("--num-negatives", type=int, default=100, help="sampled negatives a held-out row")
    add("--min-count", type=int, default=1, help="values seen less often in train are encoded as unseen")
    add("--max-values", type=int, default=10_000_000, help="values of one vocabulary, at most")
    add("--seed", type=int, default=0, help="of the ratio split, the order of rows and the negatives")
    add("--rows-per-row-group", type=int, default=0, help="0: fitted to the number of rows")
    add("--num-files", type=int, default=0, help="files a split; 0: fitted to the number of rows")
    given = vars(command.parse_args(arguments))
    config = PrepareConfig(**given | {"events": absolute(given["events"]), "out": absolute(given["out"])})
    return run("prepare", lambda spark: prepare(spark, config))


if __name__ == "__main__":
    sys.exit(main())
