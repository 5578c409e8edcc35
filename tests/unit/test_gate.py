"""The gate: each check fails alone for its own reason, what is missing fails, and every verdict is stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import gate
from pipelines.gating.comparison import compared
from schemas.bundle import SliceMetrics
from schemas.gate import GateVerdict
from tests.unit.generations_on_disk import (
    drift_report,
    evaluation,
    off_policy_report,
    skew_report,
    write,
    write_events,
    write_generation,
    write_release,
    write_snapshot,
)

RULES = "max_quarantined: 0.1\nmax_drifted: 0.25\nnever_drift: [tab_kept]\nmetrics: {ndcg@10: 0.01, auc: 0.01}\n"
HEADS = {"auc": 0.70, "log_loss": 0.50, "ece": 0.02}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    champion = tmp_path / "generations" / "0001"
    write_release(champion / "release", "0001")
    write_generation(tmp_path, "0002", champion=True)
    write(
        tmp_path / "generations" / "0002" / "drift" / "drift.json", drift_report(tmp_path, "tab", "tab_2", columns=10)
    )
    (tmp_path / "rules.yaml").write_text(RULES.replace("never_drift: [tab_kept]", "never_drift: [column_0]"))
    return tmp_path


def judged(root: Path, *extra: str, champion: bool = True) -> tuple[int, GateVerdict | None]:
    arguments = ["--candidate", str(root / "generations" / "0002"), "--rules", str(root / "rules.yaml")]
    arguments += ["--champion", str(root / "generations" / "0001")] if champion else []
    out = root / "verdict.json"
    code = gate.main([*arguments, "--out", str(out), *extra])
    return code, GateVerdict.model_validate_json(out.read_text()) if out.exists() else None


def failed(verdict: GateVerdict | None) -> dict[str, str]:
    """By check that failed, its first reason."""
    assert verdict is not None
    return {check.check: check.reasons[0] for check in verdict.checks if check.verdict == "failed"}


def test_a_drift_report_of_windows_is_of_the_same_snapshots(wheel):
    found = drift_report(wheel, "tab", columns=10)
    since = {"reference": f"{found.reference}, from 2024-01-01", "current": f"{found.current}, from 2024-01-02"}
    write(wheel / "generations" / "0002" / "drift" / "drift.json", found.model_copy(update=since))
    assert failed(judged(wheel)[1]) == {}


def test_a_sound_candidate_passes_with_reasons_and_figures(wheel, capsys):
    code, verdict = judged(wheel)
    assert (code, failed(verdict)) == (0, {})
    assert verdict is not None
    assert verdict.passed
    assert (verdict.candidate_id, verdict.champion_id) == ("0002", "0001")
    reasons = {check.check: check.reasons for check in verdict.checks}
    assert reasons["data_quality"][0] == "events: 50 of 1,000 rows quarantined (5.0%)."
    assert reasons["drift"][0] == "2 of 10 columns have drifted (20%): tab, tab_2."
    assert "retriever ndcg@10: 0.2000 against the champion's 0.2000." in reasons["metrics"]
    assert all(check.reasons and all(reason.endswith(".") for reason in check.reasons) for check in verdict.checks)
    assert "gate: 0002 passed" in capsys.readouterr().out


def quarantined(root: Path, generation: Path) -> None:
    write_snapshot(generation, write_events(root / "events", quarantined=200), str(root / "events"))


def broken_check(root: Path, generation: Path) -> None:
    write_snapshot(generation, write_events(root / "events", verdict="failed"), str(root / "events"))


def ingested_anew(root: Path, generation: Path) -> None:
    write_events(root / "events", quarantined=51)


def no_test_rows(root: Path, generation: Path) -> None:
    write_snapshot(generation, write_events(root / "events"), str(root / "events"), test_rows=0)


def report(name: str, model: object) -> Callable[[Path, Path], None]:
    return lambda root, generation: write(generation / name, model)


def drifting(*drifted: str, **changes: Any) -> Callable[[Path, Path], None]:
    return lambda root, generation: write(generation / "drift" / "drift.json", drift_report(root, *drifted, **changes))


def missing(name: str) -> Callable[[Path, Path], None]:
    return lambda root, generation: (generation / name).unlink()


def damaged(name: str) -> Callable[[Path, Path], None]:
    return lambda root, generation: (generation / name).write_text("{") and None


WORSE_SLICE = [SliceMetrics(column="tab", value="1", metrics={"rows": 600, "auc": 0.64})]
CASES = [
    (quarantined, {"data_quality": "events: 200 of 1,000 rows quarantined (20.0%), most by range; 10.0% may be"}),
    (broken_check, {"data_quality": "events: the check age_in_range failed for 7 of 1,000 rows"}),
    (ingested_anew, {"data_quality": "is no longer what the snapshot was made from"}),
    (no_test_rows, {"data_quality": "The test split holds 0 rows, 100 are asked for"}),
    (
        report("ranker/evaluation-test.json", evaluation("ranker", heads={"label": HEADS | {"rows": 99.0}})),
        {"data_quality": "Of the test split 99 rows have the label label, 100 are asked for"},
    ),
    (missing("snapshot/manifest.json"), {"data_quality": "manifest.json is missing: `headrace prepare` makes it"}),
    (
        drifting("a", "b", "c"),
        {"drift": "3 of 8 columns have drifted (38%): a, b, c; 25%"},
    ),
    (drifting("column_0", columns=20), {"drift": "column_0 has drifted and is one that never may"}),
    (drifting(columns=0), {"drift": "The report compares no column"}),
    (
        drifting("a", columns=5, few=("column_0", "column_1")),
        {"drift": "1 of 3 columns have drifted (33%): a; 25% may"},
    ),
    (drifting(columns=2, few=("column_0", "column_1")), {"drift": "The report compares no column; 2 had too few rows"}),
    (drifting(columns=9, few=("column_0",)), {"drift": "never_drift names column_0, which had too few rows to say"}),
    (drifting(champion="0000"), {"drift": "generations/0000/snapshot, not "}),
    (missing("drift/drift.json"), {"drift": "drift.json is missing: `headrace drift` makes it"}),
    (
        report("skew/skew.json", skew_report(different=30)),
        {"skew": "1 of 2 features are skewed on 100 replayed requests"},
    ),
    (report("skew/skew.json", skew_report(requests=0)), {"skew": "No value of any feature was compared on 0"}),
    (
        report("skew/skew.json", skew_report(compared=(0, 0))),
        {"skew": "No value of any feature was compared on 100 replayed requests"},
    ),
    (
        report("skew/skew.json", skew_report(different=30, compared=(100, 0))),
        {"skew": "1 of 1 features are skewed on 100 replayed requests, 1 had no value to compare (100%)"},
    ),
    (
        report("skew/skew.json", skew_report(generation="0000")),
        {"skew": "The report is of 0000, and 0001 is the champion"},
    ),
    (damaged("skew/skew.json"), {"skew": "skew.json cannot be read"}),
    (
        report("retriever/evaluation-test.json", evaluation("retriever", full={"ndcg@10": 0.18})),
        {"metrics": "retriever ndcg@10: 0.1800 against the champion's 0.2000, worse by 0.0200 where only 0.01 may be."},
    ),
    (
        report("ranker/evaluation-test.json", evaluation("ranker", heads={"label": HEADS | {"auc": float("nan")}})),
        {"metrics": "ranker label auc: nan against the champion's 0.7000: one of them is undefined."},
    ),
    (missing("champion-retriever.json"), {"metrics": "champion-retriever.json is missing: `headrace evaluate"}),
    (
        report("champion-retriever.json", evaluation("retriever", rows=999)),
        {"metrics": "champion-retriever.json is of 999 rows, the candidate's evaluation of 1,000"},
    ),
    (
        report("ranker/evaluation-test.json", evaluation("ranker", slices={"label": WORSE_SLICE})),
        {"slices": "ranker label, tab = 1: auc: 0.6400 against the champion's 0.7000, worse by 0.0600 where only 0.05"},
    ),
    (
        report("champion-ranker.json", evaluation("ranker", slices={})),
        {"slices": "ranker label, tab = 1: the champion's evaluation lacks it"},
    ),
    (
        report("ranker/evaluation-test.json", evaluation("ranker", heads={"label": HEADS | {"ece": 0.06}})),
        {"calibration": "label: predicted and observed rates differ by 0.0600 on average (ece), 0.05 may be"},
    ),
    (
        report("ranker/evaluation-test.json", evaluation("ranker", heads={"label": HEADS | {"ece": 0.035}})),
        {"calibration": "label: ece: 0.0350 against the champion's 0.0200, worse by 0.0150 where only 0.01 may be."},
    ),
    (
        report("off_policy.json", off_policy_report(interval=(-0.03, -0.001))),
        {"off_policy": "click an item shown, candidate minus champion (snips): -0.01550, 95 % from -0.03000"},
    ),
    (
        report("off_policy.json", off_policy_report(effective_rows=99)),
        {"off_policy": "The candidate's estimate stands on 99 effective rows of 2,000, 100 are asked for"},
    ),
    (
        report("off_policy.json", off_policy_report(users=29)),
        {"off_policy": "The log has requests of 29 users, 30 are asked for"},
    ),
    (
        report("off_policy.json", off_policy_report(ids=("0003", "0001"))),
        {"off_policy": "The report's candidate is 0003, not 0002"},
    ),
    (
        report("off_policy.json", off_policy_report(ids=("0002", "0000"))),
        {"off_policy": "The report's champion is 0000, not 0001"},
    ),
    (report("off_policy.json", off_policy_report(champion=False)), {"off_policy": "The report holds no champion"}),
    (missing("off_policy.json"), {"off_policy": "off_policy.json is missing: `headrace estimate"}),
]


@pytest.mark.parametrize(("spoil", "expected"), CASES)
def test_each_check_fails_alone_for_its_own_reason_and_the_verdict_is_stored(wheel, capsys, spoil, expected):
    spoil(wheel, wheel / "generations" / "0002")
    code, verdict = judged(wheel)
    found = failed(verdict)
    assert code == gate.REFUSED
    assert set(found) == set(expected)
    for check, says in expected.items():
        assert says in found[check]
    assert "refused for" in capsys.readouterr().out


def test_without_the_champions_ranker_evaluation_all_that_is_held_against_it_fails(wheel):
    missing("champion-ranker.json")(wheel, wheel / "generations" / "0002")
    assert set(failed(judged(wheel)[1])) == {"metrics", "slices", "calibration"}


@pytest.mark.parametrize("bundle", ["another", None])
@pytest.mark.parametrize("name", ["retriever/evaluation-test.json", "champion-retriever.json"])
def test_an_evaluation_of_another_model_than_the_releases_does_not_count(wheel, name, bundle):
    write(wheel / "generations" / "0002" / name, evaluation("retriever", bundle=bundle))
    reason = failed(judged(wheel)[1])["metrics"]
    assert reason.startswith(name)
    assert ("is of another model" if bundle else "does not say which model was judged") in reason


def test_a_retrievers_slices_are_held_against_the_champions(wheel):
    def sliced(ndcg: float):
        one = SliceMetrics(column="tab", value="1", metrics={"rows": 300, "queries": 300, "ndcg@10": ndcg})
        return evaluation("retriever", slices={"full": [one]})

    write(wheel / "generations/0002/retriever/evaluation-test.json", sliced(0.10))
    write(wheel / "generations/0002/champion-retriever.json", sliced(0.20))
    reason = failed(judged(wheel)[1])["slices"]
    assert reason.startswith("retriever full, tab = 1: ndcg@10: 0.1000 against the champion's 0.2000, worse by 0.1000")


def test_a_small_slice_does_not_count(wheel):
    small = [SliceMetrics(column="tab", value="2", metrics={"rows": 50, "auc": 0.1})]
    write(wheel / "generations/0002/ranker/evaluation-test.json", evaluation("ranker", slices={"label": small}))
    assert judged(wheel)[0] == 0


def test_without_any_slices_the_check_fails_unless_it_is_waived(wheel):
    for name in ("ranker/evaluation-test.json", "champion-ranker.json"):
        write(wheel / "generations/0002" / name, evaluation("ranker", slices={}))
    code, verdict = judged(wheel)
    assert code == gate.REFUSED
    assert failed(verdict) == {
        "slices": "The rules name no column to slice by, and there are no slices: set slice_by, or waive slices."
    }
    (wheel / "rules.yaml").write_text("waived: [slices]\n")
    assert judged(wheel)[0] == 0


def test_slices_that_the_rules_name_must_be_there(wheel):
    (wheel / "rules.yaml").write_text("slice_by: [country]\n")
    reason = failed(judged(wheel)[1])["slices"]
    assert reason == "The candidate's retriever has no slices by country: evaluate both with --slice country."


def test_a_metric_that_is_worse_within_the_users_noise_passes_and_says_so(wheel):
    worse = evaluation(
        "ranker",
        heads={"label": HEADS | {"auc": 0.68}},
        intervals={"label": {"auc": (0.66, 0.70)}},
    )
    write(wheel / "generations/0002/ranker/evaluation-test.json", worse)
    assert judged(wheel)[0] == gate.REFUSED, "the champion's interval is not known"
    champion = evaluation("ranker", intervals={"label": {"auc": (0.68, 0.72)}})
    write(wheel / "generations/0002/champion-ranker.json", champion)
    code, verdict = judged(wheel)
    assert code == 0
    assert verdict is not None
    reasons = next(check.reasons for check in verdict.checks if check.check == "metrics")
    assert any("worse by 0.0200 where 0.01 may be, but chance could explain it" in reason for reason in reasons)


def test_an_interval_that_would_excuse_anything_excuses_nothing():
    def held(half: float):
        return compared("auc", "auc", 0.66, 0.69, ((0.66 - half, 0.66 + half), (0.69, 0.69)))

    assert held(0.025).fails(0.01), "0.03 worse, and chance explains 0.025"
    assert not held(0.035).fails(0.01), "within 4 times the tolerance"
    assert held(0.05).fails(0.01)
    assert "chance could explain it, but at +-0.0500 it could explain anything" in held(0.05).sentence(0.01)
    assert not held(0.05).fails(0.015)


@pytest.mark.parametrize(
    ("metric", "candidate", "champion", "loss"),
    [
        ("auc", 0.6, 0.7, 0.1),
        ("log_loss", 0.6, 0.7, -0.1),
        ("calibration", 0.8, 1.1, 0.1),
        ("calibration", 1.05, 0.9, -0.05),
    ],
)
def test_which_way_is_worse_depends_on_the_metric(metric, candidate, champion, loss):
    assert compared("m", metric, candidate, champion, (None, None)).loss == pytest.approx(loss)


def test_without_named_metrics_the_recipes_own_is_held_against_the_champion(wheel):
    (wheel / "rules.yaml").write_text("max_drifted: 0.25\n")
    write(wheel / "generations/0002/retriever/evaluation-test.json", evaluation("retriever", full={"ndcg@10": 0.1}))
    assert "retriever ndcg@10" in failed(judged(wheel)[1])["metrics"]


def test_a_metric_that_nothing_was_evaluated_by_fails(wheel):
    (wheel / "rules.yaml").write_text("metrics: {ndgc@10: 0.01}\n")
    assert failed(judged(wheel)[1])["metrics"].startswith("ndgc@10 is in no evaluation of the candidate")


def test_a_waived_check_says_what_it_would_have_come_to(wheel):
    (wheel / "rules.yaml").write_text(RULES.replace("tab_kept", "column_0") + "waived: [off_policy]\n")
    missing("off_policy.json")(wheel, wheel / "generations" / "0002")
    code, verdict = judged(wheel)
    assert code == 0
    assert verdict is not None
    check = verdict.checks[-1]
    assert (check.verdict, check.reasons[0]) == ("waived", "Waived by the rules; it would have failed.")
    assert "off_policy.json is missing" in check.reasons[1]


def test_the_first_generation_has_nothing_to_be_held_against_and_says_so(tmp_path):
    write_generation(tmp_path, "0002", champion=False)
    (tmp_path / "wheel.yaml").write_text("name: w\ncontract: c\nraw: r\nfeedback: {}\ngate: {min_rows: 10}\n")
    code, verdict = judged(tmp_path, "--rules", str(tmp_path / "wheel.yaml"), champion=False)
    assert (code, failed(verdict)) == (0, {})
    assert verdict is not None
    assert (verdict.champion_id, verdict.rules.min_rows) == (None, 10)
    metrics = next(check for check in verdict.checks if check.check == "metrics")
    assert metrics.reasons == (
        "The first generation has no champion to be held against.",
        "retriever: ndcg@10 0.2000.",
        "ranker: auc of label 0.7000.",
    )


def test_the_first_generation_must_be_calibrated_and_of_sound_data(tmp_path):
    generation = write_generation(tmp_path, "0002", champion=False)
    (tmp_path / "rules.yaml").write_text("{}")
    write(generation / "ranker/evaluation-test.json", evaluation("ranker", heads={"label": HEADS | {"ece": 0.2}}))
    quarantined(tmp_path, generation)
    code, verdict = judged(tmp_path, champion=False)
    assert (code, set(failed(verdict))) == (gate.REFUSED, {"data_quality", "calibration"})


def test_a_champion_that_nobody_named_is_not_forgotten(wheel, capsys):
    code, verdict = judged(wheel, champion=False)
    assert (code, verdict) == (2, None)
    assert "champion-ranker.json says that there is a champion: name its generation with --champion" in (
        capsys.readouterr().err
    )
    for file in (wheel / "generations" / "0002").glob("champion-*.json"):
        file.unlink()
    (wheel / "champion.json").write_text('{"release": "generations/0001/release", "id": "0001", "promoted_at": "x"}')
    assert judged(wheel, champion=False)[0] == 2
    assert "champion.json says that 0001 is in service" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ("max_driftd: 0.1\n", "unknown key 'max_driftd'; did you mean 'max_drifted'?"),
        ("gate: {max_drifted: 7}\n", "gate: max_drifted: Input should be less than or equal to 1"),
    ],
)
def test_rules_that_are_wrong_are_answered_in_one_line(wheel, capsys, rules, says):
    (wheel / "rules.yaml").write_text(rules)
    assert judged(wheel) == (2, None)
    assert says in capsys.readouterr().err
