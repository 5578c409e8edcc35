"""The profile of ten ratings by hand, the number of Spark jobs it takes, and folders it must refuse."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.contract import Contract
from schemas.errors import SnapshotDamaged, UserError
from schemas.profile import PAGE, PROFILE, ColumnProfile, Profile, TableProfile
from spark_jobs.hadoop_files import HadoopFiles
from spark_jobs.jobs.profile_snapshot import ProfileConfig, describe, profile
from spark_jobs.profiling.measures import profiled_columns
from spark_jobs.profiling.reading import open_either
from spark_jobs.profiling.tables import TableInput, profile_table
from tests.spark.logs import FILM_CONTRACT

pytestmark = pytest.mark.slow


def run_profile(spark: SparkSession, folder: Path, out: Path) -> Profile:
    profile(spark, ProfileConfig(folder=str(folder), out=str(out)))
    return Profile.model_validate_json((out / PROFILE).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profile") / "snapshot-profile"


@pytest.fixture(scope="module")
def snapshot_profile(spark: SparkSession, film_snapshot_folder: Path, out: Path) -> Profile:
    return run_profile(spark, film_snapshot_folder, out)


@pytest.fixture(scope="module")
def events_profile(spark: SparkSession, film_events: Path) -> Profile:
    hadoop = HadoopFiles(spark)
    return describe(spark, hadoop, open_either(hadoop, str(film_events)))


def column(found: Profile | TableProfile, name: str, table: int = 0) -> ColumnProfile:
    chosen = found.tables[table] if isinstance(found, Profile) else found
    return next(column for column in chosen.columns if column.name == name)


def by_text(column: ColumnProfile, group: str) -> dict[str, int]:
    figures = column.groups[group]
    return {slot.text: n for slot, n in zip(column.slots, figures.counts, strict=True) if n}


def test_splits_are_counted_by_value_with_their_text(snapshot_profile: Profile) -> None:
    assert snapshot_profile.tables[0].groups == {"train": 6, "valid": 2, "test": 2}
    device = column(snapshot_profile, "event_device_idx")
    assert by_text(device, "train") == {"null": 1, "tv": 3, "phone": 2}
    assert by_text(device, "valid") == {"unseen": 1, "tv": 1}
    assert by_text(device, "test") == {"unseen": 1, "tv": 1}
    assert device.unseen_share("test") == 0.5
    assert device.missing_share("train") == pytest.approx(1 / 6)
    assert (device.meaning, device.source, device.vocabulary_size) == ("seen on", "device", 5)
    items = column(snapshot_profile, "item_idx")
    assert by_text(items, "train") == {"Alpha (a)": 3, "Gamma (c)": 2, "Beta (b)": 1}


def test_mean_label_by_value_and_what_a_column_explains(snapshot_profile: Profile) -> None:
    device = column(snapshot_profile, "event_device_idx")
    figures = device.groups["train"]
    means = {slot.text: mean for slot, mean in zip(device.slots, figures.mean_labels, strict=True) if mean is not None}
    # tv: 5, 4, 1; phone: 3, 5; null: 2. Of all six: mean 20/6.
    assert means == pytest.approx({"tv": 10 / 3, "phone": 4.0, "null": 2.0})
    within = (5 - 10 / 3) ** 2 + (4 - 10 / 3) ** 2 + (1 - 10 / 3) ** 2 + 1 + 1
    whole = sum((stars - 20 / 6) ** 2 for stars in (5, 4, 3, 2, 1, 5))
    assert figures.label_correlation_ratio == pytest.approx(max(0.0, 1 - (within / 3) / (whole / 5)))


def test_numbers_have_moments_and_pearson_by_hand(events_profile: Profile) -> None:
    price = column(events_profile, "price")
    figures = price.groups["all"]
    prices, stars = [10, 20, 30, 20, 20, 1000, 20, 20, 5000], [5, 4, 3, 1, 5, 4, 4, 3, 5]
    mean, mean_stars = sum(prices) / 9, sum(stars) / 9
    std = math.sqrt(sum((p - mean) ** 2 for p in prices) / 9)
    assert (figures.values, figures.nulls, figures.min, figures.max) == (10, 1, 10, 5000)
    assert figures.mean == pytest.approx(mean)
    assert figures.std == pytest.approx(std)
    covariance = sum((p - mean) * (s - mean_stars) for p, s in zip(prices, stars, strict=True)) / 9
    deviation = math.sqrt(sum((s - mean_stars) ** 2 for s in stars) / 9)
    assert figures.label_pearson == pytest.approx(covariance / std / deviation)
    assert figures.quantiles["0.5"] == 20
    assert by_text(price, "all") == {"10": 1, "20": 5, "30": 1, "1,000": 1, "5,000": 1}


def test_lists_are_counted_without_padding(snapshot_profile: Profile) -> None:
    history = column(snapshot_profile, "history")
    assert history.padded_length == 3
    assert history.lengths is not None
    # By hand, train in the order of time: u1 0, u1 1, u2 0, u2 1, u3 0, u1 2.
    assert by_text(history.lengths, "train") == {"0": 3, "1": 2, "2": 1}
    # The elements of those: a before u1's second, a before u2's second, a and b before u1's third.
    assert by_text(history, "train") == {"Alpha (a)": 3, "Beta (b)": 1}
    assert column(snapshot_profile, "seen").groups.keys() == {"valid", "test"}


def test_drift_is_the_stability_index_of_the_slots(snapshot_profile: Profile) -> None:
    device = column(snapshot_profile, "event_device_idx")
    found = {(drift.before, drift.after): drift for drift in device.drift}
    # null 1, unseen 0, tv 3, phone 2 against 0, 1, 1, 0, half a row added to each.
    before, after = [(n + 0.5) / 8 for n in (1, 0, 3, 2)], [(n + 0.5) / 4 for n in (0, 1, 1, 0)]
    by_hand = sum((q - p) * math.log(q / p) for p, q in zip(before, after, strict=True))
    assert found["train", "test"].psi == pytest.approx(by_hand)
    assert found["train", "test"].by_chance == pytest.approx(3 * (1 / 6 + 1 / 2))
    assert found["valid", "test"].psi == pytest.approx(0)


def test_time_ledger_and_lineage(snapshot_profile: Profile, film_snapshot_folder: Path) -> None:
    time = snapshot_profile.tables[0].time
    assert time is not None
    assert (time.start_ms, time.bin_ms) == (0, 60_000)
    assert time.counts == {"train": (6,), "valid": (2,), "test": (2,)}
    assert time.mean_labels["train"] == pytest.approx((20 / 6,))
    assert time.hour_counts == (10, *[0] * 23)
    manifest = json.loads((film_snapshot_folder / "manifest.json").read_text(encoding="utf-8"))
    assert snapshot_profile.ledger.model_dump(mode="json") == manifest["ledger"]
    assert [parent.id for parent in snapshot_profile.parents] == ["events"]
    assert next(part.rows for part in snapshot_profile.parts if part.part == "train") == 6


def test_refused_rows_are_shown_by_rule(snapshot_profile: Profile, events_profile: Profile) -> None:
    for found in (snapshot_profile, events_profile):
        rules = {rule.rule: rule for rule in found.quarantine if rule.table == "events"}
        assert {name: rule.rows for name, rule in rules.items()} == {
            "range:stars": 1,
            "type:stars": 1,
            "width": 1,
            "encoding": 1,
            "duplicate_key": 1,
        }
        assert rules["encoding"].samples[0].line == "u\\xff9\\ta\\t3\\t5\\ttv\\t1"
        assert not found.quarantine_remark


def test_done_is_done_and_nothing_else_is_overwritten(
    spark: SparkSession,
    snapshot_profile: Profile,
    film_snapshot_folder: Path,
    film_events: Path,
    out: Path,
    tmp_path: Path,
) -> None:
    before = {name: (out / name).read_bytes() for name in (PROFILE, PAGE)}
    assert run_profile(spark, film_snapshot_folder, out) == snapshot_profile
    assert {name: (out / name).read_bytes() for name in (PROFILE, PAGE)} == before
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == {PROFILE, PAGE}
    with pytest.raises(UserError, match="holds the profile of another folder"):
        run_profile(spark, film_events, out)
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"holds 'mine\.txt', which is no part of a profile"):
        run_profile(spark, film_events, tmp_path)


def test_a_folder_that_is_none_or_not_whole_is_said(
    spark: SparkSession, film_snapshot_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is no published folder"):
        run_profile(spark, tmp_path / "nowhere", tmp_path / "out")
    copy = tmp_path / "copy"
    shutil.copytree(film_snapshot_folder, copy)
    victim = next((copy / "train").glob("*.parquet"))
    victim.write_bytes(victim.read_bytes()[:-7])
    with pytest.raises(SnapshotDamaged, match="cut short"):
        run_profile(spark, copy, tmp_path / "out")
    victim.unlink()
    with pytest.raises(SnapshotDamaged, match="is missing; it held"):
        run_profile(spark, copy, tmp_path / "out")
    (copy / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(SnapshotDamaged, match="is not JSON"):
        run_profile(spark, copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def table_of(rows: DataFrame) -> TableInput:
    schema = rows.drop("group").schema
    return TableInput(
        name="rows",
        rows=rows,
        groups=("train", "test"),
        present={group: frozenset(rows.columns) for group in ("train", "test")},
        columns=profiled_columns(schema, "events", Contract.model_validate(FILM_CONTRACT), None),
        label="label",
    )


def test_the_number_of_jobs_does_not_grow_with_the_columns(spark: SparkSession) -> None:
    def jobs(columns: int) -> int:
        group = F.when(F.col("id") % 4 == 0, "test").otherwise("train").alias("group")
        values = [(F.col("id") % (n + 2)).cast("float").alias(f"number_{n}") for n in range(columns)]
        texts = [(F.col("id") % (n + 2)).cast("string").alias(f"text_{n}") for n in range(columns)]
        rows = spark.range(100).select(group, (F.col("id") % 2).cast("float").alias("label"), *values, *texts)
        spark.sparkContext.setJobGroup(f"profile of {columns}", "")
        profile_table(table_of(rows), None, {})
        return len(spark.sparkContext.statusTracker().getJobIdsForGroup(f"profile of {columns}"))

    assert jobs(1) == jobs(8) > 0


def test_what_is_not_finite_and_what_has_no_order_is_counted(spark: SparkSession) -> None:
    rows = spark.sql(
        "SELECT 'train' AS `group`, CAST(id % 2 AS FLOAT) AS label, "
        "CASE WHEN id = 0 THEN double('NaN') WHEN id = 1 THEN double('Infinity') WHEN id > 2 THEN double(id) END AS x, "
        "named_struct('a', id) AS pair, IF(id < 3, NULL, array(float(id), float(2))) AS vector FROM range(10)"
    )
    found = profile_table(table_of(rows), None, {})
    figures = column(found, "x").groups["train"]
    assert (figures.values, figures.nulls, figures.not_finite, figures.min, figures.max) == (10, 1, 2, 3, 9)
    assert column(found, "pair").kind == "other"
    vector = column(found, "vector")
    assert vector.groups["train"].values == 14
    assert vector.lengths is not None
    assert vector.lengths.groups["train"].nulls == 3


def test_bins_hold_every_number_once_and_the_tails_too(spark: SparkSession) -> None:
    rows = spark.range(10_000).select(
        F.lit("train").alias("group"),
        F.lit(1.0).alias("label"),
        F.exp(F.col("id") / 1000.0).alias("heavy"),
        (-F.col("id")).cast("double").alias("even"),
    )
    found = profile_table(table_of(rows), None, {})
    for name in ("heavy", "even"):
        shape = column(found, name)
        assert sum(shape.groups["train"].counts) == 10_000
        assert max(shape.groups["train"].counts) < 1000
    even = column(found, "even")
    for slot, n in zip(even.slots, even.groups["train"].counts, strict=True):
        low, high = slot.low if slot.low is not None else -1e9, slot.high if slot.high is not None else 1e9
        assert n == sum(low <= -i < high for i in range(10_000))
