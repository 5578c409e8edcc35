"""A generation's reports written by hand, sound as they are, for tests that spoil one at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas.bundle import RunEvaluation, SliceMetrics, SplitMetrics
from schemas.drift import ColumnDrift, DriftReport, FeatureSkew, SkewReport
from schemas.event_store import CheckResult, StoreState
from schemas.features import FeatureTransform
from schemas.ledger import Ledger, TableLedger
from schemas.manifest import DataFile, Manifest, Parent
from schemas.off_policy import Estimate, OffPolicyReport, PolicyEstimates
from schemas.release import Release
from tests.snapshots import contract

NOW = "2026-01-01T00:00:00+00:00"
TEST_ROWS = 1000


def write(path: Path, model: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(model.model_dump(mode="json")), encoding="utf-8")  # with NaN, as ranks write it


def write_release(folder: Path, release_id: str, *, parts: tuple[str, ...] = ("retriever", "ranker")) -> Path:
    found = Release(
        id=release_id,
        created_at=NOW,
        code_version="test",
        contract=contract(),
        transform=FeatureTransform(features=(), vocabularies={}),
        snapshot=Parent(url="s", id="s", digest="d"),
        last_event_time_ms=0,
        bundles={part: "digest" for part in parts},
        files={},
    )
    write(folder / "release.json", found)
    return folder


def published(root: Path, kind: Any, *, quarantined: int = 50, **values: Any) -> Manifest:
    """A published folder's manifest, of 1,000 rows read."""
    counts = TableLedger(
        lines=1000,
        headers=0,
        blanks=0,
        accepted=1000 - quarantined,
        duplicates=0,
        quarantined=quarantined,
        quarantined_by_rule={"range": quarantined},
    )
    found = Manifest(
        kind=kind,
        id=root.name,
        created_at=NOW,
        code_version="test",
        contract=contract(),
        config={},
        config_digest="test",
        ledger=Ledger(tables={"events": counts}),
        **{"parts": {}, **values},
    )
    write(root / "manifest.json", found)
    return found


def write_events(root: Path, *, verdict: Any = "ok", quarantined: int = 50) -> Manifest:
    check = CheckResult(table="events", rule="age_in_range", broken=7, of=1000, verdict=verdict)
    return published(root, "events", quarantined=quarantined, store=StoreState(version=1, tables={}, checks=(check,)))


def write_snapshot(generation: Path, events: Manifest, url: str, *, test_rows: int = TEST_ROWS) -> None:
    file = DataFile(path="test/part-00000.parquet", bytes=1, sha256="0", row_groups=(test_rows,))
    parent = Parent(url=url, id=events.id, digest=events.digest())
    published(generation / "snapshot", "snapshot", parents=(parent,), parts={"test": (file,)})


def evaluation(of: str, *, rows: int = TEST_ROWS, bundle: str | None = "digest", **changes: Any) -> RunEvaluation:
    """Of a retriever or a ranker; `changes` replace fields of its metrics."""
    if of == "retriever":
        values: dict[str, Any] = {"full": {"ndcg@10": 0.20, "recall@10": 0.30}}
    else:
        values = {
            "heads": {"label": {"auc": 0.70, "log_loss": 0.50, "ece": 0.02}},
            "slices": {
                "label": [
                    SliceMetrics(column="tab", value="1", metrics={"rows": 600, "auc": 0.70}),
                    SliceMetrics(column="tab", value="2", metrics={"rows": 50, "auc": 0.60}),
                ]
            },
        }
    found = SplitMetrics(num_rows=rows, row_id_sum=7, **(values | changes))
    return RunEvaluation(split="test", snapshot=Parent(url="s", id="s", digest="d"), bundle=bundle, model=found)


def write_bundle(run: Path, chosen_by: str) -> None:
    """A bundle's manifest is large: this is what a small one of the demo's looks like, with another metric."""
    values = {
        "created_at": NOW,
        "code_version": "test",
        "recipe": {"chosen_by": chosen_by},
        "contract": json.loads(contract().model_dump_json()),
        "transform": {"features": [], "vocabularies": {}},
        "snapshot": {"url": "s", "id": "s", "digest": "d"},
        "world_size": 1,
        "epochs": 1,
        "best_epoch": 0,
        "valid": {"num_rows": 1, "row_id_sum": 1},
    }
    (run / "bundle").mkdir(parents=True, exist_ok=True)
    (run / "bundle" / "bundle.json").write_text(json.dumps(values), encoding="utf-8")


def drift_report(root: Path, *drifted: str, columns: int = 8, few: Any = (), champion: str = "0001") -> DriftReport:
    """Of what lies below `root`; the columns in `few` had too few rows."""
    names = [*drifted, *(f"column_{number}" for number in range(columns - len(drifted)))]
    return DriftReport(
        created_at=NOW,
        reference=str(root / "generations" / champion / "snapshot"),
        current=str(root / "generations" / "0002" / "snapshot"),
        reference_rows=1000,
        current_rows=1000,
        false_alarms=0.05,
        columns=tuple(
            ColumnDrift(
                column=name,
                of="feature",
                kind="numeric",
                verdict="not_enough_rows" if name in few else "drifted" if name in drifted else "ok",
            )
            for name in names
        ),
    )


def skew_report(
    *, requests: int = 100, different: int = 0, compared: tuple[int, int] = (100, 100), generation: str = "0001"
) -> SkewReport:
    return SkewReport(
        created_at=NOW,
        generation=generation,
        requests=requests,
        tolerance=1e-6,
        max_share=0.01,
        features=(
            FeatureSkew(feature="history", compared=compared[0], different=different),
            FeatureSkew(feature="age", compared=compared[1], different=0),
        ),
    )


def policy_estimates(name: str, effective_rows: float = 500.0) -> PolicyEstimates:
    found = Estimate(estimator="snips", value=0.1, interval=(0.08, 0.12))
    return PolicyEstimates(
        policy=name, reward="click", rows=2000, effective_rows=effective_rows, matched_share=0.9, estimates=(found,)
    )


def off_policy_report(
    *,
    interval: tuple[float, float] = (-0.01, 0.02),
    effective_rows: float = 500.0,
    champion: bool = True,
    ids: tuple[str, str] = ("0002", "0001"),
    users: int = 300,
) -> OffPolicyReport:
    return OffPolicyReport(
        created_at=NOW,
        logged=Estimate(estimator="mean", value=0.1, interval=(0.09, 0.11)),
        candidate=policy_estimates(f"{ids[0]} greedy", effective_rows),
        champion=policy_estimates(f"{ids[1]} greedy") if champion else None,
        difference=(Estimate(estimator="snips", value=sum(interval) / 2, interval=interval),) if champion else (),
        users=users,
    )


def write_generation(root: Path, release_id: str, *, champion: bool) -> Path:
    """All that the gate reads of a candidate, sound; with `champion` also what it is held against."""
    folder = root / "generations" / release_id
    events = write_events(root / "events")
    write_snapshot(folder, events, str(root / "events"))
    write_release(folder / "release", release_id)
    for part, metric in (("retriever", "ndcg@10"), ("ranker", "auc")):
        write(folder / part / "evaluation-test.json", evaluation(part))
        write_bundle(folder / part, metric)
        if champion:
            write(folder / f"champion-{part}.json", evaluation(part))
    if champion:
        write(folder / "drift" / "drift.json", drift_report(root, "tab"))
        write(folder / "skew" / "skew.json", skew_report())
        write(folder / "off_policy.json", off_policy_report())
    return folder
