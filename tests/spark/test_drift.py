"""Drift as Spark counts it: equal to the same measures in memory, across vocabularies, windows and predictions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from scipy import stats

from benchmarks.drift_windows import observe_categories, observe_numbers
from schemas.drift import DRIFT, DRIFT_PAGE, ColumnDrift, DriftReport
from schemas.errors import UserError
from schemas.features import NUM_RESERVED
from schemas.manifest import MANIFEST, Manifest
from spark_jobs.drifting.statistics import LEAST_SHARE
from spark_jobs.drifting.verdicts import Limits, judge
from spark_jobs.jobs.drift import DriftConfig, drift, window
from tests.snapshots import NUM_ITEMS, make_snapshot, write_parquet, write_vocabularies
from tests.spark.logs import run_ingest, write_contract, write_lines

pytestmark = pytest.mark.slow

DAY_S = 86_400
CONTRACT: dict[str, Any] = {
    "name": "plays",
    "meaning": "plays of films over ten days",
    "events": {
        "source": {"path": "plays.csv", "delimiter": ","},
        "key": ["user_id", "item_id", "at"],
        "columns": [
            {"name": "user_id", "type": "string", "role": "user", "meaning": "who"},
            {"name": "item_id", "type": "string", "role": "item", "meaning": "what"},
            {"name": "at", "type": "timestamp_ms", "role": "event_time", "meaning": "when"},
            {"name": "clicked", "type": "int32", "role": "label", "meaning": "clicked"},
            {"name": "device", "type": "string", "role": "categorical", "nullable": True, "meaning": "on what"},
            {"name": "price", "type": "float32", "role": "numeric", "nullable": True, "meaning": "cents"},
        ],
    },
    "users": {
        "source": {"format": "jsonl", "path": "people.jsonl"},
        "key": ["user_id"],
        "columns": [
            {"name": "user_id", "type": "string", "role": "user", "meaning": "who"},
            {"name": "age", "type": "int32", "role": "numeric", "meaning": "years"},
        ],
    },
}
NUM_USERS = 300
DEVICES = ("tv", "phone", "", "watch<b>")


def plays(*, late_device: str | None) -> list[bytes]:
    """2,000 plays, a tenth a day; from the sixth day on, a third of those on `tv` are on `late_device`."""
    random = np.random.default_rng(0)
    lines = [b"user_id,item_id,at,clicked,device,price"]
    for row in range(2000):
        day = row // 200
        device = ["tv", "phone", ""][random.choice(3, p=[0.5, 0.4, 0.1])]
        if late_device and day >= 5 and device == "tv" and random.random() < 1 / 3:
            device = late_device
        price = "" if random.random() < 0.05 else f"{random.integers(1, 40)}"
        user, item = random.integers(0, NUM_USERS), random.integers(0, 30)
        at = day * DAY_S + row % 200
        lines.append(f"u{user},i{item},{at},{int(random.random() < 0.3)},{device},{price}".encode())
    return lines


def store(spark: SparkSession, folder: Path, lines: list[bytes]) -> Path:
    write_lines(folder / "raw" / "plays.csv", lines)
    people = [json.dumps({"user_id": f"u{user}", "age": 20 + user % 50}).encode() for user in range(NUM_USERS)]
    write_lines(folder / "raw" / "people.jsonl", people)
    run_ingest(spark, write_contract(folder, CONTRACT), folder / "raw", folder / "events")
    return folder / "events"


@pytest.fixture(scope="module")
def shifted(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(spark, tmp_path_factory.mktemp("shifted"), plays(late_device="watch<b>"))


def run_drift(spark: SparkSession, reference: Path, current: Path, out: Path, **settings: Any) -> DriftReport:
    drift(spark, DriftConfig(reference=str(reference), current=str(current), out=str(out), **settings))
    return DriftReport.model_validate_json((out / DRIFT).read_text(encoding="utf-8"))


def column(report: DriftReport, name: str) -> ColumnDrift:
    return next(column for column in report.columns if column.column == name)


@pytest.fixture(scope="module")
def windows(spark: SparkSession, shifted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DriftReport, Path]:
    out = tmp_path_factory.mktemp("report") / "drift"
    halves = {"reference_window": window("1970-01-01,1970-01-06"), "current_window": window("1970-01-06,1970-01-11")}
    return run_drift(spark, shifted, shifted, out, **halves), out


def test_of_two_windows_the_column_that_was_changed_is_named_and_no_other(windows: tuple[DriftReport, Path]) -> None:
    report, _ = windows
    assert (report.reference_rows, report.current_rows) == (1000, 1000)
    assert report.drifted == ("device",)
    device = column(report, "device")
    assert (device.new_values, device.num_vanished) == (("watch<b>",), 0)
    assert device.figures["null_share"][0] == pytest.approx(0.1, abs=0.03)
    assert {c.column: c.kind for c in report.columns} == {
        "device": "categorical",
        "item_id": "categorical",
        "price": "numeric",
        "users.age": "numeric",
        "label": "numeric",
    }
    assert column(report, "label").of == "label"


def test_spark_counts_what_numpy_counts(windows: tuple[DriftReport, Path]) -> None:
    report, _ = windows
    rows = [line.decode().split(",") for line in plays(late_device="watch<b>")[1:]]
    price = np.array([float(row[5] or "nan") for row in rows])
    users = np.array([int(row[0][1:]) for row in rows])
    item = np.array([int(row[1][1:]) for row in rows])
    first = np.arange(2000) < 1000
    by_hand = [
        observe_numbers("price", price[first], price[~first], users=(users[first], users[~first])),
        observe_categories("item_id", item[first], item[~first], users=(users[first], users[~first])),
    ]
    for expected in judge(by_hand, Limits()):
        found = column(report, expected.column)
        for side in ("reference", "current"):
            shares = [getattr(one, side) for one in expected.bins]
            assert [getattr(one, side) for one in found.bins] == pytest.approx(shares)
        assert {m.name: m.value for m in found.measures} == pytest.approx({m.name: m.value for m in expected.measures})
        for name, figure in expected.figures.items():
            assert found.figures[name] == pytest.approx(figure), name


def test_measures_are_those_of_the_rows_themselves(windows: tuple[DriftReport, Path]) -> None:
    report, _ = windows
    rows = [line.decode().split(",") for line in plays(late_device="watch<b>")[1:]]
    before, now = rows[:1000], rows[1000:]

    def measured(name: str, measure: str) -> float:
        return next(m.value for m in column(report, name).measures if m.name == measure)

    # None of the four is rare, so that each is a bin of the index.
    shares = [np.array([[row[4] == value for row in side] for value in DEVICES]).mean(axis=1) for side in (before, now)]
    p, q = np.maximum(shares, LEAST_SHARE)
    assert measured("device", "psi") == pytest.approx(((q - p) * np.log(q / p)).sum())
    # A null counts as larger than any number.
    prices = [[float(row[5] or "inf") for row in side] for side in (before, now)]
    exact = stats.ks_2samp(*prices).statistic
    assert exact - 0.02 <= measured("price", "kolmogorov_smirnov") <= exact + 1e-12
    clicks = [np.mean([int(row[3]) for row in side]) for side in (before, now)]
    assert measured("label", "kolmogorov_smirnov") == pytest.approx(abs(clicks[1] - clicks[0]))


def test_the_page_stands_alone_and_escapes_what_a_log_holds(windows: tuple[DriftReport, Path]) -> None:
    _, out = windows
    page = (out / DRIFT_PAGE).read_text(encoding="utf-8")
    assert "1 of 5 columns drifted, device the most" in page
    assert "watch&lt;b&gt;" in page
    assert "watch<b>" not in page
    assert not re.search(r"""(src|href)=["']|url\(|@import""", page)
    assert page.count('scope="row"') == 5


