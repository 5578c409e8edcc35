"""`headrace estimate` on a log that a real release answered, with clicks whose probabilities are known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.features import NUM_RESERVED
from schemas.off_policy import OffPolicyReport
from schemas.release import RELEASE, Release
from schemas.served import COLUMNS, Kind
from schemas.wheel import Exploration, ServingSettings
from serving import estimate
from serving.engine import Asked, load_engine
from serving.items import Items
from serving.logged_requests import UserEvents, read_requests, rewards
from serving.policy import draw, next_propensities, pool_of
from serving.replayed_policy import rewound
from serving.reward_model import FOLDS, fit
from serving.users import User
from tests.serving.releases import LAST_EVENT_MS, RULES

pytestmark = pytest.mark.slow

K, REQUESTS = 3, 600
LOGGING = ServingSettings(candidates=20, exploration=Exploration(kind="plackett_luce", temperature=0.5, pool=20))
OTHER = ServingSettings(candidates=20, exploration=Exploration(kind="plackett_luce", temperature=0.1, pool=20))


def click_rate(item_id: str) -> float:
    return 0.1 + 0.02 * int(item_id[1:])


def with_serving(release: Path, to: Path, release_id: str, serving: ServingSettings) -> Path:
    """The same release under another name, which answers with other settings."""
    shutil.copytree(release, to)
    found = Release.model_validate_json((to / RELEASE).read_text())
    changed = found.model_copy(update={"id": release_id, "serving": serving, "feedback": None})
    (to / RELEASE).write_text(changed.model_dump_json())
    return to


def land(root: Path, kind: Kind, rows: Sequence[dict[str, object]], segment: str = "a") -> None:
    folder = root / kind / "day=1970-01-01"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=COLUMNS[kind]), folder / f"{segment}.parquet")


def impression(request_id: str, user_id: str, time_ms: int, items: Sequence[tuple[str, float]], **more: object):
    shown = [
        {"item_id": item, "position": n, "score": 0.0, "propensity": p, "explored": False, "features": "{}"}
        for n, (item, p) in enumerate(items)
    ]
    of_release = {"generation": "0001", "policy": "p", "context": '{"tab": 1}', "features": "{}", "num_candidates": 20}
    return {
        "request_id": request_id,
        "user_id": user_id,
        "time_ms": time_ms,
        "items": shown,
        "fallback": None,
        **of_release,
        **more,
    }


def action(
    request_id: str, item_id: str, time_ms: int, kind: str = "click", value: float | None = None, **more: object
):
    return {
        "action_id": f"{request_id} {item_id} {kind} {time_ms}",
        "request_id": request_id,
        "item_id": item_id,
        "user_id": "u",
        "action": kind,
        "value": value,
        "time_ms": time_ms,
        **more,
    }


@pytest.fixture(scope="module")
def log(released, tmp_path_factory) -> tuple[Path, Path, Path, float]:
    """Landed logs, the release that answered, another one, and what the other one earns at the same places."""
    root = tmp_path_factory.mktemp("estimate")
    logging = with_serving(released[0], root / "0001", "0001", LOGGING)
    other = with_serving(released[0], root / "0002", "0002", OTHER)
    engine, random = load_engine(logging), np.random.default_rng(5)
    impressions, actions, earned = [], [], []
    users = [f"u{n}" for n in random.integers(0, 20, REQUESTS)]
    asked = [Asked(user_id=user, time_ms=LAST_EVENT_MS + 1000 + n, context={"tab": 1}) for n, user in enumerate(users)]
    for number, (one, scored) in enumerate(zip(asked, engine.score(asked, 20), strict=True)):
        drawn = draw(scored.scores, K, LOGGING.exploration, random)
        shown = [engine.items.ids[scored.places[rank]] for rank in drawn.places]
        rows = list(zip(shown, drawn.propensities.tolist(), strict=True))
        impressions.append(impression(f"r{number}", one.user_id, one.time_ms, rows))
        clicked = [item for item in shown if random.random() < click_rate(item)]
        actions += [action(f"r{number}", item, one.time_ms + 5, user_id=one.user_id) for item in clicked]
        pool = pool_of(scored.scores, K, OTHER.exploration)
        rates = np.array([click_rate(engine.items.ids[place]) for place in scored.places[pool]])
        earned.append(next_propensities(scored.scores, drawn.places, OTHER.exploration) @ rates)
    land(root / "landed", "impressions", impressions[:400])
    land(root / "landed", "impressions", impressions[400:], segment="b")
    land(root / "landed", "actions", actions)
    return root / "landed", logging, other, float(np.mean(earned))


def estimated(log: tuple[Path, Path, Path, float], out: Path, *extra: str, candidate: int = 2) -> OffPolicyReport:
    landed = ["--landed", str(log[0]), "--release", str(log[candidate]), "--champion", str(log[1]), "--reward", "click"]
    assert estimate.main([*landed, "--out", str(out), "--resamples", "400", *extra]) == 0
    return OffPolicyReport.model_validate_json(out.read_text())


def test_the_interval_of_each_estimator_holds_what_the_other_policy_earns_at_the_same_places(log, tmp_path):
    report = estimated(log, tmp_path / "off_policy.json")
    assert (report.requests, report.candidate.rows) == (REQUESTS, REQUESTS * K)
    assert report.candidate.policy.startswith("0002 plackett_luce(0.1")
    for one in report.candidate.estimates:
        assert one.interval[0] <= log[3] <= one.interval[1], (one, log[3])
    assert {one.estimator for one in report.difference} == {"ips", "snips", "dr", "sndr"}
    assert report.candidate.mean_weight == pytest.approx(1.0, abs=0.15)
    assert report.candidate.effective_rows < report.candidate.rows


def test_a_release_asked_again_gives_the_propensities_that_it_logged(log, tmp_path):
    report = estimated(log, tmp_path / "off_policy.json")
    assert report.champion is not None
    assert report.champion.effective_rows == pytest.approx(REQUESTS * K)
    assert report.champion.mean_weight == pytest.approx(1.0, abs=1e-9)
    ips = next(one for one in report.champion.estimates if one.estimator == "ips")
    assert ips.value == pytest.approx(report.logged.value)
    assert not [note for note in report.notes if "gives" in note]


def test_weights_by_item_find_what_another_list_earns_from_the_requests_of_both(log, released, tmp_path):
    """Clicks depend on the item alone; the candidate explores more, so it shows the worst of the pool more often."""
    of = {
        name: ServingSettings(candidates=20, exploration=Exploration(kind="epsilon_greedy", epsilon=epsilon, pool=20))
        for name, epsilon in (("0001", 0.3), ("0002", 0.8))
    }
    folders = {name: with_serving(released[0], tmp_path / name, name, serving) for name, serving in of.items()}
    engine, random = load_engine(folders["0001"]), np.random.default_rng(6)
    asked = [
        Asked(user_id=f"u{n}", time_ms=LAST_EVENT_MS + 1000 + number, context={"tab": 1})
        for number, n in enumerate(random.integers(0, 20, REQUESTS))
    ]
    impressions, actions, earned = [], [], []
    for number, (one, scored) in enumerate(zip(asked, engine.score(asked, 20), strict=True)):
        drawn = draw(scored.scores, K, of["0001"].exploration, random)
        shown = [engine.items.ids[scored.places[rank]] for rank in drawn.places]
        rows = list(zip(shown, drawn.propensities.tolist(), strict=True))
        generation = "0000" if number % 10 == 0 else "0001"
        impressions.append(impression(f"r{number}", one.user_id, one.time_ms, rows, generation=generation))
        clicked = [item for item in shown if random.random() < click_rate(item)]
        actions += [action(f"r{number}", item, one.time_ms + 5, user_id=one.user_id) for item in clicked]
        theirs = draw(scored.scores, K, of["0002"].exploration, random).places
        earned += [click_rate(engine.items.ids[scored.places[rank]]) for rank in theirs]
    land(tmp_path / "landed", "impressions", impressions)
    land(tmp_path / "landed", "actions", actions)
    where = (tmp_path / "landed", folders["0001"], folders["0002"], 0.0)
    by_item = estimated(where, tmp_path / "item.json")
    by_position = estimated(where, tmp_path / "position.json", "--weights", "position")
    assert (by_item.weights, by_position.weights) == ("item", "position")
    assert (by_item.requests, by_position.requests) == (REQUESTS * 9 // 10, REQUESTS), "0000 cannot be asked again"
    for one in by_item.candidate.estimates:
        assert one.value == pytest.approx(np.mean(earned), abs=0.04), "users are few, and intervals too narrow"
    assert by_item.candidate.mean_weight == pytest.approx(1.0, abs=0.1)
    assert by_item.champion is not None
    assert by_item.champion.effective_rows == pytest.approx(by_item.champion.rows)
    assert by_item.candidate.effective_rows > 100
    assert estimated(log, tmp_path / "o.json").weights == "position", "Plackett-Luce"


def test_a_log_whose_propensities_are_not_its_releases_is_told(log, tmp_path):
    wrong = with_serving(log[1], tmp_path / "0001", "0001", OTHER)
    report = estimated((log[0], wrong, log[2], 0.0), tmp_path / "off_policy.json")
    assert any(note.startswith("0001 gives") and "of the propensities again" in note for note in report.notes)


def test_a_sample_is_the_same_one_again_and_another_with_another_seed(log):
    def ids(seed: int) -> list[str]:
        return read_requests(log[0], max_requests=50, seed=seed).request_id

    assert ids(0) == ids(0)
    assert len(ids(0)) == 50
    assert ids(0) != ids(1)
    assert read_requests(log[0], max_requests=10**6).request_id == [f"r{number}" for number in range(REQUESTS)]


def test_what_cannot_be_estimated_is_answered_in_one_line(log, tmp_path, capsys):
    arguments = ["--landed", str(tmp_path), "--release", str(log[2]), "--reward", "click", "--out", str(tmp_path / "o")]
    assert estimate.main(arguments) == 2
    assert "`headrace land` brings logs there" in capsys.readouterr().err
    arguments[1] = str(log[0])
    assert estimate.main([*arguments, "--from", "2999-01-01"]) == 2
    assert "holds no request in these times" in capsys.readouterr().err
    assert estimate.main([*arguments, "--from", "tomorrow"]) == 2
    assert "--from 'tomorrow': auto, log, or a time" in capsys.readouterr().err


def test_rewards_are_of_the_action_asked_for_in_time(tmp_path):
    land(tmp_path, "impressions", [impression("r", "u", 1000, [("i1", 0.5), ("i2", 0.5), ("i3", 0.5)])])
    land(
        tmp_path,
        "actions",
        [
            action("r", "i1", 1500, "view", 3.0),
            action("r", "i1", 1600, "view", 4.0),
            action("r", "i2", 9000, "view", 5.0),
            action("r", "i3", 1500, "like"),
            action("s", "i3", 1500, "view", 9.0),
            action("r", "i1", 1700, "view", 7.0, action_id="r i1 view 1500"),  # sent again
            action("r", "i3", 1500, "view", 9.0, user_id="stranger"),
        ],
    )
    requests = read_requests(tmp_path, max_requests=10)
    found = {
        take: rewards(tmp_path, requests, "view", take=take, window_ms=5000).tolist()
        for take in ("happened", "value", "sum")
    }
    assert found == {"happened": [1, 0, 0], "value": [4, 0, 0], "sum": [7, 0, 0]}
    assert rewards(tmp_path, requests, "view", take="happened", window_ms=None).tolist() == [1, 1, 0]


def test_requests_whose_window_is_still_open_are_left_out_and_counted(log, tmp_path):
    landed = Path(shutil.copytree(log[0], tmp_path / "landed"))
    hour, newest = 3_600_000, LAST_EVENT_MS + 1000 + REQUESTS
    land(landed, "actions", [action("r0", "i1", newest + hour - 100, "view")], segment="later")
    report = estimated((landed, *log[1:]), tmp_path / "off_policy.json", "--window-hours", "1")
    assert report.requests == REQUESTS - 99, "those until 100 ms before the newest, itself counted"
    assert any(note.startswith("99 requests of the last 1 hours") for note in report.notes)
    arguments = ["--landed", str(log[0]), "--release", str(log[2]), "--reward", "click", "--out", str(tmp_path / "o")]
    assert estimate.main([*arguments, "--window-hours", "1"]) == 2, "all are young"


def test_fallbacks_are_left_out_and_counted(tmp_path):
    rows = [impression("r", "u", 1, [("i1", 0.5)]), impression("s", "u", 2, [("i1", 1.0)], fallback="timeout")]
    land(tmp_path, "impressions", rows)
    requests = read_requests(tmp_path, max_requests=10)
    assert (requests.request_id, requests.found, requests.fallbacks) == (["r"], 1, 1)


def test_events_of_users_are_those_that_the_rules_make(tmp_path):
    shown = [("i1", 0.5), ("i2", 0.5)]
    land(tmp_path, "impressions", [impression("r", "u", 10, shown), impression("s", "v", 20, shown)])
    late_ms = 24 * 3_600_000 + 11
    acts = [action("r", "i2", 15), action("r", "i2", 17), action("r", "i1", 16, "dislike"), action("r", "i1", late_ms)]
    land(tmp_path, "actions", [*acts, action("s", "i1", 25)])  # s was shown to v
    each_shown = UserEvents(tmp_path, RULES, ["u"])
    assert each_shown.between("u", 0, 100) == [(10, "i1"), (10, "i2")]
    assert each_shown.between("u", 10, 100) == []
    assert each_shown.between("u", 0, 10) == []
    acted = UserEvents(tmp_path, RULES.model_copy(update={"event": "action"}), ["u", "v"])
    assert acted.between("u", 0, 100) == [(15, "i2")], "of the time when it was first acted on"
    assert acted.between("v", 0, 100) == []


def test_a_rewound_user_has_neither_seen_nor_done_what_came_later():
    items = Items(ids=["a", "b", "c", "d"], titles=[], counts=np.zeros(4, dtype=np.int64), features={}, raw={})
    a, b, c, d = (np.int32(NUM_RESERVED + place) for place in range(4))
    user = User(features={}, history=np.array([a, b, c, b]), seen=np.array([d, a, b, c]))
    was = rewound(user, 100, [(100, "b"), (120, "c")], [(50, "b")], items)
    assert was.history.tolist() == [a, b], "one entry for each event, from the newest"
    assert was.seen.tolist() == [d, a, b], "b was seen before, too"
    timed = User(features={}, history=user.history, seen=user.seen, times_ms=np.array([10, 99, 100, 130]))
    exact = rewound(timed, 100, [(100, "c"), (130, "b")], [(99, "b")], items)
    assert exact.history.tolist() == [a, b]
    assert exact.times_ms is not None
    assert exact.times_ms.tolist() == [10, 99]


def test_an_item_clicked_later_is_still_a_candidate_at_the_request_that_showed_it(log, released, tmp_path):
    """The release was made after the click, so its users have seen the item."""
    later = tmp_path / "landed"
    engine = load_engine(log[1])
    seen = engine.items.ids[int(engine.users.find("u3").seen[-1]) - NUM_RESERVED]
    before_end = LAST_EVENT_MS - 100
    land(later, "impressions", [impression("r", "u3", before_end, [(seen, 0.5)])])
    land(later, "actions", [action("r", seen, before_end + 5)])
    for rules, matched in ((RULES, 1.0), (None, 0.0)):
        candidate = with_serving(log[2], tmp_path / f"matched-{matched}", "0009", OTHER)
        found = Release.model_validate_json((candidate / RELEASE).read_text())
        (candidate / RELEASE).write_text(
            found.model_copy(
                update={"feedback": rules, "serving": OTHER.model_copy(update={"candidates": 30})}
            ).model_dump_json()
        )
        report = estimated((later, log[1], candidate, 0.0), tmp_path / "off_policy.json")
        assert report.candidate.matched_share == matched


def test_the_reward_model_never_saw_the_row_that_it_predicts():
    reward, fold = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]), np.array([0, 1, 2, 3, 4, 4])
    nought, item = np.zeros(6, dtype=np.int64), np.array([0, 0, 0, 1, 1, 1])
    rates = fit(reward, item, nought, fold)
    assert rates.lift.shape == (FOLDS, 2)
    assert rates.by_position[0, 0] == 0.0, "of the folds without the only reward"
    assert rates.by_position[1, 0] == pytest.approx(1 / 5)
    assert rates.lift[1, 0] > 1 > rates.lift[1, 1]
    assert rates.at(1, np.array([0]), np.array([-1])).tolist() == [[pytest.approx(1 / 5)]]


def test_auto_begins_after_the_candidates_train_split(log, tmp_path):
    release = Release.model_validate_json((log[2] / RELEASE).read_text())
    snapshot = Path(release.snapshot.url)
    copied = shutil.copytree(snapshot, tmp_path / "snapshot")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["config"] = {"split": "time:0.8,0.1,0.1"}
    manifest["statistics"] = {"train": {"last_event_time_ms": 12345.0}}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    parent = release.snapshot.model_copy(update={"url": str(copied)})
    assert estimate.beginning("auto", parent) == (12346, [])
    assert estimate.beginning("1970-01-01T00:00:02", parent) == (2000, [])
    gone = parent.model_copy(update={"url": str(tmp_path / "gone")})
    from_ms, notes = estimate.beginning("auto", gone)
    assert from_ms is None
    assert "is gone, so all requests were taken" in notes[0]
