"""Slices: how rows are cut, what the slices are called, their metrics by hand, and what evaluate makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.bundle import CalibrationPoint, RunEvaluation, SliceMetrics
from schemas.errors import UserError
from schemas.features import BucketFeature, NumberFeature
from schemas.snapshot import Snapshot, open_snapshot
from tests.snapshots import NUM_ITEMS, make_snapshot, write_parquet
from training.bootstrap import bootstrap_curve
from training.bundle import bundle_digest
from training.click_metrics import Scored, calibration_curve, click_metrics
from training.evaluate import main
from training.evaluation import RankedRows
from training.evaluation_page import page, reliability_diagram
from training.ranks import OneRank
from training.recipe import read_recipe
from training.retrieval_slices import slice_metrics as of_slices
from training.run_folder import RunFolder
from training.slice_names import names_of_edges, names_of_ranges, names_of_values
from training.slices import Cut, Slicer, cut, most_frequent, quantiles, signs, slice_metrics, slicers, worst_first
from training.tasks import catalogue_of
from training.train import train

ALONE = OneRank()


def by(*, value: bool) -> Slicer:
    return Slicer("c", ("c",), value, lambda batch: np.empty(0))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_snapshot(tmp_path_factory.mktemp("data") / "s", [[600]], test_rows=300, unknown_likes=True)


def test_the_most_frequent_values_come_first_and_ties_go_by_value():
    values = np.array([7.0, 3, 3, 9, 9, 1])
    assert most_frequent(values, 3, ALONE).tolist() == [3, 9, 1]
    assert most_frequent(np.empty(0), 3, ALONE).tolist() == []


def test_rows_of_values_beyond_the_most_frequent_twenty_are_others():
    values = np.repeat(np.arange(22.0), 2)[1:]  # 0 stands there once, the others twice
    found = cut(by(value=True), values, ALONE)
    assert found.values.tolist() == [*range(1, 21)]
    assert found.place[:3].tolist() == [20, 0, 0]
    assert found.place[-2:].tolist() == [20, 20]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=40))
def test_quartiles_are_those_of_the_sorted_values(values):
    found = quantiles(np.array(values), (0.25, 0.5, 0.75), ALONE)
    ordered = sorted(values)
    assert found.tolist() == [ordered[int(np.ceil(share * len(values))) - 1] for share in (0.25, 0.5, 0.75)]


def test_rows_are_cut_at_quartiles_and_those_not_known_apart():
    found = cut(by(value=False), np.array([4.0, 1, 3, 2, np.nan]), ALONE)
    assert found.values.tolist() == [1, 2, 3]
    assert found.place.tolist() == [3, 0, 2, 1, 4]
    few = cut(by(value=False), np.array([0.0, 0, 0, 1]), ALONE)
    assert (few.values.tolist(), few.place.tolist()) == ([0], [0, 0, 0, 1])
    assert cut(by(value=False), np.array([np.nan]), ALONE).place.tolist() == [1]


def test_metrics_of_slices_are_those_of_their_rows_alone():
    random = np.random.default_rng(0)
    rows = 400
    probability = random.random(rows).astype(np.float32)
    label = (random.random(rows) < probability).astype(np.float32)
    known = random.random(rows) < 0.8
    place = random.integers(0, 3, rows)
    scored = Scored(
        probability=probability[known], label=label[known], group=random.integers(0, 50, rows)[known].astype(np.int64)
    )
    cuts = [Cut(by(value=True), place, np.array([5.0, 6.0]))]
    found = slice_metrics(cuts, scored, known, ALONE)
    assert [number for _, number, _ in found] == [0, 1, 2]
    for _, number, one in found:
        alone = click_metrics(scored.take(np.flatnonzero(place[known] == number)), ALONE)
        assert one.metrics == {name: alone[name] for name in one.metrics}
        assert {"auc", "log_loss", "calibration", "rows"} <= {*one.metrics}
        low, high = one.intervals["auc"]
        assert low <= one.metrics["auc"] <= high
    assert sum(one.metrics["rows"] for _, _, one in found) == known.sum()


def test_a_slice_of_one_class_has_no_auc_and_one_without_rows_does_not_appear():
    scored = Scored(
        probability=np.full(3, 0.5, np.float32), label=np.zeros(3, np.float32), group=np.arange(3, dtype=np.int64)
    )
    cuts = [Cut(by(value=True), np.zeros(3, dtype=np.intp), np.array([5.0, 6.0]))]
    ((_, number, one),) = slice_metrics(cuts, scored, np.ones(3, dtype=bool), ALONE)
    assert number == 0
    assert "auc" not in one.metrics
    assert "calibration" not in one.metrics
    json.dumps(one.model_dump(), allow_nan=False)


def a_slice(value: str, auc: float, calibration: float, low: float, high: float) -> SliceMetrics:
    metrics = {"auc": auc, "calibration": calibration}
    return SliceMetrics(column="tab", value=value, metrics=metrics, intervals={"calibration": (low, high)})


def test_the_worst_slices_come_first():
    whole = {"auc": (0.70, 0.80)}
    slices = [
        a_slice("noisy", 0.75, 1.6, 0.5, 2.0),
        a_slice("fine", 0.75, 1.0, 0.9, 1.1),
        a_slice("low auc", 0.65, 1.05, 0.9, 1.1),
        a_slice("off", 0.75, 0.8, 0.7, 0.9),
        a_slice("both", 0.60, 1.2, 1.1, 1.3),
    ]
    assert [one.value for one in worst_first(slices, whole)] == ["both", "off", "low auc", "noisy", "fine"]
    assert signs(slices[-1], whole) == ["calibration", "auc"]
    assert signs(slices[0], whole) == []


def with_vocabulary(url: str, folder: Path) -> Snapshot:
    """The snapshot, with a vocabulary of users written by hand, an age in years and a feature of buckets."""
    snapshot = open_snapshot(url)
    table = pa.table({"value": ["anna", "ben"], "idx": pa.array([3, 4], pa.int32()), "count": [9, 5]})
    file = write_parquet(Path(url) / "vocab" / "user" / "part-00000.parquet", table, [2], Path(url))
    manifest = snapshot.manifest
    features = tuple(
        NumberFeature(name="user_age", source="age", owner="users", mean=30.0, std=10.0) if f.name == "user_age" else f
        for f in snapshot.transform.features
    )
    bucket = BucketFeature(name="hour", source="time", owner="events", edges=(6.0, 18.0))
    transform = snapshot.transform.model_copy(update={"features": (*features, bucket)})
    parts = {**manifest.parts, "vocab/user": (file,)}
    return Snapshot(snapshot.url, manifest.model_copy(update={"parts": parts, "transform": transform}))


def test_slices_are_called_as_the_log_has_them(url, tmp_path):
    snapshot = with_vocabulary(url, tmp_path)
    assert names_of_values(snapshot, "user_idx", np.array([4.0, 2, 3, 1, 17])) == [
        "ben", "(unseen)", "anna", "(null)", "index 17",
    ]  # fmt: skip
    assert names_of_values(snapshot, "hour", np.array([3.0, 4, 5])) == ["below 6", "from 6 to 18", "from 18"]
    assert names_of_values(snapshot, "no_feature", np.array([3.0])) == ["3"]
    # Standardised ages -1, 0 and 0.5 are 20, 30 and 35 years.
    years = ["up to 20", "over 20 to 30", "over 30 to 35", "over 35"]
    assert names_of_ranges(snapshot, "user_age", np.array([-1, 0, 0.5])) == years
    assert names_of_edges([], closed="above") == ["all"]


def test_columns_that_are_none_are_refused_in_one_line(url):
    snapshot = open_snapshot(url)
    for name, says in (("user_agee", "did you mean 'user_age'"), ("history", "slices are made of single numbers")):
        with pytest.raises(UserError) as error:
            slicers([name], snapshot, "test", catalogue_of(snapshot))
        assert says in str(error.value)
        assert "\n" not in str(error.value)
    found = slicers(["user_idx", "event_time_ms", "user_idx"], snapshot, "test", None)
    assert [(one.name, one.by_value) for one in found] == [("user_idx", True), ("event_time_ms", False)]


def test_the_curve_with_intervals_is_the_calibration_curve_and_its_ece(url):
    random = np.random.default_rng(1)
    probability = np.round(random.random(3000), 2).astype(np.float32)  # ties that edges cut
    label = (random.random(3000) < probability**1.5).astype(np.float32)
    scored = Scored(probability=probability, label=label, group=random.integers(0, 300, 3000))
    points, interval = bootstrap_curve(scored, ALONE)
    plain = calibration_curve(scored, ALONE)
    assert [(p.probability, p.label, p.rows) for p in points] == [pytest.approx(one) for one in plain]
    ece = click_metrics(scored, ALONE)["ece"]
    assert interval is not None
    assert 0 < interval[0] < ece
    for point in points:
        assert point.interval is not None
        assert point.interval[0] <= point.label <= point.interval[1]
    nobody = scored.take(np.empty(0, dtype=np.intp))
    assert bootstrap_curve(nobody, ALONE) == ([], None)


def test_ece_of_calibrated_predictions_is_not_told_from_0():
    random = np.random.default_rng(2)
    probability = random.random(2000).astype(np.float32)
    label = (random.random(2000) < probability).astype(np.float32)
    scored = Scored(probability=probability, label=label, group=np.arange(2000, dtype=np.int64))
    _, interval = bootstrap_curve(scored, ALONE)
    assert interval is not None
    assert interval[0] == pytest.approx(0, abs=0.01)


def test_evaluate_keeps_slices_and_writes_a_page_and_another_column_adds_to_them(url, tmp_path, capsys):
    recipe = read_recipe("dlrm", ["model.width=4", "epochs=1", "loss.heads={label: 1.0, label_like: 0.5}"])
    run = RunFolder(tmp_path / "run")
    train(ALONE, snapshot_url=url, recipe=recipe, folder=run, check_only=False)
    assert main(["--run", str(run.path), "--slice", "user_age"]) == 0
    said = capsys.readouterr().out
    assert "slices, the worst first" in said
    assert "calibration, by predicted probability" in said
    first = run.evaluation("test")
    assert first is not None
    (ages,) = {len(slices) for slices in first.model.slices.values()}
    assert ages == 4
    for head, slices in first.model.slices.items():
        assert sum(one.metrics["rows"] for one in slices) == first.model.heads[head]["rows"]
    assert sum(point.rows for point in first.model.curves["label"]) == 300
    written = (run.path / "evaluation-test.html").read_text()
    assert written.count("<svg") == 2
    assert "<script" not in written
    assert main(["--run", str(run.path), "--slice", "item_idx"]) == 0
    both = run.evaluation("test")
    assert both is not None
    columns = [one.column for one in both.model.slices["label"]]
    assert columns.count("user_age") == 4
    assert columns.count("item_idx") == min(NUM_ITEMS, 20) + 1
    assert both.model.heads == first.model.heads
    assert main(["--run", str(run.path)]) == 0  # stands already
    assert run.evaluation("test") == both
    assert both.bundle == bundle_digest(run.bundle)
    run.save_evaluation(both.model_copy(update={"bundle": "of a model that was here before"}))
    assert main(["--run", str(run.path)]) == 0
    assert run.evaluation("test") == both, "judged again, with its slices"
    assert main(["--run", str(run.path), "--slice", "nowhere"]) == 2
    assert "--slice 'nowhere': test of" in capsys.readouterr().err


def test_a_retrievers_slices_are_the_metrics_of_their_rows_alone_by_hand():
    place = np.array([0, 1, 0, 1, 0])
    rows = RankedRows(
        query=np.array([7, 7, 8, 8, 9]),
        full=np.array([1, 3, 20, 2, 2], dtype=np.int32),
        sampled=np.ones(5, dtype=np.int32),
        listed=torch.zeros(1, 1),
        id_sum=0,
        beside={},
    )
    found = of_slices([Cut(by(value=True), place, np.array([5.0, 6.0]))], rows, ALONE, (2,))
    assert [number for _, number, _ in found] == [0, 1]
    first, second = (one.metrics for _, _, one in found)
    # Ranks 1, 20 and 2 of three queries; then 3 and 2 of two.
    assert (first["rows"], first["queries"], first["recall@2"]) == (3, 3, pytest.approx(2 / 3))
    assert first["mrr@2"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert (second["recall@2"], second["mrr@2"]) == (0.5, 0.25)


def test_evaluate_slices_a_retriever_and_another_column_adds_to_them(url, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    recipe = read_recipe("matrix_factorisation", ["model.width=4", "epochs=1"])
    train(ALONE, snapshot_url=url, recipe=recipe, folder=run, check_only=False)
    assert main(["--run", str(run.path)]) == 0
    plain = run.evaluation("test")
    assert main(["--run", str(run.path), "--slice", "label"]) == 0
    assert "slices, the worst first" in capsys.readouterr().out
    assert main(["--run", str(run.path), "--slice", "user_idx"]) == 0
    found = run.evaluation("test")
    assert plain is not None
    assert found is not None
    assert found.model.model_copy(update={"slices": {}}) == plain.model
    slices = found.model.slices["full"]
    assert {one.column for one in slices} == {"label", "user_idx"}
    chosen = [one.metrics["ndcg@10"] for one in slices]
    assert chosen == sorted(chosen)
    labels = [one for one in slices if one.column == "label"]
    assert sum(one.metrics["rows"] for one in labels) == 300
    whole = sum(one.metrics["rows"] * one.metrics["recall@10"] for one in labels) / 300  # a query is a row here
    assert whole == pytest.approx(plain.model.full["recall@10"])
    assert main(["--run", str(run.path), "--slice", "history"]) == 2
    assert "slices are made of single numbers" in capsys.readouterr().err


def test_what_comes_from_the_log_is_escaped_on_the_page():
    bad = a_slice("<script>alert(1)</script>", 0.6, 1.0, 0.9, 1.1)
    evaluation = RunEvaluation.model_validate(
        {
            "split": "test",
            "snapshot": {"url": "u", "id": "i", "digest": "d"},
            "query_grain": "event",
            "model": {
                "num_rows": 1,
                "row_id_sum": 1,
                "heads": {"label": {"auc": 0.75}},
                "intervals": {"label": {"auc": (0.7, 0.8)}},
                "slices": {"label": [bad]},
            },
        }
    )
    shown = page(evaluation)
    assert "<script" not in shown
    assert "tab = &lt;script&gt;" in shown
    assert '<tr class="bad">' in shown


def test_the_reliability_diagram_places_points_by_hand():
    points = [
        CalibrationPoint(probability=0.0, label=0.0, rows=5),
        CalibrationPoint(probability=1.0, label=0.5, interval=(0.25, 1.0), rows=5),
    ]
    # 0 to 1 on 320 units, 56 from the left, 0 at the bottom (328).
    shown = reliability_diagram(points)
    assert 'cx="56.0" cy="328.0"' in shown
    assert 'cx="376.0" cy="168.0"' in shown
    assert 'x1="376.0" x2="376.0" y1="248.0" y2="8.0"' in shown