def renumbered(url: str) -> str:
    """The same rows with the items' vocabulary in the other order, and their indices by it."""
    root, last = Path(url), NUM_RESERVED + NUM_ITEMS - 1
    manifest = Manifest.model_validate_json((root / MANIFEST).read_text(encoding="utf-8"))
    turned = np.array([0, 1, 2, *range(last, NUM_RESERVED - 1, -1)], dtype=np.int32)
    parts = dict(manifest.parts)
    for split in ("train", "valid", "test"):
        files = []
        for file in parts[split]:
            table = pq.read_table(root / file.path)
            lists = table["history"].combine_chunks()
            history = pa.ListArray.from_arrays(lists.offsets, pa.array(turned[lists.flatten().to_numpy()]))
            for name, values in (("item_idx", pa.array(turned[table["item_idx"].to_numpy()])), ("history", history)):
                table = table.set_column(table.schema.get_field_index(name), name, values)
            files.append(write_parquet(root / file.path, table, file.row_groups, root))
        parts[split] = tuple(files)
    (root / MANIFEST).write_text(manifest.model_copy(update={"parts": parts}).model_dump_json(), encoding="utf-8")
    return write_vocabularies(url, {"item": [f"i{item}" for item in reversed(range(NUM_ITEMS))]})


def test_snapshots_are_compared_by_values_whatever_their_vocabularies(spark: SparkSession, tmp_path: Path) -> None:
    before = write_vocabularies(
        make_snapshot(tmp_path / "before", [[300]]), {"item": [f"i{item}" for item in range(NUM_ITEMS)]}
    )
    now = renumbered(make_snapshot(tmp_path / "now", [[300]]))
    report = run_drift(spark, Path(before), Path(now), tmp_path / "out")
    assert report.drifted == ()
    assert {c.column: c.kind for c in report.columns} == {
        "item_idx": "categorical",
        "history": "list",
        "user_age": "numeric",
        "label": "numeric",
        "label_like": "numeric",
    }
    for found in report.columns:
        assert {m.name: m.value for m in found.measures if m.name != "unseen_share"} == pytest.approx(
            {m.name: 0.0 for m in found.measures if m.name != "unseen_share"}, abs=1e-9
        ), found.column
        assert (found.num_new, found.num_vanished) == (0, 0)


