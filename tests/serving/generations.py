"""A wheel's generations.json, as three turns leave it: promoted, refused, promoted."""

from __future__ import annotations

from schemas.drift import Measure
from schemas.gate import CheckResult, GateRules, GateVerdict
from schemas.generations import (
    DriftedColumn,
    DriftSummary,
    Generation,
    Generations,
    MetricChange,
    Outcome,
    Popularity,
    ServedSummary,
    SkewSummary,
    Turn,
)


def three_generations(*, reason: str = "ndcg@10 0.201, champion 0.242: more than 0.01 worse") -> Generations:
    return Generations(
        wheel="films",
        created_at="2026-03-04T10:00:00+00:00",
        champion="0003",
        generations=(
            _generation(1, "promoted", 0.231, None, None, amplification=1.4),
            _generation(2, "refused", 0.201, 0.242, reason, amplification=None),
            _generation(3, "promoted", 0.262, 0.242, None, amplification=1.2),
        ),
    )


def _generation(
    number: int,
    outcome: Outcome,
    ndcg: float,
    champion: float | None,
    reason: str | None,
    *,
    amplification: float | None,
) -> Generation:
    served = None
    if amplification is not None:
        popularity = Popularity(
            items=100,
            items_shown=80,
            gini_shown=0.4,
            gini_log=0.5,
            popular_share_shown=0.3 * amplification,
            popular_share_log=0.3,
        )
        served = ServedSummary(requests=4000, shown=40_000, explored=3_800, fallbacks=2, popularity=popularity)
    failed = CheckResult(check="metrics", verdict="failed", reasons=(reason,)) if reason else None
    passed = CheckResult(check="data_quality", verdict="passed", reasons=("0.2 % of the rows are quarantined",))
    measure = Measure(name="psi", value=0.31, threshold=0.1)
    return Generation(
        turn=Turn(number=number, started_at=f"2026-03-0{number + 1}T09:30:00+00:00", outcome=outcome),
        in_service=number == 3,
        events=100_000 + 20_000 * number,
        new_events=20_000,
        served_events=20_000 * (number - 1),
        metrics=(
            MetricChange(model="retriever", metric="ndcg@10", candidate=ndcg, champion=champion, popularity=0.151),
            MetricChange(
                model="ranker", metric="is_click auc", candidate=0.7 + number / 100, champion=champion and 0.7
            ),
        ),
        drift=DriftSummary(columns=12, drifted=(DriftedColumn(column="tab", measure=measure),) * (number - 1)),
        skew=SkewSummary(requests=500, features=9),
        verdict=GateVerdict(
            created_at="2026-03-04T10:00:00+00:00",
            candidate="release",
            candidate_id=f"{number:04d}",
            champion_id=None if number == 1 else "0001",
            checks=(passed, failed) if failed else (passed,),
            rules=GateRules(),
        ),
        served=served,
    )
