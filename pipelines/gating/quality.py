"""Is the candidate as good as the champion on the candidate's held-out split: over all, by slice, in calibration?"""

from __future__ import annotations

from pathlib import Path

from pipelines.gating.comparison import DEFAULT_TOLERANCE, Compared, compared, interval_of, values_of
from pipelines.gating.evidence import Evidence, Finding
from schemas.bundle import SplitMetrics
from schemas.release import RANKER

FIRST = "The first generation has no champion to be held against."


def metrics(evidence: Evidence) -> Finding:
    """Each metric of the rules, or what the recipe is chosen by, of each model that has it."""
    if evidence.is_first:
        said = [
            f"{part}: {metric} {_named(head, value)}"
            for part in evidence.parts()
            for metric in asked(evidence, part)
            for head, value in values_of(evidence.evaluation(part).model, metric).items()
        ]
        return Finding(passed=True, reasons=(FIRST, *said), files=_files(evidence, champion=False))
    bad, good, held = [], [], set()
    for part in evidence.parts_of_champion():
        if part not in evidence.parts():
            bad.append(f"The champion has a {part}, the candidate has none: release it with one, or waive metrics.")
    for part in evidence.parts():
        if part not in evidence.parts_of_champion():
            good.append(f"The champion has no {part}: the candidate's is held against nothing.")
            held |= {metric for metric in asked(evidence, part) if values_of(evidence.evaluation(part).model, metric)}
            continue
        mine, theirs = evidence.evaluation(part).model, evidence.evaluation_of_champion(part).model
        if not any(values_of(mine, metric) for metric in asked(evidence, part)):
            good.append(f"{part}: held against nothing, for the rules name none of its metrics.")
        for metric in asked(evidence, part):
            tolerance = evidence.rules.metrics.get(metric, DEFAULT_TOLERANCE)
            baseline = values_of(theirs, metric)
            for head, value in values_of(mine, metric).items():
                held.add(metric)
                name = f"{part} {head} {metric}" if head else f"{part} {metric}"
                if head not in baseline:
                    bad.append(
                        f"{name}: the champion's evaluation lacks it: train on the same labels, or waive metrics."
                    )
                    continue
                both = (mine, theirs)
                first, second = (interval_of(one.intervals.get(head, {}), metric) for one in both)
                one = compared(name, metric, value, baseline[head], (first, second))
                (bad if one.fails(tolerance) else good).append(one.sentence(tolerance))
    for metric in evidence.rules.metrics:
        if metric not in held:
            bad.append(f"{metric} is in no evaluation of the candidate: correct the rule, or evaluate with it.")
    if not held and not bad:
        bad.append("No metric was held against the champion: name some under `metrics` of the rules.")
    return Finding(passed=not bad, reasons=(*bad, *good), files=_files(evidence, champion=True))


def slices(evidence: Evidence) -> Finding:
    """The first metric of every slice that is large enough, of each model that both have."""
    if evidence.is_first:
        return Finding(passed=True, reasons=(FIRST,))
    rules, bad, good = evidence.rules, [], []
    parts = tuple(part for part in evidence.parts() if part in evidence.parts_of_champion())
    for part in parts:
        mine = evidence.evaluation(part).model
        sliced = {one.column for listed in mine.slices.values() for one in listed}
        for column in rules.slice_by:
            if column not in sliced:
                bad.append(f"The candidate's {part} has no slices by {column}: evaluate both with --slice {column}.")
        if not sliced:
            continue
        theirs = evidence.evaluation_of_champion(part).model
        found, lacking = held_slices(mine, theirs, asked(evidence, part), rules.min_slice_rows)
        bad += [
            f"{part} {name}: the champion's evaluation lacks it: judge it with the same --slice." for name in lacking
        ]
        bad += [f"{part} {one.sentence(rules.max_slice_loss)}" for one in found if one.fails(rules.max_slice_loss)]
        if found:
            worst = max(found, key=lambda one: one.loss)
            good.append(
                f"{part}: {len(found)} slices of {rules.min_slice_rows:,} rows or more were held against the "
                f"champion's; the worst is {worst.sentence(rules.max_slice_loss)}"
            )
        elif sliced:
            good.append(f"{part}: no slice of {rules.min_slice_rows:,} rows (min_slice_rows) that could be held.")
    if parts and not bad and not good:
        bad.append("The rules name no column to slice by, and there are no slices: set slice_by, or waive slices.")
    return Finding(passed=not bad, reasons=(*bad, *good), files=_files(evidence, champion=True, parts=parts))


