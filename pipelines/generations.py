"""What came of each turn: read from the manifests and reports that the steps left, kept as data and as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipelines.generations_page import page
from pipelines.served_summary import Served, popularity, served_by_generation
from pipelines.turning.files import write_model
from pipelines.turning.wheel_folder import GenerationFolder, WheelFolder
from schemas.bundle import LOWER_IS_BETTER, RunEvaluation, SplitMetrics
from schemas.drift import ColumnDrift, DriftReport, Measure, SkewReport
from schemas.durable import write_text
from schemas.gate import GateVerdict
from schemas.generations import (
    GENERATION,
    GENERATIONS,
    PAGE,
    DriftedColumn,
    DriftSummary,
    Generation,
    Generations,
    MetricChange,
    ServedSummary,
    SkewSummary,
    Turn,
    VocabularyGrowth,
)
from schemas.manifest import MANIFEST, Manifest
from schemas.off_policy import OffPolicyReport
from schemas.settings import M, parse_model
from schemas.snapshot import open_snapshot
from schemas.version import now_utc

RETRIEVER_METRICS = ("ndcg@10", "recall@10", "hr@10", "coverage@10")
RANKER_METRICS = ("auc", "log_loss", "ece")


def write_pages(wheel: WheelFolder) -> Path:
    """Bring generations.json and generations.html up to date; give the page."""
    found = collect(wheel)
    for one in found.generations:
        write_model(wheel.generation(one.turn.number).path / GENERATION, one)
    write_model(wheel.path / GENERATIONS, found)
    write_text(wheel.path / PAGE, page(found))
    return wheel.path / PAGE


def collect(wheel: WheelFolder) -> Generations:
    """All generations, the oldest first. Of those whose folders were cleaned what was found before."""
    champion = wheel.in_service()
    served = served_by_generation(wheel.landed)
    known: dict[str, Generation] = {}
    turns = [(folder, turn) for folder in wheel.generations() if (turn := folder.turn()) is not None]
    for folder, turn in turns:
        earlier = folder.generation()
        if earlier is not None and not (folder.snapshot / MANIFEST).is_file():
            found = earlier.model_copy(update={"turn": turn, "cleaned": bool(earlier.splits)})
        else:
            found = generation(wheel, folder, turn, known, served.get(turn.id), is_last=turn is turns[-1][1])
        known[turn.id] = found.model_copy(update={"in_service": champion is not None and champion.id == turn.id})
    return Generations(
        wheel=wheel.settings().name,
        created_at=now_utc(),
        champion=champion.id if champion is not None else None,
        generations=tuple(known.values()),
    )


def generation(
    wheel: WheelFolder,
    folder: GenerationFolder,
    turn: Turn,
    known: Mapping[str, Generation],
    served: Served | None,
    *,
    is_last: bool,
) -> Generation:
    """What the files of one generation say, as far as there are any. `known`: the generations before it."""
    before = known.get(turn.champion or "")
    earlier = folder.generation()
    # served/ is the wheel's, and goes on growing: what it held then was found then.
    came = _read(Manifest, wheel.served / MANIFEST) if is_last or earlier is None else None
    found = Generation(
        turn=turn,
        served_events=came.rows("events") if came is not None else earlier.served_events if earlier else None,
        feedback=came.ledger.feedback if came is not None else earlier.feedback if earlier else None,
        metrics=metrics(folder),
        drift=drift_summary(_read(DriftReport, folder.path / "drift" / "drift.json")),
        skew=skew_summary(_read(SkewReport, folder.path / "skew" / "skew.json")),
        off_policy=_read(OffPolicyReport, folder.path / "off_policy.json"),
        verdict=_read(GateVerdict, folder.verdict),
    )
    if not (folder.snapshot / MANIFEST).is_file():
        return found
    snapshot = open_snapshot(str(folder.snapshot))
    manifest, splits = snapshot.manifest, snapshot.manifest.ledger.splits
    events = manifest.ledger.tables["events"].accepted
    sizes = {one.name: one.size for one in before.vocabularies} if before is not None else {}
    vocabularies = manifest.transform.vocabularies if manifest.transform is not None else {}
    catalogue = snapshot.read("items", ["item_id", "count"]) if served is not None and snapshot.files("items") else None
    changed = {
        "events": events,
        "new_events": events - before.events if before is not None and before.events is not None else None,
        "new_in_train": new_in_train(manifest, before.events) if before is not None else None,
        "ledgers": manifest.ledger.tables,
        "splits": splits.parts() if splits is not None else {},
        "vocabularies": tuple(
            VocabularyGrowth(name=name, size=one.size, before=sizes.get(name)) for name, one in vocabularies.items()
        ),
        "served": None
        if served is None
        else ServedSummary(
            requests=served.requests,
            shown=served.shown,
            explored=served.explored,
            fallbacks=served.fallbacks,
            actions=dict(sorted(served.actions.items())),
            popularity=popularity(served.items, catalogue) if catalogue is not None else None,
        ),
    }
    return found.model_copy(update=changed)


def new_in_train(manifest: Manifest, events_before: int | None) -> int | None:
    """Events of train's time beyond the events that the champion's log had; None where train is not the oldest part."""
    splits = manifest.ledger.splits
    if splits is None or events_before is None or not str(manifest.config.get("split", "")).startswith("time:"):
        return None
    return max(0, splits.past + splits.train - events_before)


def metrics(folder: GenerationFolder) -> tuple[MetricChange, ...]:
    """Of retriever and ranker on the held-out rows, beside the champion on the same ones."""
    found: list[MetricChange] = []
    for model in ("retriever", "ranker"):
        mine = _read(RunEvaluation, folder.run(model) / "evaluation-test.json")
        if mine is None:
            continue
        champion = _read(RunEvaluation, folder.path / f"champion-{model}.json")
        popular = _named(mine.popularity) if mine.popularity is not None else {}
        theirs = _named(champion.model) if champion is not None else {}
        for name, value in _named(mine.model).items():
            head, _, metric = name.rpartition(" ")
            found.append(
                MetricChange(
                    model="retriever" if model == "retriever" else "ranker",
                    metric=name,
                    candidate=value,
                    champion=theirs.get(name),
                    popularity=popular.get(name),
                    interval=mine.model.intervals.get(head, {}).get(metric),
                    higher_is_better=metric not in LOWER_IS_BETTER,
                )
            )
    return tuple(found)


def drift_summary(report: DriftReport | None) -> DriftSummary | None:
    if report is None:
        return None
    drifted = [column for column in report.columns if column.verdict == "drifted"]
    listed = [DriftedColumn(column=one.column, measure=_worst(one), num_new=one.num_new) for one in drifted]
    return DriftSummary(columns=len(report.columns), drifted=tuple(listed))


def skew_summary(report: SkewReport | None) -> SkewSummary | None:
    if report is None:
        return None
    return SkewSummary(requests=report.requests, features=len(report.features), skewed=report.skewed)


def _named(found: SplitMetrics) -> dict[str, float]:
    """The shown metrics; of a ranker with their label before them."""
    of_heads = {
        f"{head} {name}": values[name]
        for head, values in found.heads.items()
        for name in RANKER_METRICS
        if name in values
    }
    return {name: found.full[name] for name in RETRIEVER_METRICS if name in found.full} | of_heads


def _worst(column: ColumnDrift) -> Measure | None:
    beyond = [measure for measure in column.measures if measure.exceeds]
    return max(beyond, key=lambda one: one.value / one.threshold if one.threshold else one.value, default=None)


def _read(model: type[M], path: Path) -> M | None:
    """None where the step has not come that far, or was not needed."""
    if not path.is_file():
        return None
    return parse_model(model, json.loads(path.read_text(encoding="utf-8")), where=str(path))