def test_predictions_are_compared_beside_the_columns(spark: SparkSession, shifted: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    landed, parquet, other = tmp_path / "landed", tmp_path / "now", tmp_path / "other"
    # Two items a request; a fallback's scores are no predictions.
    shown = [
        {
            "user_id": f"u{at}",
            "time_ms": at,
            "fallback": fallback,
            "items": [{"score": x} for x in random.normal(size=2)],
        }
        for at in range(250)
        for fallback in (None, "timeout")
    ]
    predicted = {"prediction": random.normal(1.0, 1, 500), "user_id": [f"u{row % 250}" for row in range(500)]}
    for path, table in (
        (landed / "impressions" / "day=1970-01-01", pa.Table.from_pylist(shown)),
        (parquet, pa.table(predicted)),
        (other, pa.table({"x": [1]})),
    ):
        path.mkdir(parents=True)
        pq.write_table(table, path / "part.parquet")
    report = run_drift(spark, shifted, shifted, tmp_path / "out", predictions=(str(landed), str(parquet)))
    assert report.drifted == ("prediction",)
    assert (report.columns[0].of, report.columns[0].figures["rows"]) == ("prediction", (500.0, 500.0))
    assert {c.column for c in report.columns[1:]} == {"device", "item_id", "price", "users.age", "label"}
    with pytest.raises(UserError, match="no column 'prediction'"):
        run_drift(spark, other, parquet, tmp_path / "out")
    with pytest.raises(UserError, match="no column in common"):
        run_drift(spark, shifted, parquet, tmp_path / "out")