def held_slices(
    mine: SplitMetrics, theirs: SplitMetrics, metrics: tuple[str, ...], min_rows: int
) -> tuple[list[Compared], list[str]]:
    """The slices that both have, by the first of the metrics that they have; and those that the champion lacks."""
    found, lacking = [], []
    for head, listed in mine.slices.items():
        baseline = {(one.column, one.value): one for one in theirs.slices.get(head, [])}
        for one in listed:
            metric = next((metric for metric in metrics if metric in one.metrics), None)
            if one.metrics.get("rows", 0) < min_rows or metric is None:
                continue
            name, other = f"{head}, {one.column} = {one.value}", baseline.get((one.column, one.value))
            if other is None or metric not in other.metrics:
                lacking.append(name)
                continue
            spans = (interval_of(one.intervals, metric), interval_of(other.intervals, metric))
            found.append(compared(f"{name}: {metric}", metric, one.metrics[metric], other.metrics[metric], spans))
    return found, lacking


def calibration(evidence: Evidence) -> Finding:
    """The expected calibration error of each label of the ranker, and by how much it is above the champion's."""
    if RANKER not in evidence.parts():
        return Finding(passed=True, reasons=("The candidate has no ranker; retrievers promise no probabilities.",))
    rules, bad, good = evidence.rules, [], []
    mine = evidence.evaluation(RANKER).model
    found = values_of(mine, "ece")
    if not found:
        bad.append("The ranker's evaluation holds no ece: run `headrace evaluate --split test` again.")
    for head, value in found.items():
        said = f"{head}: predicted and observed rates differ by {value:.4f} on average (ece)"
        if value <= rules.max_calibration_error:
            good.append(f"{said}.")
        else:
            bad.append(f"{said}, {rules.max_calibration_error:g} may be: train on newer rows, or weigh less.")
    has_baseline = not evidence.is_first and RANKER in evidence.parts_of_champion()
    if has_baseline:
        theirs = evidence.evaluation_of_champion(RANKER).model
        baseline = values_of(theirs, "ece")
        for head, value in found.items():
            if head not in baseline:
                bad.append(f"{head}: the champion's evaluation holds no ece: judge it again.")
                continue
            first, second = (interval_of(one.intervals.get(head, {}), "ece") for one in (mine, theirs))
            one = compared(f"{head}: ece", "ece", value, baseline[head], (first, second))
            (bad if one.fails(rules.max_calibration_loss) else good).append(one.sentence(rules.max_calibration_loss))
    else:
        good.append(FIRST if evidence.is_first else "The champion has no ranker to be held against.")
    return Finding(
        passed=not bad, reasons=(*bad, *good), files=_files(evidence, champion=has_baseline, parts=(RANKER,))
    )


def asked(evidence: Evidence, part: str) -> tuple[str, ...]:
    """The metrics to hold a model to."""
    return tuple(evidence.rules.metrics) or (evidence.chosen_by(part),)


def _named(head: str, value: float) -> str:
    return f"of {head} {value:.4f}." if head else f"{value:.4f}."


def _files(evidence: Evidence, *, champion: bool, parts: tuple[str, ...] | None = None) -> tuple[Path, ...]:
    found: list[Path] = []
    for part in parts or evidence.parts():
        found.append(evidence.candidate / part / "evaluation-test.json")
        if champion and part in evidence.parts_of_champion():
            found.append(evidence.candidate / f"champion-{part}.json")
    return tuple(found)
