"""Retrieval and ranking: what the models say is what the engine says; what may not be shown is left out."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.errors import UserError
from schemas.features import NUM_RESERVED
from schemas.release import RELEASE, Release
from schemas.wheel import ServingSettings
from serving.engine import Asked, Engine, load_engine
from serving.pack import pack
from serving.retrieval import ItemIndex
from tests.serving.releases import LAST_EVENT_MS, TILE_MS, make_served_snapshot, train_runs
from training.batch import Batch
from training.bundle import load_bundle

NOW = LAST_EVENT_MS + 1


@pytest.fixture(scope="module")
def engine(released: tuple[Path, Release]) -> Engine:
    return load_engine(released[0])


def shown(engine: Engine, **asked: object) -> list[str]:
    scored = engine.score([Asked(**{"user_id": "u3", "time_ms": NOW, **asked})], 30)[0]
    return [engine.items.ids[place] for place in scored.places.tolist()]


def test_seen_and_blocked_items_are_left_out_and_all_others_are_there(engine):
    seen = {"i6", "i7", "i8"}
    every = {f"i{i}" for i in range(30)}
    assert set(shown(engine)) == every - seen
    assert set(shown(engine, blocked=("i1", "unknown"), since=((NOW, "i20"),))) == every - seen - {"i1", "i20"}
    assert set(shown(engine, exclude_seen=False)) == every
    assert set(shown(engine, exclude_seen=False, blocked=("i7",))) == every - {"i7"}


def test_a_request_has_as_many_candidates_as_asked_for_however_many_are_left_out(engine):
    scored = engine.score([Asked(user_id="u3", time_ms=NOW, blocked=tuple(f"i{i}" for i in range(10, 20)))], 17)[0]
    assert len(scored.places) == 17
    assert len(shown(engine, blocked=tuple(f"i{i}" for i in range(30)))) == 0


def test_scores_are_the_rankers_probabilities_of_the_rows_that_were_logged(engine, released):
    ranker = load_bundle(released[0] / "ranker").model
    scored = engine.score([Asked(user_id="u3", time_ms=NOW, context={"tab": 2})], 30)[0]
    assert (np.diff(scored.scores) <= 0).all()
    rows = [scored.features | engine.of_item(scored, rank) for rank in range(len(scored.places))]
    dtypes = {f.name: f.dtype for f in engine.release.transform.features}
    columns = {
        name: torch.tensor([row[name] for row in rows], dtype=getattr(torch, dtype)) for name, dtype in dtypes.items()
    }
    batch = Batch(columns=columns, positions=torch.arange(len(rows)), global_rows=len(rows), step=0)
    with torch.no_grad():
        expected = ranker(batch)[:, 0].sigmoid().numpy()
    assert scored.scores == pytest.approx(expected, rel=1e-5)


def test_without_a_ranker_the_order_is_the_retrievers(tmp_path, released):
    folder, _ = released
    out = tmp_path / "release"
    pack(folder.parent / "runs" / "two_tower", None, out, release_id="plain")
    engine = load_engine(out)
    scored = engine.score([Asked(user_id="nobody", time_ms=NOW)], 30)[0]
    retriever = load_bundle(folder / "retriever").retriever
    history = torch.zeros(1, 4, dtype=torch.int32)
    with torch.no_grad():
        user = retriever.users(Batch(columns={"history": history}, positions=torch.arange(1), global_rows=1, step=0))
        expected = (user @ retriever.items(torch.arange(NUM_RESERVED, NUM_RESERVED + 30)).T)[0].numpy()
    assert scored.scores == pytest.approx(expected[scored.places], rel=1e-5)
    assert scored.places.tolist() == np.argsort(-expected, kind="stable").tolist()


def test_requests_scored_together_are_scored_as_each_alone(engine):
    asked = [
        Asked(user_id=f"u{i}", time_ms=NOW, context={"tab": i % 3}, blocked=tuple(f"i{j}" for j in range(i)))
        for i in range(5)
    ]
    counts = [12, 3, 30, 7, 12]
    together = engine.score(asked, counts)
    assert [len(one.places) for one in together] == [12, 3, 25, 7, 12], "30 items, less 3 seen and 2 blocked"
    for one, request, count in zip(together, asked, counts, strict=True):
        alone = engine.score([request], count)[0]
        assert one.places.tolist() == alone.places.tolist()
        assert one.scores == pytest.approx(alone.scores, rel=1e-5)
        assert one.features == alone.features


def test_who_has_seen_much_makes_nobody_else_fetch_as_much(engine, monkeypatch):
    search, fetched = engine.index.search, []

    def noted(users_BD: np.ndarray, k: int) -> object:
        fetched.append((len(users_BD), k))
        return search(users_BD, k)

    monkeypatch.setattr(engine.index, "search", noted)
    much = Asked(user_id="new", time_ms=NOW, blocked=tuple(f"i{i}" for i in range(20)))
    little = Asked(user_id="new", time_ms=NOW)
    assert [len(one.places) for one in engine.score([little, much, little], 4)] == [4, 4, 4]
    assert sorted(fetched) == [(1, 32), (2, 4)]


def test_popular_items_go_by_count_without_what_may_not_be_shown(engine):
    counts = dict(zip(engine.items.ids, engine.items.counts.tolist(), strict=True))
    places = engine.popular(Asked(user_id="u3", time_ms=NOW, blocked=("i0",)), 30)
    ids = [engine.items.ids[place] for place in places.tolist()]
    assert set(ids) == {f"i{i}" for i in range(30)} - {"i0", "i6", "i7", "i8"}
    assert [counts[item] for item in ids] == sorted((counts[item] for item in ids), reverse=True)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_approximate_index_says_how_much_it_finds(kind):
    random = np.random.default_rng(0)
    centres = random.normal(size=(50, 16))
    items = (centres[random.integers(0, 50, 4000)] + 0.5 * random.normal(size=(4000, 16))).astype(np.float32)
    users = (centres[random.integers(0, 50, 100)] + 0.5 * random.normal(size=(100, 16))).astype(np.float32)
    index = ItemIndex(items, kind)
    recall = index.measure(users, items, 50)
    exact = np.argsort(-(users @ items.T), axis=1)[:, :50]
    found = index.search(users, 50)[1]
    by_hand = np.mean([len(set(a) & set(b)) / 50 for a, b in zip(exact.tolist(), found.tolist(), strict=True)])
    assert recall == pytest.approx(by_hand, abs=1e-6)
    assert recall > 0.5
    assert ItemIndex(items[:10]).kind == "flat"


def test_a_loaded_release_has_what_its_first_requests_need_and_the_next_tile_before_it_begins(released):
    engine = load_engine(released[0])
    assert {"place_of", "by_count"} <= set(vars(engine.items))
    tiles = engine.features._of_tile["item_count"]
    assert abs(max(tiles) - time.time_ns() // 1_000_000 // TILE_MS) <= 60, "the present, and not the release's end"
    begun_ms = NOW // TILE_MS * TILE_MS
    engine.features.prepare(begun_ms)
    assert sorted(tiles)[:1] == [begun_ms // TILE_MS + 1]
    expected = tiles[begun_ms // TILE_MS + 1]
    engine.score([Asked(user_id="u3", time_ms=begun_ms + TILE_MS)], 5)
    assert tiles[begun_ms // TILE_MS + 1] is expected, "it is not made again"


def test_files_that_are_no_part_of_a_release_or_were_changed_are_refused(released, tmp_path):
    def copy(name: str) -> Path:
        return Path(shutil.copytree(released[0], tmp_path / name))

    cases = {
        "pickle": (lambda p: (p / "retriever" / "model.pkl").write_bytes(b"x"), "model.pkl is no part of a release"),
        "link": (lambda p: (p / "users2").symlink_to("/etc/hosts"), "users2 is no part"),
        "weights": (lambda p: append(p / "ranker" / "model.safetensors"), "the bundle ranker was changed"),
        "users": (lambda p: append(p / "users.arrow"), "users.arrow was changed"),
        "gone": (lambda p: (p / "items.arrow").unlink(), "items.arrow is missing"),
        "no": (lambda p: (p / RELEASE).unlink(), "is no release"),
        "cut": (lambda p: (p / RELEASE).write_text("{"), "cannot be read"),
        "key": (lambda p: add_key(p / RELEASE), "unknown key 'more'"),
    }
    for name, (change, says) in cases.items():
        folder = copy(name)
        change(folder)
        with pytest.raises(UserError, match=says):
            load_engine(folder)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def add_key(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"more": 1}))


def test_bundles_of_two_snapshots_make_no_release(released, tmp_path):
    other = make_served_snapshot(tmp_path / "other", rows=300)
    _, ranker = train_runs(other, tmp_path / "runs")
    retriever = released[0].parent / "runs" / "two_tower"
    out = tmp_path / "release"
    with pytest.raises(UserError, match="trained on different snapshots"):
        pack(retriever, ranker, out, release_id="0002")
    with pytest.raises(UserError, match="--retriever is a dlrm"):
        pack(ranker, None, out, release_id="0002")
    with pytest.raises(UserError, match="--ranker is a two_tower"):
        pack(retriever, retriever, out, release_id="0002")
    with pytest.raises(UserError, match="--id"):
        pack(retriever, None, out, release_id="../x")
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_release_is_never_written_over(released):
    runs = released[0].parent / "runs"
    with pytest.raises(UserError, match="is there already"):
        pack(runs / "two_tower", None, released[0], release_id="0001")


def test_settings_of_the_release_are_kept(released, tmp_path):
    runs = released[0].parent / "runs"
    settings = ServingSettings(candidates=7)
    release = pack(runs / "two_tower", None, tmp_path / "r", release_id="a", serving=settings)
    assert release.serving.candidates == 7
    assert release.last_event_time_ms == LAST_EVENT_MS
