"""Click metrics under horovodrun, on two and three ranks: what one rank finds, whoever holds the rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import launch
from tests.ranks.click_metrics_program import measure
from training.ranks import OneRank

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def case(num_rows: int, *, scores: int = 10**6, label: int | None = None) -> dict[str, np.ndarray]:
    """Rows of about one user in ten, two models' probabilities in `scores` steps; all of one label if it is given."""
    random = np.random.default_rng(num_rows)
    probability, other = random.random((2, num_rows))
    clicked = random.random(num_rows) < probability
    return {
        "probability": (np.round(probability * scores) / scores).astype(np.float32),
        "other": (np.round((probability + other) / 2 * scores) / scores).astype(np.float32),
        "label": (clicked if label is None else np.full(num_rows, label)).astype(np.float32),
        "group": random.integers(-(2**60), 2**60, num_rows // 10 + 1)[random.integers(0, num_rows // 10 + 1, num_rows)],
    }


CASES = {
    "many_rows": case(20_000),
    "tied": case(5_001, scores=7),
    "all_equal": case(1_000) | {"probability": np.full(1_000, 0.25, dtype=np.float32)},
    "two_rows": case(2),  # of three ranks the last has none
    "no_rows": case(0),
    "all_clicked": case(100, label=1),
    "none_clicked": case(100, label=0),
    "diverged": case(7) | {"probability": np.array([0.5] * 6 + [np.nan], dtype=np.float32)},  # one rank's
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("cases")
    for name, columns in CASES.items():
        np.savez(folder / f"{name}.npz", **columns)
    return [folder / f"{name}.npz" for name in CASES]


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest, paths: list[Path]) -> dict[str, Any]:
    report = paths[0].parent / f"report-{request.param}.json"
    arguments = [str(report), *map(str, paths)]
    assert launch.on_ranks("tests.ranks.click_metrics_program", arguments, ranks=request.param) == 0
    return {"ranks": request.param, **json.loads(report.read_text())}


def same(found: Any, alone: Any, bit: float) -> bool:
    """Whether two nested results are equal but for the last bits of numbers; NaN equals itself."""
    if isinstance(alone, dict):
        return found.keys() == alone.keys() and all(same(found[key], alone[key], bit) for key in alone)
    if isinstance(alone, (list, tuple)):
        return len(found) == len(alone) and all(same(*pair, bit) for pair in zip(found, alone, strict=True))
    return (math.isnan(found) and math.isnan(alone)) or abs(found - alone) <= bit


@pytest.mark.parametrize("name", [name for name in CASES if name != "diverged"])
def test_ranks_find_what_one_rank_finds(found, paths, name):
    alone = measure(paths[list(CASES).index(name)], OneRank())
    for part in ("metrics", "curve", "curve_intervals", "slices", "intervals", "comparison"):
        assert same(found[name][part], alone[part], bit=1e-12), part
        if part in ("metrics", "intervals", "comparison"):
            assert same(found[name][part]["auc"], alone[part]["auc"], bit=0), part


def test_a_probability_that_is_none_is_refused_by_all_ranks_and_none_hangs(found):
    assert found["diverged"]["refused"].startswith("1 probabilities")


def test_no_rank_holds_much_more_than_its_share(found):
    by_score, by_user = np.array(found["many_rows"]["rows_of_ranks"]).T
    assert by_score.sum() == by_user.sum() == 20_000
    assert by_score.max() < 1.05 * 20_000 / found["ranks"]
    assert by_user.max() < 1.1 * 20_000 / found["ranks"]


def test_equal_scores_all_go_to_one_rank(found):
    by_score, _ = np.array(found["all_equal"]["rows_of_ranks"]).T
    assert by_score.max() == by_score.sum() == 1_000
