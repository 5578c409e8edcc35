"""Generations as data and as a page, from files written by hand."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.generations import collect, new_in_train, write_pages
from pipelines.generations_charts import change_bar, line_chart
from pipelines.served_summary import gini, popularity, served_by_generation
from pipelines.turn import nothing_learned
from pipelines.turning.wheel_folder import WheelFolder
from schemas.generations import Generations, MetricChange, StepRecord, Turn
from schemas.served import ACTION_COLUMNS, IMPRESSION_COLUMNS
from schemas.snapshot import open_snapshot
from tests.snapshots import make_snapshot

WICKED = "<script>alert(1)</script>"


def impression(
    request_id: str, generation: str, items: str, *, explored: str = "", fallback: str | None = None
) -> dict:
    shown = [
        {"item_id": item, "position": place, "score": 0.5, "propensity": 0.9, "explored": item in explored}
        for place, item in enumerate(items)
    ]
    row = {"request_id": request_id, "time_ms": 1, "generation": generation, "user_id": "u", "policy": "p"}
    row |= {"context": "{}", "features": "{}", "num_candidates": 9, "fallback": fallback}
    return row | {"items": [one | {"features": "{}"} for one in shown]}


def action(number: int, request_id: str, kind: str) -> dict:
    row = {"action_id": str(number), "request_id": request_id, "item_id": "a", "user_id": "u"}
    return row | {"action": kind, "value": None, "time_ms": 2}


def land(folder: Path, kind: str, day: str, rows: list[dict]) -> None:
    schema = IMPRESSION_COLUMNS if kind == "impressions" else ACTION_COLUMNS
    path = folder / kind / f"day={day}" / "segment.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


@pytest.fixture
def landed(tmp_path: Path) -> Path:
    """Two generations: 0001 with four requests on two days, 0002 with one."""
    folder = tmp_path / "landed"
    rows = [impression("r1", "0001", "ab", explored="b"), impression("r2", "0001", "ac")]
    land(folder, "impressions", "2024-03-01", rows)
    rows = [impression("r3", "0001", "a", fallback="timeout"), impression("r4", "0001", "")]
    land(folder, "impressions", "2024-03-02", [*rows, impression("r5", "0002", "d")])
    # The day after a response still counts for it; two days after it does not.
    late = [action(1, "r1", "click"), action(2, "r1", "click"), action(3, "r5", "like"), action(4, "nobody's", "click")]
    land(folder, "actions", "2024-03-02", late)
    land(folder, "actions", "2024-03-03", [action(5, "r2", "click"), action(6, "r5", "click")])
    return folder


def test_what_was_served_is_counted_by_generation(landed):
    found = served_by_generation(landed)
    one, two = found["0001"], found["0002"]
    assert (one.requests, one.shown, one.explored, one.fallbacks) == (4, 5, 1, 1)
    assert dict(one.items) == {"a": 3, "b": 1, "c": 1}
    assert dict(one.actions) == {"click": 2}
    assert (two.requests, two.shown, dict(two.actions)) == (1, 1, {"like": 1, "click": 1})


def test_nothing_landed_is_nothing_served(tmp_path):
    assert served_by_generation(tmp_path / "landed") == {}


def test_gini_is_0_where_all_have_as_many_and_nears_1_where_one_has_all():
    assert gini(np.array([5.0, 5.0, 5.0, 5.0])) == 0
    assert gini(np.array([0.0, 0.0, 0.0, 8.0])) == 0.75  # 1 - 1/4
    assert gini(np.array([1.0, 3.0])) == 0.25


def test_amplification_is_the_share_of_popular_items_shown_over_their_share_of_the_log():
    ids = [f"i{number}" for number in range(10)]
    items = pa.table({"item_id": ids, "count": [41, *[1] * 9]})  # one item is a tenth: 41 of 50 events
    found = popularity({"i0": 9, "i3": 1, "unknown": 5}, items)
    assert found is not None
    assert (found.items, found.items_shown) == (10, 2)
    assert found.popular_share_log == pytest.approx(0.82)
    assert found.popular_share_shown == pytest.approx(0.9)
    assert found.amplification == pytest.approx(0.9 / 0.82)
    assert popularity({}, items) is None


@pytest.fixture
def wheel(tmp_path: Path, landed: Path) -> WheelFolder:
    """A promoted generation, and a refused one that was held against it; what comes from logs is wicked."""
    (tmp_path / "wheel.yaml").write_text(
        "name: films\ncontract: ml-100k\nraw: raw\n"
        "feedback: {event: action, labels: {rating: {action: rating, take: value}}}\n"
    )
    wheel = WheelFolder(tmp_path)
    for number, outcome, champion in ((1, "promoted", None), (2, "refused", "0001")):
        folder = wheel.generation(number)
        make_snapshot(folder.snapshot, [[40 * number]])
        steps = (StepRecord(name="seed", started_at="then", seconds=2.0, code=0),)
        turn = Turn(number=number, started_at="2024-03-01", outcome=outcome, champion=champion, steps=steps)
        (folder.path / "turn.json").write_text(turn.model_dump_json())
        write_evaluation(folder.run("retriever") / "evaluation-test.json", 0.2 * number)
    folder = wheel.generation(2).path
    write_evaluation(folder / "champion-retriever.json", 0.5)
    measure = {"name": "psi", "value": 0.4, "threshold": 0.1}
    column = {"column": WICKED, "of": "feature", "kind": "categorical", "verdict": "drifted", "measures": [measure]}
    steady = {"column": "age", "of": "feature", "kind": "numeric", "verdict": "ok"}
    report = {"created_at": "now", "reference": "r", "current": "c", "reference_rows": 1, "current_rows": 1}
    (folder / "drift").mkdir()
    (folder / "drift" / "drift.json").write_text(
        json.dumps({**report, "false_alarms": 0.05, "columns": [column, steady]})
    )
    check = {"check": "drift", "verdict": "failed", "reasons": [f"{WICKED} drifted"]}
    verdict = {"created_at": "now", "candidate": "c", "candidate_id": "0002", "champion_id": "0001"}
    (folder / "verdict.json").write_text(json.dumps({**verdict, "checks": [check], "rules": {}}))
    champion = {"release": "generations/0001/release", "id": "0001", "promoted_at": "now"}
    wheel.champion.write_text(json.dumps(champion))
    return wheel


def write_evaluation(path: Path, value: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    model = {"num_rows": 40, "row_id_sum": 1, "full": {"ndcg@10": value}}
    snapshot = {"url": "s", "id": "s", "digest": "d"}
    path.write_text(json.dumps({"split": "test", "snapshot": snapshot, "model": model}))


def test_new_events_are_in_train_as_far_as_they_are_not_held_out(wheel):
    manifest = open_snapshot(str(wheel.generation(2).snapshot)).manifest  # 80 train, 40 valid, 40 test
    by_time = manifest.model_copy(update={"config": {"split": "time:0.5,0.25,0.25"}})
    assert [new_in_train(by_time, before) for before in (70, 80, 120, None)] == [10, 0, 0, None]
    assert new_in_train(manifest.model_copy(update={"config": {"split": "ratio:0.5,0.25,0.25"}}), 70) is None


def test_a_turn_that_learns_nothing_of_what_came_in_says_so(wheel):
    second = collect(wheel).generations[1].model_copy(update={"new_in_train": 0})
    said = nothing_learned(second)
    assert said is not None
    assert "all 40 new events are among the 80 newest, which are held out" in said
    for update in ({"new_in_train": 1}, {"new_in_train": None}, {"new_events": 0}):
        assert nothing_learned(second.model_copy(update=update)) is None
    assert nothing_learned(None) is None


def test_a_generation_says_what_came_in_what_changed_and_what_was_decided(wheel):
    found = collect(wheel)
    first, second = found.generations
    assert (found.wheel, found.champion) == ("films", "0001")
    assert (first.in_service, second.in_service) == (True, False)
    assert (first.events, first.new_events) == (120, None)  # 40 train, 40 valid, 40 test
    assert (second.events, second.new_events) == (160, 40)
    assert second.splits == {"train": 80, "valid": 40, "test": 40}
    assert [(grown.name, grown.size, grown.before) for grown in second.vocabularies] == [
        ("user", 23, 23),
        ("item", 33, 33),
    ]
    (change,) = second.metrics
    assert (change.metric, change.candidate, change.champion) == ("ndcg@10", 0.4, 0.5)
    assert second.drift is not None
    assert (second.drift.columns, [one.column for one in second.drift.drifted]) == (2, [WICKED])
    assert first.served is not None
    assert (first.served.requests, first.served.explored_share) == (4, 0.2)
    assert second.verdict is not None
    assert not second.verdict.passed


def test_what_was_found_stays_when_a_generation_is_cleaned(wheel):
    before = collect(wheel).generations[0]
    write_pages(wheel)
    for folder in (wheel.generation(1).snapshot, wheel.generation(1).run("retriever")):
        folder.rename(wheel.path / folder.name)
    after = collect(wheel).generations[0]
    assert after.cleaned
    assert after.model_copy(update={"cleaned": False}) == before


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_is_whole_escaped_and_needs_nothing_else(wheel):
    path = write_pages(wheel)
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert WICKED not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; drifted" in text
    assert not [tag for tag, _ in found.tags if tag in ("script", "img", "link", "iframe")]
    assert not [value for _, attributes in found.tags for value in attributes.values() if value and "://" in value]
    assert ("html", {"lang": "en"}) in found.tags
    assert all("aria-label" in given or "aria-hidden" in given for tag, given in found.tags if tag == "svg")
    assert all("scope" in given for tag, given in found.tags if tag == "th")
    assert {"generation-0001", "generation-0002"} <= {given.get("id") for _, given in found.tags}
    written = Generations.model_validate_json((wheel.path / "generations.json").read_text())
    assert written.generations == collect(wheel).generations


def test_a_line_breaks_where_nothing_is_known_and_one_value_makes_no_line():
    assert line_chart("x", ["1", "2"], {"a": [0.5, None]}) is None
    chart = line_chart("ndcg@10", ["1", "2", "3", "4", "5"], {"a": [0.1, 0.2, None, 0.4, 0.5]})
    assert chart is not None
    assert chart.count("<polyline") == 2
    assert "a: 0.1, 0.2, none, 0.4, 0.5" in chart


@pytest.mark.parametrize(
    ("metric", "candidate", "higher", "word"),
    [("auc", 0.6, True, "better"), ("log_loss", 0.6, False, "worse"), ("auc", 0.5, True, "the same")],
)
def test_a_change_is_said_in_words_too(metric, candidate, higher, word):
    change = MetricChange(model="ranker", metric=metric, candidate=candidate, champion=0.5, higher_is_better=higher)
    assert f"({word})" in change_bar(change)
